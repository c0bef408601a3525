import json

import numpy as np
import polars as pl
import pytest

from common.study import Study
from server.report.result import summarise

STUDY = Study.model_validate(
    {
        "name": "small",
        "sites": {"train": ["north", "south"], "public": ["atlas"]},
        "evaluation": {"bootstrap": 200},
    }
)
FEATURES = {"age": ("who", "number"), "sex": ("who", "category"), "focus": ("infection", "category")}


def answers(rate: float, seed: int, patients: int = 60, noise: int = 0) -> pl.DataFrame:
    """Every patient is asked every feature; `rate` of the answers are right, the same draw for every rate."""
    rng = np.random.default_rng([seed, noise])
    rows = []
    for p in range(patients):
        for feature, (section, kind) in FEATURES.items():
            key, luck = int(rng.integers(4)), rng.random()
            said = key if luck < rate else (key + 1) % 4
            rows.append(
                (f"q{p}-{feature}", ["north", "south"][p % 2], f"p{p}", feature, section, kind, key, said, said)
            )
    schema = ["question_id", "site", "patient", "feature", "section", "kind", "answer", "boxed", "likely"]
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(task=pl.lit("masked_value"))


def made(seeds: tuple[int, ...] = (1, 2, 3)) -> dict:
    rates = {"base": 0.4, "federated": 0.7, "most_frequent": 0.5, "gradient_boosting": 0.9}
    return {
        (arm, seed, split): answers(rate, seed)
        for arm, rate in rates.items()
        for seed in seeds
        for split in ("held_out", "unseen_sites")
    }


def test_figures_of_an_arm_are_the_mean_of_its_seeds():
    result = summarise(made(), STUDY, complete=True, seconds={"learning": 2.0}, bytes_sent={"north": 10})
    arm = result["arms"]["federated"]["held_out"]
    shares = [
        (f["boxed"] == f["answer"]).mean() for (a, _, s), f in made().items() if (a, s) == ("federated", "held_out")
    ]
    assert arm["accuracy"] == pytest.approx(np.mean(shares))
    assert [s["accuracy"] for s in arm["per_seed"]] == pytest.approx(shares)
    assert [s["seed"] for s in arm["per_seed"]] == result["seeds"] == [1, 2, 3]
    assert arm["ci95"][0] < arm["accuracy"] < arm["ci95"][1]
    assert (arm["n_patients"], arm["n_questions"], arm["boxed_rate"]) == (60, 180, 1.0)
    assert arm["by_feature"]["sex"]["kind"] == "category"
    assert arm["macro"] == pytest.approx(np.mean([f["accuracy"] for f in arm["by_feature"].values()]))
    # The mean of three runs is surer than one.
    width = np.diff(arm["ci95"])[0]
    assert all(width < np.diff(seed["ci95"])[0] for seed in arm["per_seed"])
    assert result["hash"] == STUDY.hash
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert summarise(made(), STUDY, complete=True, seconds={"learning": 2.0}, bytes_sent={"north": 10}) == result


def test_comparisons_and_the_gap():
    frames = made()
    result = summarise(frames, STUDY, complete=True)
    found = result["comparisons"]["federated-base"]["held_out"]
    arms = result["arms"]
    difference = arms["federated"]["held_out"]["accuracy"] - arms["base"]["held_out"]["accuracy"]
    assert found["difference"] == pytest.approx(difference)
    assert found["ci95"][0] > 0
    assert found["p"] == pytest.approx(1 / 201)
    assert np.mean([s["difference"] for s in found["per_seed"]]) == pytest.approx(difference)

    def categorical(arm: str) -> float:
        by = arms[arm]["held_out"]["by_feature"]
        return float(np.mean([g["accuracy"] for g in by.values() if g["kind"] == "category"]))

    low, high = categorical("most_frequent"), categorical("gradient_boosting")
    closed = (categorical("federated") - low) / (high - low)
    assert result["gap_closed"]["federated"]["held_out"] == pytest.approx(closed)
    assert result["gap_closed"]["gradient_boosting"]["held_out"] == pytest.approx(1.0)
    assert result["gap_closed"]["most_frequent"]["held_out"] == pytest.approx(0.0)
    bounds = result["gap_closed_ci95"]["federated"]["held_out"]
    assert bounds[0] < closed < bounds[1]


def test_local_counts_the_mean_of_its_models():
    right = answers(1.0, 1).with_columns(model=pl.lit("north"))
    wrong = answers(0.0, 1).with_columns(model=pl.lit("south"))
    frames = {("local", 1, "held_out"): pl.concat([right, wrong]), ("base", 1, "held_out"): answers(0.4, 1)}
    result = summarise(frames, STUDY, complete=False)
    assert result["arms"]["local"]["held_out"]["accuracy"] == 0.5
    assert result["arms"]["local"]["held_out"]["n_questions"] == 180
    assert "local-base" in result["comparisons"]
    assert not result["complete"]


def test_a_run_that_goes_on_compares_the_seeds_that_are_there():
    frames = {k: f for k, f in made().items() if not (k[0] == "federated" and k[1] == 3)}
    result = summarise(frames, STUDY, complete=False)
    assert result["comparisons"]["federated-base"]["held_out"]["seeds"] == [1, 2]
    assert len(result["arms"]["base"]["held_out"]["per_seed"]) == 3
    assert summarise({}, STUDY, complete=False)["arms"] == {}


def test_unranked_letters_and_no_distance_to_close():
    frames = {("base", 1, "held_out"): answers(0.4, 1).with_columns(likely=pl.lit(None, dtype=pl.Int64))}
    frames |= {(arm, 1, "held_out"): answers(0.5, 1) for arm in ("most_frequent", "gradient_boosting")}
    result = summarise(frames, STUDY, complete=True)
    assert result["arms"]["base"]["held_out"]["likely_accuracy"] is None
    assert result["gap_closed"] == {}


def test_arms_that_answered_other_questions_are_not_compared():
    frames = {("base", 1, "held_out"): answers(0.4, 1), ("federated", 1, "held_out"): answers(0.4, 1, patients=59)}
    with pytest.raises(ValueError, match="different questions"):
        summarise(frames, STUDY, complete=True)
