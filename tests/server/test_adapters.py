"""LoRA factors of several sites as one: what each way of averaging gets exactly, and what `separate` loses."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from common.federation import Mean, Sgd, Update
from common.model import Average, Lora, Model
from common.models.adapters import FACTOR_A, FACTOR_B, FROZEN, trained_in_round
from common.study import Study
from common.update.chain import chain, decode, encode
from common.update.tensors import State, sha256
from server.adapters import measure_and_correct
from server.fold import fold, normalised
from server.model_file import ModelFile
from server.outer import next_model, outer_optimizer
from server.round_store import RoundStore
from server.run_folder import read_events, write_text
from server.simulation import simulate_federated

RANK, SCALE = 2, 4.0
LORA = Lora(rank=RANK, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


class Case:
    """A model of two adapted layers, its sites' models after a round, and their weights."""

    def __init__(self, seed: int, sites: int, average: Average, dtype: torch.dtype, number: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.spec = Model(trainable="lora", lora=LORA.model_copy(update={"average": average}))
        self.number = number
        self.before: State = {}
        for layer, (out, into) in (("one", (5, 3)), ("two.three", (4, 7))):
            self.before[layer + FACTOR_A] = torch.randn(RANK, into, generator=draw)
            self.before[layer + FACTOR_B] = torch.randn(out, RANK, generator=draw)
            self.before[layer + FROZEN] = torch.randn(out, into, generator=draw).to(dtype)
        names = trained_in_round(self.spec, number, self.before)
        self.sites = {
            f"site-{n}": {name: t + torch.randn(t.shape, generator=draw) for name, t in names.items()}
            for n in range(sites)
        }
        shares = torch.rand(sites, generator=draw) + 0.1
        self.weights = normalised(dict(zip(self.sites, shares.tolist(), strict=True)))

    def fold(self, folder: Path) -> tuple[State, float, State]:
        """The next model, what averaging apart lost, and the outer optimiser's state."""
        outer = outer_optimizer(Sgd(), {})
        with ExitStack() as opened:
            files = {}
            for site, model in self.sites.items():
                save_file(model, folder / f"{site}.safetensors")
                files[site] = opened.enter_context(ModelFile(folder / f"{site}.safetensors"))
            part = trained_in_round(self.spec, self.number, self.before)
            model = self.before | next_model(outer, part, fold(Mean(), self.weights, files, part).tensors)
            lost = 0.0
            if self.spec.factors_apart:
                corrected, lost = measure_and_correct(self.spec.lora, self.weights, files, model, outer.state)
                model |= corrected
        return model, lost, outer.state

    def layers(self, model: State, left: State | None = None) -> dict[str, torch.Tensor]:
        """W + s B A of each layer in float64; `left`: what rounding left of W."""
        return {
            layer: model[layer + FROZEN].double()
            + (left or {}).get(f"residual/{layer}{FROZEN}", torch.zeros(1)).double()
            + SCALE * model[layer + FACTOR_B].double() @ model[layer + FACTOR_A].double()
            for layer in ("one", "two.three")
        }

    def mean_layers(self) -> dict[str, torch.Tensor]:
        """The weighted mean of the sites' layers."""
        every = {site: self.layers(self.before | model) for site, model in self.sites.items()}
        return {
            layer: sum((self.weights[site] * every[site][layer] for site in every), torch.zeros(()).double())
            for layer in ("one", "two.three")
        }


SEEDS, SITES = st.integers(0, 2**32), st.integers(1, 5)


@settings(deadline=None, max_examples=30)
@given(
    SEEDS, SITES, st.sampled_from(["frozen-a", "alternating", "residual"]), st.integers(1, 2),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_the_next_models_layers_are_the_mean_of_the_sites(
    folder: Path, seed: int, sites: int, average: Average, number: int, dtype: torch.dtype
) -> None:
    case = Case(seed, sites, average, dtype, number)
    model, _, state = case.fold(folder)
    got, expected = case.layers(model, state), case.mean_layers()
    for layer, mean in expected.items():
        # A float32 rounding of the factors, or of the corrected weight.
        size = SCALE * case.before[layer + FACTOR_B].norm() * case.before[layer + FACTOR_A].norm() + mean.norm()
        assert torch.allclose(got[layer], mean, rtol=0, atol=4e-7 * float(size))


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 5))
def test_what_separate_averages_lose_is_measured(folder: Path, seed: int, sites: int) -> None:
    case = Case(seed, sites, "separate", torch.float32)
    model, lost, _ = case.fold(folder)
    mean = {
        layer: sum(case.weights[s] * (m[layer + FACTOR_B].double() @ m[layer + FACTOR_A].double())
                   for s, m in case.sites.items())
        for layer in ("one", "two.three")
    }  # fmt: skip
    apart = sum(
        float((model[layer + FACTOR_B].double() @ model[layer + FACTOR_A].double() - mean[layer]).square().sum())
        for layer in mean
    )
    expected = (apart / sum(float(torch.as_tensor(m).square().sum()) for m in mean.values())) ** 0.5
    assert lost == pytest.approx(expected, rel=1e-9) and lost > 1e-3
    assert all(torch.equal(model[layer + FROZEN], case.before[layer + FROZEN]) for layer in mean)


