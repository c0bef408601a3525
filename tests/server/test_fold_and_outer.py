"""Folding and outer steps: the identity, the mean, the formulas, and memory that does not grow."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import UserError
from common.study import Outer
from common.update.tensors import State
from server.fold import fold_mean, normalised
from server.outer import Adam, Nesterov, Sgd, outer_optimizer

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = hnp.arrays(np.float32, (6,), elements=FINITE)
MODERATE = hnp.arrays(np.float32, (6,), elements=st.floats(-1e3, 1e3, width=32))


@settings(deadline=None)
@given(VECTORS, VECTORS, st.floats(1e-3, 1e6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_one_site_and_sgd_at_1_is_the_sites_model_bit_for_bit(
    model: np.ndarray, site: np.ndarray, weight: float, dtype: torch.dtype
) -> None:
    before, after = ({"w": torch.from_numpy(x).to(dtype)} for x in (model, site))
    if not all(bool(torch.isfinite(s["w"]).all()) for s in (before, after)):
        return
    share = normalised({"a": weight})["a"]
    stepped = Sgd().step(before, fold_mean([(share, after)]))
    pattern = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(stepped["w"].view(pattern), after["w"].view(pattern))
    assert stepped["w"].dtype == dtype


@settings(deadline=None)
@given(st.lists(st.tuples(MODERATE, st.floats(0.1, 10)), min_size=1, max_size=6))
def test_mean_is_the_weighted_mean(sites: list[tuple[np.ndarray, float]]) -> None:
    weights = normalised({str(i): w for i, (_, w) in enumerate(sites)})
    mean = fold_mean((weights[str(i)], {"w": torch.from_numpy(v)}) for i, (v, _) in enumerate(sites))
    expected = np.average([v.astype(np.float64) for v, _ in sites], axis=0, weights=[w for _, w in sites])
    np.testing.assert_allclose(mean["w"].numpy(), expected, rtol=1e-12, atol=1e-9)


@settings(deadline=None)
@given(MODERATE, st.integers(1, 9))
def test_sites_that_agree_leave_no_trace_of_their_number(model: np.ndarray, sites: int) -> None:
    state = {"w": torch.from_numpy(model)}
    weights = normalised({str(i): 1.0 for i in range(sites)})
    stepped = Sgd().step(state, fold_mean((w, state) for w in weights.values()))
    assert torch.equal(stepped["w"], state["w"])


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}, {"a": 0.0, "b": 0.0}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError):
        normalised(weights)


def peak_bytes(sites: int) -> int:
    def models() -> Iterator[tuple[float, State]]:
        for n in range(sites):
            yield 1.0 / sites, {"w": torch.from_numpy(np.full(200_000, n, dtype=np.float32))}

    tracemalloc.start()
    fold_mean(models())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_models_are_dropped_as_they_are_folded() -> None:
    # numpy's arrays are traced, torch's are not: what is counted is how many sites' models are held at once.
    assert peak_bytes(32) <= peak_bytes(4) * 1.05


def test_sgd_goes_part_of_the_way() -> None:
    model, mean = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0], dtype=torch.float64)}
    assert Sgd(lr=0.5).step(model, mean)["w"].tolist() == [2.0, 2.0]


def test_nesterov_equals_torchs() -> None:
    """torch.optim.SGD(nesterov=True) on the pseudo-gradient is the reference."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    reference = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    model, outer = {"w": weight.detach().clone()}, Nesterov()
    for _ in range(4):
        mean = {"w": torch.randn(5, dtype=torch.float64)}
        weight.grad = weight.detach() - mean["w"]
        reference.step()
        model = outer.step(model, mean)
    assert torch.allclose(model["w"], weight.detach(), atol=1e-12)


def test_adam_takes_its_first_step_by_the_formula() -> None:
    model, mean = {"w": torch.tensor([1.0])}, {"w": torch.tensor([0.0], dtype=torch.float64)}
    stepped = Adam(lr=0.1).step(model, mean)
    expected = 1 - 0.1 * 0.1 / (np.sqrt(0.99 * 1e-6 + 0.01) + 1e-3)
    assert stepped["w"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_an_optimiser_goes_on_from_its_checkpoint(name: str) -> None:
    spec = Outer(name=name, lr=0.5)
    means = [{"w": torch.full((3,), float(n), dtype=torch.float64)} for n in range(4)]
    whole, model = outer_optimizer(spec, {}), {"w": torch.ones(3)}
    for mean in means:
        model = whole.step(model, mean)
    resumed, state = {"w": torch.ones(3)}, {}
    for mean in means:
        outer = outer_optimizer(spec, {n: t.clone() for n, t in state.items()})
        resumed, state = outer.step(resumed, mean), outer.state
    assert torch.equal(resumed["w"], model["w"])
