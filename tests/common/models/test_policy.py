"""Loading a base model, what of it is trained, and the prompts it reads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.models.adapters import add_adapter
from common.models.policy import Policy, load_policy, load_trainable, trainable_parameters, trainable_state
from common.study import Study, parse_study


@pytest.fixture
def study(tiny_study: dict[str, Any], tiny_model: Path) -> Callable[..., Study]:
    def make(trainable: str = "all", seed: int = 1, base: str = str(tiny_model), **model: Any) -> Study:
        values = {**tiny_study, "seed": seed, "sites": {"train": ["somewhere"], "public": ["elsewhere"]}}
        return parse_study({**values, "model": {"base": base, "trainable": trainable, **model}}, "test")

    return make


Make = Callable[..., Study]


def copy(tiny_model: Path, folder: Path, *without: str) -> Path:
    shutil.copytree(tiny_model, folder)
    for name in without:
        (folder / name).unlink()
    return folder


def not_there(tiny_model: Path, tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


def a_file(tiny_model: Path, tmp_path: Path) -> Path:
    return tiny_model / "config.json"


def empty(tiny_model: Path, tmp_path: Path) -> Path:
    return tmp_path


def no_config(tiny_model: Path, tmp_path: Path) -> Path:
    return copy(tiny_model, tmp_path / "model", "config.json")


def no_weights(tiny_model: Path, tmp_path: Path) -> Path:
    return copy(tiny_model, tmp_path / "model", "model.safetensors")


def no_tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    return copy(tiny_model, tmp_path / "model", "tokenizer.json", "tokenizer_config.json")


def cut_weights(tiny_model: Path, tmp_path: Path) -> Path:
    weights = copy(tiny_model, tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return weights.parent


def incomplete_weights(tiny_model: Path, tmp_path: Path) -> Path:
    folder = copy(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.0.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def no_json(tiny_model: Path, tmp_path: Path) -> Path:
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text("{")
    return folder


def unknown_architecture(tiny_model: Path, tmp_path: Path) -> Path:
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    return folder


@pytest.mark.parametrize("base", ["built-in", "folder"])
@pytest.mark.parametrize(
    "spoil",
    [
        not_there,
        a_file,
        empty,
        no_config,
        no_weights,
        no_tokenizer,
        cut_weights,
        incomplete_weights,
        no_json,
        unknown_architecture,
    ],
)
def test_what_is_no_model_is_refused(
    study: Make, tiny_model: Path, tmp_path: Path, spoil: Callable[[Path, Path], Path], base: str
) -> None:
    place = spoil(tiny_model, tmp_path)
    with pytest.raises(UserError, match="model.base: .* (is not a folder|cannot be loaded)"):
        load_policy(study(base=base if base == "built-in" else str(place)), place)


def test_the_state_is_every_parameter(study: Make, tiny_model: Path) -> None:
    policy = load_policy(study(), tiny_model)
    state = trainable_state(policy)
    assert list(state) == sorted(state) == sorted(name for name, _ in policy.model.named_parameters())
    for name, parameter in trainable_parameters(policy).items():
        assert torch.equal(state[name], parameter) and state[name].data_ptr() != parameter.data_ptr()
        assert not state[name].requires_grad
    assert not policy.model.training


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_goes_round_bit_for_bit(study: Make, tiny_model: Path, trainable: str, dtype: str) -> None:
    policy = load_policy(study(trainable, dtype=dtype), tiny_model)
    generator = torch.Generator().manual_seed(1)
    state = {n: torch.randn(t.shape, generator=generator).to(t.dtype) for n, t in trainable_state(policy).items()}
    for tensor in state.values():
        tensor.view(-1)[:3] = torch.tensor([-0.0, float("nan"), 1e-40]).to(tensor.dtype)
    load_trainable(policy, state)
    again = trainable_state(policy)
    assert again.keys() == state.keys()
    bits = {4: torch.int32, 2: torch.int16}
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].view(bits[tensor.element_size()]), tensor.view(bits[tensor.element_size()]))


def test_states_that_do_not_fit_are_refused(study: Make, tiny_model: Path) -> None:
    policy = load_policy(study(), tiny_model)
    before = trainable_state(policy)
    name = next(iter(before))
    unfit = [
        {n: t for n, t in before.items() if n != name},
        {**before, "another": torch.zeros(1)},
        {**before, name: before[name].T.contiguous()},
        {**before, name: before[name][:1]},
        {**before, name: before[name].double()},
        {},
    ]
    for state in unfit:
        with pytest.raises(ValueError):
            load_trainable(policy, state)
    assert all(torch.equal(tensor, before[n]) for n, tensor in trainable_state(policy).items())


def factors(policy: Policy, name: str) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in policy.model.named_parameters() if name in n}


def test_a_frozen_a_is_the_same_for_the_same_seed(study: Make, tiny_model: Path) -> None:
    torch.rand(3)
    one, two, other = (load_policy(study("lora", seed=seed), tiny_model) for seed in (1, 1, 2))
    assert factors(one, "lora_A") and factors(one, "lora_A").keys() == factors(two, "lora_A").keys()
    assert all(torch.equal(a, factors(two, "lora_A")[name]) for name, a in factors(one, "lora_A").items())
    assert not any(torch.equal(a, factors(other, "lora_A")[name]) for name, a in factors(one, "lora_A").items())
    assert set(trainable_state(one)) == set(factors(one, "lora_B"))


def test_a_policy_is_on_the_gpu_where_there_is_one_and_its_state_is_not(study: Make, tiny_model: Path) -> None:
    policy = load_policy(study("lora"), tiny_model)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    assert {p.device.type for p in policy.model.parameters()} == {place}
    assert {t.device.type for t in trainable_state(policy).values()} == {"cpu"}


def test_an_adapter_begins_as_the_base_model(study: Make, tiny_model: Path) -> None:
    plain, adapted = load_policy(study(), tiny_model), load_policy(study("lora"), tiny_model)
    ids = torch.tensor(plain.encode(["[Severity]\nSOFA: 3\n"]))
    with torch.no_grad():
        assert torch.equal(plain.model(input_ids=ids).logits, adapted.model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("average", "changing", "trained"),
    [
        ("frozen-a", ["lora_B"], ["lora_B"]),
        ("alternating", ["lora_A", "lora_B"], ["lora_B"]),
        ("residual", ["base_layer.weight", "lora_A", "lora_B"], ["lora_A", "lora_B"]),
        ("separate", ["lora_A", "lora_B"], ["lora_A", "lora_B"]),
    ],
)
def test_how_factors_are_averaged_says_what_changes(
    study: Make, tiny_model: Path, average: str, changing: list[str], trained: list[str]
) -> None:
    policy = load_policy(study("lora", lora={"average": average, "rank": 2}), tiny_model)
    assert set(trainable_state(policy)) == {name for part in changing for name in factors(policy, part)}
    assert set(trainable_parameters(policy)) == {name for part in trained for name in factors(policy, part)}
    assert {min(tensor.shape) for tensor in factors(policy, "lora_").values()} == {2}


def test_weights_that_are_not_laid_out_as_corrected_are_refused(tmp_path: Path, study: Make) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="the model has Conv1D"):
        add_adapter(model, study("lora", lora={"average": "residual"}).model, seed=1)


SYSTEM_FIRST = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
NO_SYSTEM = "{% for turn in messages if turn.role == 'user' %}<user>{{ turn.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (SYSTEM_FIRST, "<system>S<user>P"),
        (NO_SYSTEM, "<user>S\n\nP"),
        (None, "S\n\nP\n"),
    ],
)
def test_the_system_text_is_read_whatever_the_template(
    study: Make, tiny_model: Path, template: str | None, text: str
) -> None:
    policy = load_policy(study(), tiny_model)
    policy.tokenizer.chat_template = template
    assert policy.prompt_text("S", "P") == text + "Let's think step by step."
