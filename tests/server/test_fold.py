"""Folding: the identity, the means, the robust folds by hand, and memory that does not grow with sites."""

import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from common.errors import UserError
from common.federation import Fold, Krum, Mean, Median, Sgd, TrimmedMean
from common.update.clip import norm
from common.update.tensors import State
from server.fold import Folded, fold, normalised
from server.model_file import ModelFile
from server.outer import next_model, outer_optimizer

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = hnp.arrays(np.float32, (6,), elements=FINITE)
MODERATE = hnp.arrays(np.float32, (6,), elements=st.floats(-1e3, 1e3, width=32))


def folded(
    folder: Path, models: list[State], spec: Fold | None = None, weights: list[float] | None = None,
    before: State | None = None,
) -> tuple[State, Folded]:  # fmt: skip
    """Write the models as sites' files, fold them, read all tensors."""
    sites = [f"site-{n:02d}" for n in range(len(models))]
    with ExitStack() as opened:
        files = {}
        for site, model in zip(sites, models, strict=True):
            save_file(model, folder / f"{site}.safetensors")
            files[site] = opened.enter_context(ModelFile(folder / f"{site}.safetensors"))
        shares = normalised(dict(zip(sites, weights or [1.0] * len(sites), strict=True)))
        result = fold(spec or Mean(), shares, files, before or {n: torch.zeros_like(t) for n, t in models[0].items()})
        return dict(result.tensors), result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fold")


@settings(deadline=None, max_examples=40)
@given(VECTORS, VECTORS, st.floats(1e-3, 1e6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_one_site_and_sgd_at_1_is_the_sites_model_bit_for_bit(
    folder: Path, model: np.ndarray, site: np.ndarray, weight: float, dtype: torch.dtype
) -> None:
    before, after = ({"w": torch.from_numpy(x).to(dtype)} for x in (model, site))
    if not all(bool(torch.isfinite(s["w"]).all()) for s in (before, after)):
        return
    mean, _ = folded(folder, [after], weights=[weight], before=before)
    stepped = next_model(outer_optimizer(Sgd(), {}), before, mean.items())
    pattern = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(stepped["w"].view(pattern), after["w"].view(pattern))
    assert stepped["w"].dtype == dtype


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(MODERATE, st.floats(0.1, 10)), min_size=1, max_size=6))
def test_mean_is_the_weighted_mean(folder: Path, sites: list[tuple[np.ndarray, float]]) -> None:
    mean, _ = folded(folder, [{"w": torch.from_numpy(v)} for v, _ in sites], weights=[w for _, w in sites])
    expected = np.average([v.astype(np.float64) for v, _ in sites], axis=0, weights=[w for _, w in sites])
    np.testing.assert_allclose(mean["w"].numpy(), expected, rtol=1e-12, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(MODERATE, st.integers(1, 9))
def test_sites_that_agree_leave_no_trace_of_their_number(folder: Path, model: np.ndarray, sites: int) -> None:
    state = {"w": torch.from_numpy(model)}
    mean, _ = folded(folder, [state] * sites)
    assert torch.equal(mean["w"].float(), state["w"])


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": 0.0, "b": 0.0}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError):
        normalised(weights)


@settings(deadline=None, max_examples=30)
@given(st.lists(MODERATE, min_size=3, max_size=8), st.data())
def test_robust_means_are_numpys(folder: Path, values: list[np.ndarray], data: st.DataObject) -> None:
    models = [{"w": torch.from_numpy(v)} for v in values]
    stacked = np.sort(np.stack(values).astype(np.float64), axis=0)
    np.testing.assert_array_equal(folded(folder, models, Median(name="median"))[0]["w"], np.median(stacked, axis=0))
    trim = data.draw(st.integers(1, (len(values) - 1) // 2))
    trimmed, _ = folded(folder, models, TrimmedMean(name="trimmed-mean", trim=trim))
    expected = stacked[trim : len(values) - trim].mean(axis=0)
    np.testing.assert_allclose(trimmed["w"].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_krum_by_hand(folder: Path) -> None:
    """Four sites close together, one far away: with f = 1, two neighbours each count."""
    positions = [0.0, 1.0, 3.0, 3.5, 100.0]
    models = [{"w": torch.tensor([1e4, x])} for x in positions]
    # Squared distances to the two nearest: 0: 1 + 9, 1: 1 + 4, 3: 0.25 + 4, 3.5: 0.25 + 6.25, 100: far.
    one, result = folded(folder, models, Krum(name="krum"))
    assert one["w"].tolist() == [1e4, 3.0]
    assert result.weights == {f"site-{n:02d}": float(n == 2) for n in range(5)}
    three, result = folded(folder, models, Krum(name="krum", keep=3))
    assert three["w"][1].item() == pytest.approx((1 + 3 + 3.5) / 3)
    assert [w for w in result.weights.values() if w] == [1 / 3] * 3


def test_krums_distances_are_of_differences_not_of_large_values(folder: Path) -> None:
    """In float32, and by |a|^2 + |b|^2 - 2 a b, these distances would be lost or negative."""
    models = [{"w": torch.full((50,), 1e4) + step * 1e-3} for step in (0.0, 1.0, 2.0, 3.0, 200.0)]
    assert folded(folder, models, Krum(name="krum"))[1].weights["site-04"] == 0.0
    assert folded(folder, models, Krum(name="krum", keep=4))[1].weights["site-04"] == 0.0


def test_norm_bounding_scales_differences(folder: Path) -> None:
    before = {"a": torch.ones(2), "b": torch.zeros(())}
    near = {"a": torch.tensor([1.5, 1.0]), "b": torch.tensor(0.0)}
    far = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor(4.0)}
    alone, result = folded(folder, [far], Mean(max_norm=1.0), before=before)
    assert result.scales["site-00"] == pytest.approx(1 / 5)
    assert norm({name: alone[name] - before[name] for name in before}) == pytest.approx(1.0)
    both, result = folded(folder, [near, far], Mean(max_norm=1.0), before=before)
    assert result.scales["site-00"] == 1.0
    assert both["a"].tolist() == pytest.approx([1.25, 1.3])


def test_empty_scalar_and_many_piece_tensors(folder: Path) -> None:
    models = [
        {"none": torch.zeros(0, 3), "one": torch.tensor(float(n)), "long": torch.arange(300_001.0) * n}
        for n in (1, 2, 6)
    ]
    for spec, share in ((Mean(), 3.0), (Median(name="median"), 2.0)):
        result, _ = folded(folder, models, spec)
        assert result["none"].shape == (0, 3) and result["one"].shape == () and result["one"].item() == share
        assert torch.allclose(result["long"], torch.arange(300_001.0, dtype=torch.float64) * share, rtol=1e-12)


def traced_peak(folder: Path, sites: int, spec: Fold) -> int:
    model = {"w": torch.ones(400_000)}
    save_file(model, folder / "all.safetensors")
    with ExitStack() as opened:
        files = {str(n): opened.enter_context(ModelFile(folder / "all.safetensors")) for n in range(sites)}
        result = fold(spec, dict.fromkeys(files, 1 / sites), files, model)
        tracemalloc.start()
        for _ in result.tensors:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("spec", [Mean(), Median(name="median")])
def test_what_is_read_at_once_does_not_grow_with_sites(folder: Path, spec: Fold) -> None:
    """numpy's buffers are traced, torch's are not: what is counted is how much of the files is held at once.

    All memory is measured by `benchmarks.fold`.
    """
    assert traced_peak(folder, 32, spec) <= traced_peak(folder, 4, spec) + 64 * 1024
