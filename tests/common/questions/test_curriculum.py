import polars as pl
import pytest

from common.errors import UserError
from common.questions.curriculum import weigh, worth_asking
from common.registry.registry import Registry
from common.study import Curriculum, Study, parse_study
from common.tasks.site_questions import site_questions

VALUES = {"name": "t", "sites": {"train": ["clinic"], "public": ["public"]}, "rounds": {"validation_patients": 10}}


def study(**curriculum: object) -> Study:
    return parse_study({**VALUES, "curriculum": curriculum}, "test")


def asked(n: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"question_id": [f"q{i:04d}" for i in range(n)], "section": [("Labs", "Vitals")[i % 2] for i in range(n)]}
    )


def test_a_section_is_asked_as_often_as_its_weight_says() -> None:
    """Labs 2.5: twice, and one in two a third time. Vitals 0: never."""
    questions = asked(2000)
    weighed = weigh(questions, Curriculum(weights={"Labs": 2.5, "Vitals": 0}), 1)
    times = weighed["question_id"].value_counts()["count"]
    assert set(weighed["section"]) == {"Labs"} and set(times) == {2, 3} and times.len() == 1000
    # 1,000 draws with a half: 4.5 standard errors are 0.071.
    assert abs((times == 3).mean() - 0.5) < 0.071
    assert weighed["question_id"].is_sorted(), "copies stand together, in the order of the questions"


def test_half_a_weight_asks_the_same_half_whoever_else_is_asked() -> None:
    questions = asked(400)
    half = Curriculum(weights={"Labs": 0.5})
    kept = set(weigh(questions, half, 1)["question_id"])
    assert set(weigh(questions[:100], half, 1)["question_id"]) == kept & set(questions["question_id"][:100])
    assert kept != set(weigh(questions, half, 2)["question_id"])


def test_without_weights_no_byte_changes(clinic: Registry) -> None:
    plain = site_questions(clinic, study()).train
    assert plain.equals(site_questions(clinic, parse_study(VALUES, "test")).train)
    ones = {"Labs": 1, "Vitals": 1.0, "Infection": 1, "Demographics": 1}
    assert site_questions(clinic, study(weights=ones)).train.equals(plain)


def test_weights_shape_training_alone(clinic: Registry) -> None:
    plain, weighed = (site_questions(clinic, study(weights=w)) for w in ({}, {"Labs": 3, "Vitals": 0}))
    assert weighed.validation.equals(plain.validation) and weighed.test.equals(plain.test)
    counts, before = (dict(q.train["section"].value_counts().iter_rows()) for q in (weighed, plain))
    assert counts == {s: n * {"Labs": 3}.get(s, 1) for s, n in before.items() if s != "Vitals"}


@pytest.mark.parametrize(
    ("drop", "left"),
    [(["always_right"], {"half", "never"}), (["never_right"], {"half", "always"}),
     (["always_right", "never_right"], {"half"})],
)  # fmt: skip
def test_dropping_by_pass_rate(drop: list[str], left: set[str]) -> None:
    names = ["half", "always", "never"]
    questions = pl.DataFrame({"question_id": names * 16})
    rates = pl.DataFrame({"question_id": names, "pass_rate": [0.5, 1.0, 0.0]})
    kept = worth_asking(questions, rates, study(drop=drop))
    assert set(kept["question_id"]) == left and kept.height == 16 * len(left)


def test_too_few_left_are_refused() -> None:
    rates = pl.DataFrame({"question_id": [f"q{i:04d}" for i in range(40)], "pass_rate": [1.0] * 25 + [0.5] * 15})
    with pytest.raises(UserError, match="leaves 15 of 40 training questions, fewer than grpo.prompts_per_step = 16"):
        worth_asking(asked(40), rates, study(drop=["always_right"]))


def test_only_dropping_depends_on_patients() -> None:
    assert study(drop=["never_right"]).curriculum.data_dependent
    assert not study(weights={"Labs": 2}).curriculum.data_dependent


@pytest.mark.parametrize("wrong", [{"drop": ["sometimes"]}, {"weights": {"Labs": -1}}, {"completions": 1}])
def test_what_cannot_work_is_refused_when_read(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="curriculum"):
        study(**wrong)
