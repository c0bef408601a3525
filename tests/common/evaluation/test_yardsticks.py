"""A made-up registry with known relations: organism follows focus, creatinine follows urine, coin follows nothing."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from common.evaluation.outcomes import discrimination
from common.evaluation.scoring import score
from common.evaluation.yardsticks import TrainingRecords, gradient_boosting, most_frequent, random_letter
from common.questions.building import build_questions
from common.questions.codebook import Codebook, fit_codebook
from common.registry.config import Feature, Outcome
from common.registry.registry import Registry
from common.registry.splits import split_patients
from common.study import Questions
from common.tasks.asking import build_tasks

SPEC = Questions(mi_threshold=5.0)
FEATURES = (
    Feature(column="focus", name="Focus", section="infection", kind="category"),
    Feature(column="organism", name="Organism", section="infection", kind="category"),
    Feature(column="urine", name="Urine output", section="kidney", kind="number"),
    Feature(column="creatinine", name="Creatinine", section="kidney", kind="number"),
    Feature(column="score", name="Score", section="kidney", kind="number"),
    Feature(column="coin", name="Coin", section="other", kind="category"),
    Feature(column="death", name="Death", section="outcome", kind="category", known="outcome"),
)


def registry(site: str, seed: int, patients: int = 500) -> Registry:
    rng = np.random.default_rng(seed)
    focus = rng.choice(["lung", "urine", "abdomen"], patients, p=[0.45, 0.3, 0.25])
    usual = {"lung": "pneumococcus", "urine": "E. coli", "abdomen": "enterococcus"}
    organism = [usual[f] if rng.random() < 0.9 else rng.choice(list(usual.values())) for f in focus]
    urine = rng.uniform(0, 3000, patients).round()
    creatinine = 6 - urine / 600 + rng.normal(0, 0.1, patients)
    frame = pl.DataFrame({
        "patient": [f"{site}-{i:04d}" for i in range(patients)],
        "focus": focus, "organism": organism, "urine": urine, "creatinine": creatinine.round(2),
        "score": np.floor(urine / 600), "coin": rng.choice(["heads", "tails"], patients, p=[0.6, 0.4]),
        "death": np.where(creatinine > 4, "yes", "no"),
    })  # fmt: skip
    missing = pl.Series(rng.random(patients) < 0.1)
    frame = frame.with_columns(pl.when(missing).then(None).otherwise("urine").alias("urine"))
    return Registry(site, FEATURES, frame)


class Case:
    def __init__(self, spec: Questions = SPEC) -> None:
        sites = [registry("north", 1), registry("south", 2), registry("new", 3, patients=200)]
        split = {r.site: split_patients(r.frame["patient"], 7, 0.3) for r in sites}
        self.books: dict[str, Codebook] = {}
        for r in sites:
            rows = r.frame.filter(pl.col("patient").is_in(split[r.site]["train"]))
            self.books[r.site] = fit_codebook(rows, r.features, spec, 1)
        self.sites = sites
        self.training = {site: split[site]["train"] for site in ("north", "south")}
        self.records = TrainingRecords(sites, self.training, self.books)
        self.questions = pl.concat(
            build_questions(r, split[r.site]["test"], self.books[r.site], spec, 1, None) for r in sites
        )


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_random_letter_is_exactly_one_over_the_choices(case: Case):
    expected = case.questions.select((1 / pl.col("choices").list.len()).mean()).item()
    assert score(random_letter(case.questions)).accuracy == pytest.approx(expected, abs=1e-12)
    assert score(random_letter(case.questions)).n_questions == case.questions.height


def test_most_frequent_says_the_commonest_of_the_offered_choices(case: Case):
    answered = most_frequent(case.questions, case.records)
    coins = answered.filter(pl.col("feature") == "coin")
    said = {choices[i] for choices, i in coins.select("choices", "boxed").iter_rows()}
    assert said == {"heads"}
    truth = pl.concat(r.frame for r in case.sites).filter(pl.col("patient").is_in(coins["patient"].to_list()))
    assert score(coins).accuracy == pytest.approx((truth["coin"] == "heads").mean())
    # A uniform number has no most frequent value: near to chance, among five choices.
    assert score(answered.filter(pl.col("feature") == "urine")).accuracy < 0.55


def test_boosting_finds_the_relations_and_base_rates_do_not(case: Case):
    base = score(most_frequent(case.questions, case.records)).by_feature
    found = score(gradient_boosting(case.questions, case.records)).by_feature
    for feature in ("organism", "focus"):
        assert base[feature].accuracy < 0.6
        assert found[feature].accuracy > 0.85
    for feature in ("creatinine", "urine"):
        assert found[feature].accuracy > base[feature].accuracy + 0.2
    # `score` is a number with five values: asked and predicted as a category.
    assert case.books["north"].columns["score"].kind == "category"
    assert found["score"].accuracy > 0.75
    assert found["coin"].accuracy < 0.65
    assert found["death"].accuracy > 0.95


def test_boosting_is_deterministic_and_ignores_row_order(case: Case):
    first = gradient_boosting(case.questions, case.records)
    assert first.equals(gradient_boosting(case.questions, case.records))
    backwards = gradient_boosting(case.questions.reverse(), case.records)
    assert backwards.reverse().equals(first)


def test_what_the_prompt_leaves_out_is_not_used():
    """With a strict filter the prompt about the organism hides the focus; then nobody can know the organism."""
    strict = Case(Questions(mi_threshold=0.4))
    assert all("focus" in book.excluded["organism"] for book in strict.books.values())
    organisms = strict.questions.filter(pl.col("feature") == "organism")
    found = score(gradient_boosting(organisms, strict.records))
    base = score(most_frequent(organisms, strict.records))
    assert found.accuracy < base.accuracy + 0.1
    # A hidden column changes nothing, whatever stands in it.
    changed = [Registry(r.site, r.features, r.frame.with_columns(pl.col("focus").shuffle(5))) for r in strict.sites]
    again = gradient_boosting(organisms, TrainingRecords(changed, strict.training, strict.books))
    assert again.equals(gradient_boosting(organisms, strict.records))


def test_baseline_questions_do_not_see_outcomes(case: Case):
    asked = case.questions.filter(pl.col("feature") == "creatinine")
    changed = [Registry(r.site, r.features, r.frame.with_columns(pl.col("death").shuffle(5))) for r in case.sites]
    records = TrainingRecords(changed, case.training, case.books)
    assert gradient_boosting(asked, records).equals(gradient_boosting(asked, case.records))


def test_test_patients_and_unseen_sites_teach_nothing(case: Case):
    learned = {p for patients in case.training.values() for p in patients}
    asked = set(case.questions["patient"])
    assert set(case.records.training["patient"]) == learned
    assert not learned & asked
    assert set(case.records.training["site"]) == {"north", "south"}


def test_each_of_a_patients_records_is_its_own() -> None:
    """Two stays of every patient, told apart by `record`: urine of the one does not tell creatinine of the other."""
    sites = []
    for seed in (1, 2):
        first, second = registry("north", seed), registry("north", seed + 10)
        frame = pl.concat([first.frame, second.frame]).sort("patient", maintain_order=True)
        sites.append(Registry(f"site-{seed}", FEATURES, frame))
    split = {r.site: split_patients(r.frame["patient"], 7, 0.3) for r in sites}
    books = {}
    for r in sites:
        rows = r.frame.filter(pl.col("patient").is_in(split[r.site]["train"]))
        books[r.site] = fit_codebook(rows, r.features, SPEC, 1)
    records = TrainingRecords(sites, {site: s["train"] for site, s in split.items()}, books)
    asked = pl.concat(build_questions(r, split[r.site]["test"], books[r.site], SPEC, 1, None) for r in sites)
    organisms = asked.filter(pl.col("feature") == "organism")
    assert set(organisms["record"]) == {0, 1}
    assert score(gradient_boosting(organisms, records)).accuracy > 0.85


def test_an_outcome_is_learned_with_its_values_merged_and_likelihoods() -> None:
    """Creatinine decides death: boosting tells it, base rates do not, and both say how likely each answer is."""
    outcome = Outcome(column="death", question="Will the patient die?", values={"yes": "dead", "no": "alive"})
    spec = Questions(tasks=("outcome",))
    sites = [replace(registry(name, seed), outcomes=(outcome,)) for name, seed in (("north", 1), ("south", 2))]
    training = {r.site: split_patients(r.frame["patient"], 7, 0.3)["train"] for r in sites}
    books = {r.site: fit_codebook(r.frame, r.features, spec, 1) for r in sites}
    records = TrainingRecords(sites, training, books)
    asked = pl.concat(
        build_tasks(r, set(r.frame["patient"]) - set(training[r.site]), books[r.site], spec, 1, None).questions
        for r in sites
    )
    boosted, base = gradient_boosting(asked, records), most_frequent(asked, records)
    assert set(asked["reference"]) == {"dead", "alive"}
    assert score(boosted).accuracy > 0.95
    found, chance = (discrimination([frame], 100, 1) for frame in (boosted, base))
    assert found.auroc is not None and found.auroc.low > 0.97
    assert chance.auroc is not None and chance.auroc.value == pytest.approx(0.5)
    for frame in (boosted, base, random_letter(asked)):
        assert (frame["likelihoods"].list.sum() - 1).abs().max() < 1e-9
