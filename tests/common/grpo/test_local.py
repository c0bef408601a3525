"""Local steps: exact continuation, determinism, and which questions are asked."""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.grpo.local import LocalResult, LocalTrainer, derive_seed
from common.grpo.optimizer import restore, state_tensors
from common.grpo.reference import save_whole
from common.model import Lora
from common.models.policy import load_policy, load_trainable, trainable_state
from common.study import Study

State = dict[str, Tensor]


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.int32), b[n].view(torch.int32)) for n in a)


@pytest.fixture
def train(tiny_model: Path, questions: pl.DataFrame) -> Callable[..., tuple[State, LocalResult]]:
    """Steps by a new trainer on a new policy that holds `state`, or the base model's weights."""

    def run(
        study: Study,
        folder: Path,
        first: int = 0,
        steps: int = 4,
        state: State | None = None,
        stream: str = "somewhere",
        **options: Any,
    ) -> tuple[State, LocalResult]:
        policy = load_policy(study, tiny_model)
        if state is not None:
            load_trainable(policy, state)
        trainer = LocalTrainer(policy, study, questions, stream)
        result = trainer.run(first, steps, folder, **options)
        return trainable_state(policy), result

    return run


Train = Callable[..., tuple[State, LocalResult]]


@pytest.mark.parametrize(
    ("trainable", "settings"),
    [
        ("all", {"beta": 0.0}),
        ("all", {"beta": 0.1}),
        ("all", {"beta": 0.5, "reference_every": 1}),
        ("lora", {"beta": 0.0}),
        ("lora", {"beta": 0.1}),
        ("all", {"beta": 0.1, "prefix_route": "packed"}),
    ],
)
def test_going_on_with_a_new_trainer_changes_no_bit(
    make_study: Callable[..., Study], train: Train, tmp_path: Path, trainable: str, settings: dict[str, Any]
) -> None:
    study = make_study(trainable, **settings, schedule="cosine", warmup_ratio=0.2, weight_decay=0.1)
    through, results = train(study, tmp_path / "through", 0, 4)
    halfway, first = train(study, tmp_path / "halves", 0, 2)
    resumed, second = train(study, tmp_path / "halves", 2, 2, halfway)
    assert same(through, resumed)
    assert results.rewards == first.rewards + second.rewards
    assert results.informative == first.informative + second.informative
    assert (second.first_step, second.steps) == (2, 2)
    # Both parts must have moved the model, and the optimiser's state must matter, or nothing was compared.
    assert not same(halfway, resumed)
    assert not same(train(study, tmp_path / "afresh", 2, 2, halfway, state_step=0)[0], resumed)


def train_until_killed(study: Study, model: Path, asked: Path, folder: Path, parent: Connection) -> None:
    """Three steps, their weights to the disk, and a second round that stands still after two of its steps."""
    policy = load_policy(study, model)
    trainer = LocalTrainer(policy, study, pl.read_parquet(asked), "somewhere")
    trainer.run(0, 3, folder)
    save_whole(trainable_state(policy), folder / "weights.safetensors")

    def stand_still(step: int, reward: float) -> None:
        if step == 4:
            parent.send(step)
            parent.recv()

    trainer.run(3, 3, folder, on_step=stand_still)


@pytest.mark.parametrize(
    ("trainable", "settings"), [("all", {"beta": 0.5, "reference_every": 2}), ("lora", {"beta": 0.1})]
)
def test_after_kill_9_another_process_goes_on_without_a_bit_changed(
    make_study: Callable[..., Study],
    tiny_model: Path,
    questions: pl.DataFrame,
    train: Train,
    tmp_path: Path,
    trainable: str,
    settings: dict[str, Any],
) -> None:
    study = make_study(trainable, **settings, schedule="cosine", warmup_ratio=0.2)
    killed, unbroken, asked = tmp_path / "killed", tmp_path / "unbroken", tmp_path / "questions.parquet"
    questions.write_parquet(asked)
    # A server imports the libraries once for the processes of all cases.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.grpo.local"])
    here, there = context.Pipe()
    process = context.Process(target=train_until_killed, args=(study, tiny_model, asked, killed, there))
    process.start()
    there.close()
    try:
        assert here.poll(120) and here.recv() == 4
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL

    halfway = load_file(killed / "weights.safetensors")
    resumed, _ = train(study, killed, 3, 3, halfway)
    through, _ = train(study, unbroken, 0, 6)
    assert same(through, resumed) and not same(halfway, resumed)
    states = [path.name for path in unbroken.glob("*-6.safetensors")]
    assert len(states) == (2 if study.grpo.reference_every else 1)
    assert all(same(load_file(unbroken / name), load_file(killed / name)) for name in states)


