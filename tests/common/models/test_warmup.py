"""What the built-in model is shown before any hospital's data: answers that are right, and no relation."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2_contingency

from common.models.warmup import EVIDENCE, LETTERS, Exercise, World, exercises
from common.questions.rendering import MASK, label
from common.registry.registry import Registry
from common.study import Study

RECORDS = 1500
ANSWER = re.compile(r"Likely: (?P<value>.*)\n\\boxed\{(?P<letter>[A-E])\}")
ASKED = re.compile(
    r"\n\nQuestion: (Practice (?P<world>\d+): )?What is the (?P<masked>masked )?value of (?P<name>.*)\?\n"
)


@pytest.fixture(scope="module")
def study(builtin_study: Callable[..., Study]) -> Study:
    return builtin_study()


@pytest.fixture(scope="module")
def drill(public: Registry, study: Study) -> list[Exercise]:
    return exercises(public, study, RECORDS, seed=3)


def lines(record: str) -> dict[str, str]:
    """A record's values by the name that its lines give them."""
    return dict(line.split(": ", 1) for line in record.splitlines() if ": " in line)


def kind(question: str) -> tuple[str, str]:
    """`plain`, `practice` or `lookup`, and the name of the value that is asked for."""
    match = ASKED.match(question)
    assert match is not None
    if not match["masked"]:
        return "lookup", match["name"]
    return "practice" if match["world"] else "plain", match["name"]


def masked(exercise: Exercise) -> str:
    names = [name for name, value in lines(exercise.record).items() if value == MASK]
    assert len(names) == 1
    return names[0]


def test_every_answer_is_one_of_the_choices_with_its_letter(drill: list[Exercise]) -> None:
    for exercise in drill:
        for question, answer in exercise.questions:
            match = ANSWER.fullmatch(answer)
            assert match is not None
            assert f"\n{match['letter']}. {match['value']}\n" in question + "\n"


def test_lookups_say_what_the_record_shows(drill: list[Exercise]) -> None:
    seen = 0
    for exercise in drill:
        values, hidden = lines(exercise.record), masked(exercise)
        for question, answer in exercise.questions:
            what, name = kind(question)
            if what == "lookup":
                assert name != hidden
                # Outcomes, and values that give the masked one away, have no line here.
                assert name in values, f"{name} is asked for but not shown"
                assert answer.startswith(f"Likely: {values[name]}\n")
                seen += 1
    assert seen > 2 * RECORDS


def test_the_masked_value_stands_nowhere_in_the_record(drill: list[Exercise], study: Study) -> None:
    for exercise in drill:
        name = masked(exercise)
        assert [line for line in exercise.record.splitlines() if line.startswith(f"{name}: ")] == [f"{name}: {MASK}"]
        asked = [kind(question) for question, _ in exercise.questions]
        assert all(other == name for what, other in asked if what != "lookup")
        assert [what for what, _ in asked].count("plain") == study.model.builtin.guesses


def test_practice_names_its_world(drill: list[Exercise], study: Study) -> None:
    """And asks the plain question otherwise, so that the plain one keeps its base rates."""
    worlds: Counter[str] = Counter()
    for exercise in drill:
        plain = next(q for q, _ in exercise.questions if kind(q)[0] == "plain")
        for question, _ in exercise.questions:
            if kind(question)[0] == "practice":
                match = ASKED.match(question)
                assert match is not None
                sentence, *choices = question.replace(f"Practice {match['world']}: ", "", 1).splitlines()[2:]
                same, *offered = plain.splitlines()[2:]
                assert sentence == same
                assert sorted(c[3:] for c in choices) == sorted(c[3:] for c in offered)
                worlds[match["world"]] += 1
    assert set(worlds) == {str(k) for k in range(study.model.builtin.practice_worlds)}


def test_as_many_questions_as_the_study_says(drill: list[Exercise], study: Study) -> None:
    counts = Counter(len(exercise.questions) for exercise in drill)
    assert max(counts) == study.model.builtin.questions_per_record
    assert counts.most_common(1)[0][0] == max(counts)


def related(pairs: dict[tuple[str, str], tuple[list[str], list[str]]]) -> dict[tuple[str, str], float]:
    """p-values of independence, by pair of names."""
    out = {}
    for names, (left, right) in pairs.items():
        table = pl.DataFrame({"left": left, "right": right}).pivot("right", index="left", values="right",
                                                                    aggregate_function="len")  # fmt: skip
        counts = table.drop("left").fill_null(0).to_numpy()
        out[names] = float(chi2_contingency(counts).pvalue)
    return out


