import pytest

from server.report.words import disjoint, duration, gate_sentence, headline, p_value, points, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0312, "+3.1"), (-0.0312, "−3.1"), (0.0, "+0.0")],
)
def test_points_carry_their_sign(value: float, text: str):
    assert points(value) == text


@pytest.mark.parametrize(("n", "text"), [(12, "12 B"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (7.2e12, "7200.0 GB")])
def test_sizes(n: float, text: str):
    assert size(n) == text


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_smallest_p_is_a_bound():
    assert p_value(1 / 1001, 1000) == "≤ 0.001"
    assert p_value(2 / 1001, 1000) == "0.002"
    assert p_value(0.2, 1000) == "0.200"


def result(difference: float, ci95: list[float], federated: list[float], base: list[float]) -> dict:
    arms = {
        name: {"held_out": {"accuracy": sum(ci) / 2, "ci95": ci, "n_questions": 1200, "n_patients": 80}}
        for name, ci in (("federated", federated), ("base", base))
    }
    return {"arms": arms, "comparisons": {"federated-base": {"held_out": {"difference": difference, "ci95": ci95}}}}


def test_the_headline_says_what_the_interval_allows():
    ((better, detail),) = headline(result(0.2, [0.15, 0.25], [0.65, 0.75], [0.45, 0.55]))
    assert "20.0 points better" in better
    assert "70.0 % against 50.0 %" in better
    assert "do not overlap" in detail
    assert "1,200 questions about 80 patients" in detail
    ((worse, detail),) = headline(result(-0.04, [-0.07, -0.01], [0.45, 0.55], [0.49, 0.59]))
    assert "4.0 points worse" in worse
    assert "intervals overlap" in detail
    ((unclear, _),) = headline(result(0.01, [-0.02, 0.04], [0.45, 0.55], [0.44, 0.54]))
    assert "cannot be told from" in unclear
    assert "better" not in unclear
    assert headline({}) == []


def test_touching_intervals_are_not_disjoint():
    assert not disjoint({"ci95": [0.1, 0.2]}, {"ci95": [0.2, 0.3]})
    assert disjoint({"ci95": [0.1, 0.2]}, {"ci95": [0.21, 0.3]})


def test_what_the_gate_did_is_a_sentence() -> None:
    rounds = [
        {"seed": 1, "round": n, "gate": {"taken": n != 2, "accuracy": 0.45, "tried": 0.4 if n == 2 else 0.45}}
        for n in (1, 2, 3)
    ]
    assert gate_sentence([]) is None
    assert gate_sentence(rounds[::2]) == "The gate on the public cohort refused none of 2 outer steps."
    assert gate_sentence(rounds) == (
        "The gate on the public cohort refused 1 of 3 outer steps: round 2 of seed 1 (40.0 % right after 45.0 %)."
    )
