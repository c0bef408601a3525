"""Log-probabilities and gradients by every route against each row whole and alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn

from common.errors import UserError
from common.grpo import head
from common.grpo import logps as module
from common.grpo.logps import completion_logps, expanded_bytes
from common.grpo.prefix import left_pad
from common.study import PrefixRoute

VOCABULARY, PAD = 100, 0
ROUTES = ("expanded", "packed", "plain")


@dataclass(frozen=True)
class Rows:
    """Rows of several groups in any order: prompt and completion of each, without padding."""

    prompts: list[list[int]]
    completions: list[list[int]]

    def padded(self, right: bool) -> tuple[Tensor, Tensor, int]:
        """Ids and mask `[B, P + C]` as TRL hands them over, the prompts padded on the right on demand, and C."""
        ids, mask = left_pad(self.prompts, PAD, torch.device("cpu"))
        if right:
            order = mask.argsort(dim=-1, descending=True, stable=True)
            ids, mask = ids.gather(-1, order), mask.gather(-1, order)
        width = max(len(row) for row in self.completions)
        tail = torch.tensor([row + [PAD] * (width - len(row)) for row in self.completions])
        keep = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self.completions])
        return torch.cat([ids, tail], dim=1), torch.cat([mask, keep], dim=1), width


tokens = st.integers(0, VOCABULARY - 1)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=4))
    asked = [prompt for prompt in prompts for _ in range(draw(st.integers(1, 4)))]
    asked = draw(st.permutations(asked))
    completions = [draw(st.lists(tokens, min_size=1, max_size=6)) for _ in asked]
    return Rows(asked, completions)


def alone(model: nn.Module, prompt: list[int], completion: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one completion from the whole row, without padding or cache."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0] / temperature
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(-1, torch.tensor(completion)[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=25, deadline=None)
@given(batch=rows(), right=st.booleans(), temperature=st.floats(0.5, 2.0), seed=st.integers(0, 2**31))
def test_logps_and_gradients_are_those_of_whole_rows(
    model: nn.Module, route: PrefixRoute, batch: Rows, right: bool, temperature: float, seed: int
) -> None:
    ids, mask, width = batch.padded(right)
    shared, entropies = completion_logps(model, ids, mask, width, temperature, route)
    plain = [alone(model, p, c, temperature) for p, c in zip(batch.prompts, batch.completions, strict=True)]
    real = mask[:, -width:].bool()
    expected = torch.cat([logps for logps, _ in plain])
    torch.testing.assert_close(shared[real], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies[real], torch.cat([e for _, e in plain]), rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad
    # Every token with a weight of its own, so that no two rows' gradients can be taken for each other's.
    weights = torch.rand(len(expected), generator=torch.Generator().manual_seed(seed)) + 0.5
    by_prefix = gradient(model, (shared[real] * weights).sum())
    whole = gradient(model, (expected * weights).sum())
    assert (by_prefix - whole).norm() <= 1e-5 * whole.norm()


BATCH = Rows([[5, 9, 31, 2], [5, 9, 31, 2], [7, 8]], [[1, 2, 3], [4, 5], [6]])


def kept_bytes(model: nn.Module, ids: Tensor, mask: Tensor, width: int, route: PrefixRoute) -> int:
    """Bytes that autograd holds for the backward pass, parameters apart, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps, _ = completion_logps(model, ids, mask, width, 1.0, route)
    assert logps.requires_grad
    return sum(held.values())


def test_packed_keeps_little_and_the_estimate_for_expanded_holds(random_model: Callable[..., nn.Module]) -> None:
    config = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "max_position_embeddings": 512}
    model = random_model(**config)
    prompts = torch.randint(1, VOCABULARY, (2, 200)).repeat_interleave(4, dim=0)
    ids = torch.cat([prompts, torch.randint(1, VOCABULARY, (8, 24))], dim=1)
    mask = torch.ones_like(ids)
    expanded, packed = (kept_bytes(model, ids, mask, 24, route) for route in ("expanded", "packed"))
    assert packed < expanded / 8
    assert expanded / 1.5 < expanded_bytes(model, 2, 200, 8, 24) < expanded * 1.5


def test_auto_packs_once_expanding_keeps_too_much(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask, width = BATCH.padded(right=False)
    inner = module.causal_model(model)
    by_route = {route: completion_logps(model, ids, mask, width, 1.0, route)[0] for route in ("expanded", "packed")}
    assert not torch.equal(by_route["expanded"], by_route["packed"]), "rounding does not tell the routes apart"
    kept = expanded_bytes(inner, 2, 4, 3, 3)
    for limit, route in ((kept, "expanded"), (kept - 1, "packed")):
        monkeypatch.setattr(module, "KEPT_AT_MOST", limit)
        assert torch.equal(completion_logps(model, ids, mask, width, 1.0)[0], by_route[route])


def test_a_model_that_reaches_back_a_window_is_not_packed(
    random_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    windowed = random_model(sliding_window=3)
    ids, mask, width = BATCH.padded(right=False)
    with pytest.raises(UserError, match="window of tokens"):
        completion_logps(windowed, ids, mask, width, 1.0, "packed")
    monkeypatch.setattr(module, "KEPT_AT_MOST", 0)
    assert completion_logps(windowed, ids, mask, width, 1.0)[0].shape == (3, 3)


def test_layers_keep_their_caches_after_a_packed_pass(model: nn.Module) -> None:
    ids, mask, width = BATCH.padded(right=False)
    before = completion_logps(model, ids, mask, width, 1.0, "expanded")[0]
    completion_logps(model, ids, mask, width, 1.0, "packed")
    assert torch.equal(completion_logps(model, ids, mask, width, 1.0, "expanded")[0], before)


UNEVEN = (Rows([[3, 1, 4], [3, 1, 4]], [[5], [9]]), Rows([[2, 6], [5, 3, 5]], [[8, 9, 7, 9], [3, 2, 3, 8, 4]]))
"""Of two processes: the first has completions of one token alone."""


def limits(model: nn.Module) -> tuple[int, int, int]:
    """At which the first process alone would expand, and both have logits in chunks of two tokens."""
    inner = module.causal_model(model)
    return expanded_bytes(inner, 1, 3, 2, 1), 1, 2 * VOCABULARY


def one_of_two(rank: int, folder: str, model: nn.Module) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module.KEPT_AT_MOST, head.KEPT_AT_MOST, head.CHUNK = limits(model)
    calls: Counter[str] = Counter()
    for name, part in model.named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    out = {}
    for route in ("expanded", "packed", "auto"):
        calls.clear()
        logps, _ = completion_logps(model, *UNEVEN[rank].padded(right=False), 1.0, route)
        out[route] = logps.detach(), gradient(model, logps.sum()), dict(calls)
    torch.save(out, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_processes_run_each_module_equally_often(
    random_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """ZeRO-3 fetches a module's weights from all processes at each call: one that calls it more often waits for ever.
    The calls that are added change nothing."""
    model = random_model()
    mp.spawn(one_of_two, (str(tmp_path), model), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for route in ("expanded", "packed", "auto"):
        assert first[route][2] == second[route][2] and first[route][2]["lm_head"] > 1
    assert first["auto"][2] == first["packed"][2] != first["expanded"][2]
    for rows, out in zip(UNEVEN, (first, second), strict=True):
        for route in ("expanded", "packed"):
            logps, _ = completion_logps(model, *rows.padded(right=False), 1.0, route)
            torch.testing.assert_close(out[route][0], logps.detach())
            torch.testing.assert_close(out[route][1], gradient(model, logps.sum()))