def common_values(rows: list[dict[str, str]], names: list[str]) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """Pairs of columns where both have a value, rare values left out so that the test's counts are large enough."""
    often = {
        name: {v for v, n in Counter(row[name] for row in rows if name in row).items() if n >= 0.05 * len(rows)}
        for name in names
    }
    pairs = {}
    for a, b in combinations([name for name in names if len(often[name]) > 1], 2):
        both = [(r[a], r[b]) for r in rows if r.get(a) in often[a] and r.get(b) in often[b]]
        pairs[a, b] = ([x for x, _ in both], [y for _, y in both])
    return pairs


def test_no_value_says_anything_about_another(drill: list[Exercise], public: Registry) -> None:
    names = [label(f) for f in public.features if f.kind == "category"]
    shown = []
    for exercise in drill:
        plain = next(a for q, a in exercise.questions if kind(q)[0] == "plain")
        match = ANSWER.fullmatch(plain)
        assert match is not None
        # The masked value stands in its answer.
        shown.append({**lines(exercise.record), masked(exercise): match["value"]})
    found = related(common_values(shown, names))
    assert len(found) > 30
    assert min(found.values()) > 0.001 / len(found), min(found, key=lambda pair: found[pair])
    # No more small p-values than chance gives.
    assert np.mean(np.array(list(found.values())) < 0.05) < 0.12
    # The cohort itself is full of relations, so the test above can fail.
    real = [
        {label(f): str(row[f.column]) for f in public.features if row[f.column] is not None}
        for row in public.frame.iter_rows(named=True)
    ]
    assert np.mean(np.array(list(related(common_values(real, names)).values())) < 0.001) > 0.2


def test_base_rates_are_the_cohorts(drill: list[Exercise], public: Registry) -> None:
    feature = next(f for f in public.features if f.column == "focus")
    shown = [value for e in drill if (value := lines(e.record).get(label(feature), MASK)) != MASK]
    expected = public.frame["focus"].drop_nulls().value_counts(normalize=True)
    for value, share in expected.iter_rows():
        assert abs(shown.count(value) / len(shown) - share) < 4 * np.sqrt(share * (1 - share) / len(shown))


def test_a_practice_worlds_answers_follow_from_its_evidence(public: Registry) -> None:
    world = World(public, np.random.default_rng(0))
    feature = "focus"
    assert len(world.evidence[feature]) == EVIDENCE and feature not in world.evidence[feature]
    choices = sorted(world.frequency[feature])[:5]
    rng = np.random.default_rng(1)

    def shares(record: dict[str, object]) -> np.ndarray:
        drawn = [world.answer(feature, choices, record, rng) for _ in range(500)]
        return np.bincount(drawn, minlength=len(choices)) / len(drawn)

    empty = dict.fromkeys(public.frame.columns)
    rates = np.array([world.frequency[feature][choice] for choice in choices])
    assert np.abs(shares(empty) - rates / rates.sum()).max() < 0.1, "without evidence: the base rates"
    record = {**empty, **public.frame.drop_nulls().row(0, named=True)}
    others = [c for c in public.frame.columns if c not in (*world.evidence[feature], feature)]
    assert np.abs(shares(record) - shares({**record, **dict.fromkeys(others)})).max() < 0.1
    # Its evidence moves the answer as the weights say.
    other = next(c for c in world.evidence[feature] if public.frame[c].dtype == pl.String)
    values = world.classes(public.frame[other])
    pull = {seen: np.array([world.weights[feature, c, other, seen] for c in choices]) for seen in values}
    for seen in values:
        logits = np.log(rates) + pull[seen]
        expected = np.exp(logits) / np.exp(logits).sum()
        assert np.abs(shares({**empty, other: seen}) - expected).max() < 0.1


def test_the_seed_decides_the_texts(public: Registry, study: Study, drill: list[Exercise]) -> None:
    few = exercises(public, study, 60, seed=3)
    assert few == exercises(public, study, 60, seed=3)
    assert few != exercises(public, study, 60, seed=4)
    assert len(few) == 60 and all(len(e.questions) > 1 for e in few)
    assert set(LETTERS) == {letter for e in drill for _, a in e.questions for letter in a[-2]}


def test_no_worlds_no_practice(public: Registry, builtin_study: Callable[..., Study]) -> None:
    plain = exercises(public, builtin_study(practice_worlds=0), 40, seed=3)
    assert not [q for e in plain for q, _ in e.questions if kind(q)[0] == "practice"]