@pytest.mark.parametrize("average", ["residual", "separate"])
def test_one_site_is_its_own_mean_bit_for_bit(folder: Path, average: Average) -> None:
    case = Case(1, 1, average, torch.float32)
    case.before["one" + FROZEN][0, 0] = -0.0
    model, lost, _ = case.fold(folder)
    assert lost == 0.0
    expected = case.before | case.sites["site-0"]
    assert {n: t.view(torch.int32).tolist() for n, t in model.items()} == {
        n: t.view(torch.int32).tolist() for n, t in expected.items()
    }


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(1, 2))
def test_what_sites_send_with_one_factor_may_be_summed(seed: int, number: int) -> None:
    """The weighted sum of the differences, which a secure sum would give, decodes to the mean of the products."""
    case = Case(seed, 3, "alternating", torch.float32, number)
    steps, part = chain(Update(steps=("difference",))), trained_in_round(case.spec, number, case.before)
    sent = {site: encode(steps, part, model, {})[0] for site, model in case.sites.items()}
    summed = {name: sum((case.weights[s] * sent[s][name] for s in sent), torch.zeros(())) for name in part}
    got, expected = case.layers(case.before | decode(steps, part, summed, "the sum")), case.mean_layers()
    for layer, mean in expected.items():
        size = float(case.before[layer + FACTOR_B].norm() * case.before[layer + FACTOR_A].norm() + mean.norm())
        assert torch.allclose(got[layer], mean, rtol=0, atol=4e-6 * size)


def test_corrections_below_a_bfloat16_unit_add_up(folder: Path) -> None:
    """Each is lost in rounding; what is lost is kept until it makes a unit."""
    lora, draw = LORA.model_copy(update={"average": "residual"}), torch.Generator().manual_seed(3)
    small = {name: 1e-2 * torch.randn(t.shape, generator=draw) for name, t in
             {"one" + FACTOR_A: torch.empty(RANK, 3), "one" + FACTOR_B: torch.empty(5, RANK)}.items()}  # fmt: skip
    for sign, site in ((1, "plus"), (-1, "minus")):
        save_file({name: sign * t for name, t in small.items()}, folder / f"{site}.safetensors")
    zeros = {name: torch.zeros_like(t) for name, t in small.items()}
    model, state = {**zeros, "one" + FROZEN: torch.ones(5, 3, dtype=torch.bfloat16)}, {}
    weights, rounds = {"plus": 0.5, "minus": 0.5}, 40
    with ExitStack() as opened:
        files = {s: opened.enter_context(ModelFile(folder / f"{s}.safetensors")) for s in weights}
        for _ in range(rounds):
            corrected, _ = measure_and_correct(lora, weights, files, model, state)
            model |= corrected
    exact = 1.0 + rounds * SCALE * small["one" + FACTOR_B].double() @ small["one" + FACTOR_A].double()
    assert float((exact - 1.0).abs().max()) > 2**-7, "a unit of bfloat16 below 1 has to be reached"
    got = model["one" + FROZEN].double() + state[f"residual/one{FROZEN}"].double()
    assert torch.allclose(got, exact, rtol=0, atol=1e-5)


@pytest.fixture
def study(small_study: Callable[..., Study], tiny_model: Path) -> Callable[[str], Study]:
    def make(average: str) -> Study:
        rounds = {"rounds": 3, "local_steps": 2, "validation_patients": 0, "deadline_s": 60}
        model = {"base": str(tiny_model), "trainable": "lora", "lora": {"average": average, "rank": 2}}
        return small_study(model=model, rounds=rounds)

    return make


def simulate(study: Study, model: Path, folder: Path) -> tuple[RoundStore, list[dict[str, Any]]]:
    write_text(folder / "study.toml", study.to_toml())
    simulate_federated(folder / "study.toml", study, "adapters", model, folder / "federated", folder / "events.jsonl")
    finished = [event for event in read_events(folder / "events.jsonl") if event["event"] == "round_finished"]
    return RoundStore(folder / "federated"), finished


def changed(store: RoundStore, number: int) -> set[str]:
    """Endings of the names of what a round changed."""
    before, after = store.load(number - 1).model, store.load(number).model
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    return {ending for ending in (FACTOR_A, FACTOR_B, FROZEN) if any(name.endswith(ending) for name in moved)}


def test_rounds_by_turns_send_and_change_one_factor(
    study: Callable[[str], Study], tiny_model: Path, tmp_path: Path
) -> None:
    store, finished = simulate(study("alternating"), tiny_model, tmp_path)
    assert [changed(store, number) for number in (1, 2, 3)] == [{FACTOR_B}, {FACTOR_A}, {FACTOR_B}]
    model = store.load(0).model
    sizes = [sum(t.nbytes for name, t in model.items() if name.endswith(e)) for e in (FACTOR_B, FACTOR_A, FACTOR_B)]
    assert [event["bytes"]["a"] for event in finished] == sizes
    assert not any("adapter_bias" in event for event in finished)


@pytest.mark.parametrize(("average", "frozen"), [("residual", {FROZEN}), ("separate", set())])
def test_rounds_log_what_averaging_apart_lost(
    study: Callable[[str], Study], tiny_model: Path, tmp_path: Path, average: str, frozen: set[str]
) -> None:
    store, finished = simulate(study(average), tiny_model, tmp_path)
    assert [changed(store, number) for number in (1, 2, 3)] == [{FACTOR_A, FACTOR_B} | frozen] * 3
    assert all(event["adapter_bias"] > 0 for event in finished)
    last = sha256(store.load(3).model)
    for path in store.folder.glob("round-0003*"):
        path.unlink()
    again, _ = simulate(study(average), tiny_model, tmp_path)
    assert sha256(again.load(3).model) == last, "a round computed again ends with another model"