def test_the_route_of_a_prompt_changes_nothing_but_rounding(
    make_study: Callable[..., Study], train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    base = trainable_state(load_policy(make_study(), tiny_model))
    state, result = train(make_study(prefix_route="expanded"), tmp_path / "expanded", 0, 2)
    moved = sum(float((state[name] - base[name]).norm() ** 2) for name in base)
    for route in ("packed", "plain"):
        other, told = train(make_study(prefix_route=route), tmp_path / route, 0, 2)
        apart = sum(float((state[name] - other[name]).norm() ** 2) for name in base)
        assert told.rewards == result.rewards
        assert 0 < apart < 1e-4 * moved, route


@pytest.mark.parametrize(
    ("loss_type", "trainable"), [("grpo", "all"), ("dapo", "lora"), ("dr_grpo", "all"), ("cispo", "all")]
)
def test_groups_learned_one_after_the_other_change_nothing_but_rounding(
    make_study: Callable[..., Study],
    train: Train,
    tiny_model: Path,
    tmp_path: Path,
    loss_type: str,
    trainable: str,
) -> None:
    settings: dict[str, Any] = {"loss_type": loss_type, "beta": 0.1, "prefix_route": "expanded"}
    base = trainable_state(load_policy(make_study(trainable), tiny_model))
    together, result = train(make_study(trainable, **settings), tmp_path / "together", 0, 1)
    apart, told = train(make_study(trainable, **settings, groups_at_once=1), tmp_path / "apart", 0, 1)
    assert told.rewards == result.rewards and told.signs == result.signs
    # AdamW's first step is the learning rate by the sign of the gradient, so its moments are compared.
    moments = [load_file(tmp_path / name / "optimizer-1.safetensors") for name in ("together", "apart")]
    means = [{name: t for name, t in found.items() if name.startswith("exp_avg/")} for found in moments]
    size = sum(float(t.norm() ** 2) for t in means[0].values())
    difference = sum(float((means[0][name] - means[1][name]).norm() ** 2) for name in means[0])
    assert size > 0 and difference < 1e-8 * size
    assert not same(base, apart)


def test_agreeing_groups_are_replaced_and_the_steps_can_be_computed_again(
    make_study: Callable[..., Study], train: Train, tmp_path: Path
) -> None:
    """The tiny model's groups often agree, so a step without replacements has fewer informative ones."""
    plain = train(make_study(), tmp_path / "plain", 0, 3)[1]
    study = make_study(dynamic_sampling=4)
    state, result = train(study, tmp_path / "replaced", 0, 3)
    assert sum(result.informative) > sum(plain.informative)
    halfway, first = train(study, tmp_path / "halves", 0, 1)
    resumed, second = train(study, tmp_path / "halves", 1, 2, halfway)
    assert same(state, resumed) and result.rewards == first.rewards + second.rewards


def test_terms_of_the_reward_are_weighed(make_study: Callable[..., Study], train: Train, tmp_path: Path) -> None:
    study = make_study(rewards={"answer": 1.0, "format": 0.5})
    plain = train(make_study(), tmp_path / "plain", 0, 1)[1]
    weighed = train(study, tmp_path / "weighed", 0, 1)[1]
    # The first step's completions are the same, and the tiny model boxes some letter nearly always.
    assert plain.rewards[0] + 0.3 < weighed.rewards[0] <= plain.rewards[0] + 0.5


def test_a_round_can_be_computed_again(make_study: Callable[..., Study], train: Train, tmp_path: Path) -> None:
    study = make_study()
    start, _ = train(study, tmp_path, 0, 2)
    once, _ = train(study, tmp_path, 2, 2, start)
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer-2.safetensors", "optimizer-4.safetensors"}
    assert same(once, train(study, tmp_path, 2, 2, start)[0])
    train(study, tmp_path, 4, 2, once)
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer-4.safetensors", "optimizer-6.safetensors"}


def test_a_site_that_missed_a_round_goes_on_from_its_last_state(
    make_study: Callable[..., Study], train: Train, tmp_path: Path
) -> None:
    study = make_study()
    start, _ = train(study, tmp_path, 0, 2)
    missed, _ = train(study, tmp_path, 4, 2, start, state_step=2)
    assert not same(missed, train(study, tmp_path / "other", 4, 2, start, state_step=0)[0])
    assert (tmp_path / "optimizer-6.safetensors").exists()


def test_seed_and_stream_decide_the_result(make_study: Callable[..., Study], train: Train, tmp_path: Path) -> None:
    study = make_study()
    once, first = train(study, tmp_path / "1")
    torch.rand(7)  # draws elsewhere in the process
    again, second = train(study, tmp_path / "2")
    assert same(once, again) and (first.rewards, first.informative) == (second.rewards, second.informative)
    assert not same(once, train(study, tmp_path / "3", stream="elsewhere")[0])
    assert not same(once, train(make_study(seed=2), tmp_path / "4")[0])


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_lora_steps_leave_what_is_frozen(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, tmp_path: Path, beta: float
) -> None:
    study = make_study("lora", beta=beta)
    policy = load_policy(study, tiny_model)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    trained = set(trainable_state(policy))
    LocalTrainer(policy, study, questions, "somewhere").run(0, 2, tmp_path)
    assert set(trainable_state(policy)) == trained and all("lora_B" in name for name in trained)
    after = dict(policy.model.named_parameters())
    assert before.keys() == after.keys(), "parameters came or went"
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rounds_train_the_factors_by_turns_and_go_on_with_each_ones_moments(
    make_study: Callable[..., Study], train: Train, tiny_model: Path, tmp_path: Path, beta: float
) -> None:
    plain = make_study("lora", beta=beta)
    study = plain.model_copy(
        update={"model": plain.model.model_copy(update={"lora": Lora(average="alternating")}),
                "rounds": plain.rounds.model_copy(update={"rounds": 3, "local_steps": 2})}
    )  # fmt: skip
    state = trainable_state(load_policy(study, tiny_model))
    for first, moved in ((0, "lora_B"), (2, "lora_A"), (4, "lora_B")):
        after, _ = train(study, tmp_path, first, 2, state=state)
        assert {name for name in state if not torch.equal(state[name], after[name])} == {n for n in state if moved in n}
        state = after
    steps = {name: int(t) for name, t in load_file(tmp_path / "optimizer-6.safetensors").items() if "step/" in name}
    assert {count for name, count in steps.items() if "lora_A" in name} == {2}
    assert {count for name, count in steps.items() if "lora_B" in name} == {4}


def test_many_trainers_share_one_model(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, train: Train, tmp_path: Path
) -> None:
    study = make_study()
    policy = load_policy(study, tiny_model)
    base = trainable_state(policy)
    shared = [LocalTrainer(policy, study, questions, stream) for stream in ("one", "two")]
    for trainer in shared:
        load_trainable(policy, base)
        trainer.run(0, 2, tmp_path / trainer.stream)
        alone, _ = train(study, tmp_path / f"alone-{trainer.stream}", 0, 2, stream=trainer.stream)
        assert same(trainable_state(policy), alone)


def test_every_step_is_told_of_and_counted(make_study: Callable[..., Study], train: Train, tmp_path: Path) -> None:
    study = make_study()
    seen: list[tuple[int, float]] = []
    _, result = train(study, tmp_path, 0, 6, on_step=lambda step, reward: seen.append((step, reward)))
    assert [step for step, _ in seen] == list(range(6)) and [reward for _, reward in seen] == result.rewards
    assert all(0 <= reward <= 1 for reward in result.rewards) and all(0 <= share <= 1 for share in result.informative)
    assert result.seconds["generating"] > 0 and result.seconds["learning"] > 0


def test_an_epoch_asks_every_question_once(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame
) -> None:
    study = make_study(prompts_per_step=4)
    trainer = LocalTrainer(load_policy(study, tiny_model), study, questions, "somewhere")
    total = len(trainer.rows)
    assert total == questions.height and total % 4 == 2, "an epoch is to end within a step"
    asked = [row["prompt"] for step in range(3 * total // 4) for row in trainer.batch(step)]
    everything = Counter(row["prompt"] for row in trainer.rows)
    epochs = [asked[start : start + total] for start in range(0, len(asked) - total + 1, total)]
    assert len(epochs) >= 2 and all(Counter(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]
    # Any step can be asked for at any time.
    assert [row["prompt"] for row in trainer.batch(1)] == asked[4:8]
    again = LocalTrainer(trainer.policy, study, questions, "somewhere")
    assert [row["prompt"] for row in again.batch(9)] == asked[36:40]


def test_too_long_prompts_are_left_out_whole_and_counted(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame
) -> None:
    policy = load_policy(make_study(), tiny_model)
    texts = [policy.prompt_text(s, p) for s, p in questions.select("system", "prompt").iter_rows()]
    lengths = sorted(len(ids) for ids in policy.encode(texts))
    limit = lengths[len(lengths) // 2]
    long = sum(length > limit for length in lengths)
    assert 0 < long < len(lengths)
    trainer = LocalTrainer(policy, make_study(max_prompt_tokens=limit), questions, "somewhere")
    assert (trainer.left_out, len(trainer.rows)) == (long, len(lengths) - long)
    assert {row["prompt"] for row in trainer.rows} <= set(texts), "a prompt was cut"


@pytest.mark.parametrize("grpo", [{"prompts_per_step": 31}, {"max_prompt_tokens": 1}])
def test_too_few_questions_are_refused(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame, grpo: dict[str, int]
) -> None:
    study = make_study(**grpo)
    with pytest.raises(UserError, match="training questions are fewer than grpo.prompts_per_step"):
        LocalTrainer(load_policy(study, tiny_model), study, questions, "somewhere")


def test_no_question_at_all_is_refused(
    make_study: Callable[..., Study], tiny_model: Path, questions: pl.DataFrame
) -> None:
    with pytest.raises(UserError, match="somewhere: 0 training questions"):
        LocalTrainer(load_policy(make_study(), tiny_model), make_study(), questions.clear(), "somewhere")


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(1, "somewhere", "step", 3) == derive_seed("1", "somewhere", "step", "3")
    assert len({derive_seed(1, "a", 12), derive_seed(1, "a1", 2), derive_seed(1, "a", 1, 2)}) == 3
    assert all(0 <= derive_seed(n) < 2**63 for n in range(100))


def test_optimizer_state_comes_back_where_the_parameters_are(tmp_path: Path) -> None:
    """Bit for bit on this device, and on another one (`meta` stands in: every machine has it)."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    before = torch.optim.AdamW([weight], lr=0.1)
    for _ in range(3):
        (weight**2).sum().backward()
        before.step()
        before.zero_grad()
    save_whole(state_tensors(before, {"weight": weight}), tmp_path / "optimizer-3.safetensors")
    here, elsewhere = torch.nn.Parameter(weight.detach().clone()), torch.nn.Parameter(weight.detach().to("meta"))
    for parameter in (here, elsewhere):
        after = torch.optim.AdamW([parameter], lr=0.1)
        restore(after, {"weight": parameter}, load_file(tmp_path / "optimizer-3.safetensors"))
        assert after.state[parameter].keys() == before.state[weight].keys()
        assert after.state[parameter]["exp_avg"].device == after.state[parameter]["exp_avg_sq"].device
        assert after.state[parameter]["exp_avg"].device == parameter.device
    loaded = torch.optim.AdamW([here], lr=0.1)
    restore(loaded, {"weight": here}, load_file(tmp_path / "optimizer-3.safetensors"))
    assert all(torch.equal(loaded.state[here][key], value) for key, value in before.state[weight].items())
