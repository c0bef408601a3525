"""What the models are measured against: chance, base rates, and gradient boosting on the same masked columns.

Each yardstick answers the test questions in the shape of an answered frame, so that it is scored exactly like a
model. Yardsticks learn from the training patients of the training sites together, as the centralized arm does.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from common.questions.building import MASKED_VALUE, RECORD
from common.questions.codebook import Codebook
from common.questions.rendering import known_at, shown_with
from common.registry.config import Feature, Outcome
from common.registry.registry import Registry, widen

Floats = NDArray[np.float64]
Suitability = Callable[[Sequence[str]], Floats]
"""Choices of one question -> how well each suits; the highest is the answer, the first of equals."""

MOST_LEVELS = 254
"""scikit-learn's histograms hold 255 bins, one of them for what is missing; rarer levels count as missing."""
MOST_CATEGORIES = 50
"""A number is predicted as one of its values up to this many; several sites may have more than one site's 20."""
BOOSTING = {
    "max_iter": 100,
    "learning_rate": 0.1,
    "max_leaf_nodes": 15,
    # Without it a rare class among separable ones makes the trees diverge: stroke type on IST fell from 1.00 to 0.47.
    "l2_regularization": 1.0,
    "early_stopping": False,
    "random_state": 0,
}


Likelihoods = Sequence[Sequence[float] | None]
"""Of each question: how likely each choice is, or None."""


def answered(questions: pl.DataFrame, choice: Sequence[int], likelihoods: Likelihoods) -> pl.DataFrame:
    """The question frame with these choices as answers, by the box and by likelihood alike."""
    column = pl.Series("boxed", choice, dtype=pl.Int64)
    ranked = pl.Series("likelihoods", likelihoods, dtype=pl.List(pl.Float64))
    return questions.with_columns(pl.lit("").alias("completion"), column, column.alias("likely"), ranked)


def random_letter(questions: pl.DataFrame) -> pl.DataFrame:
    """A guess among the offered choices, in expectation and without drawing: model k always says choice k, and a
    question's credit is the mean over its models, 1 / choices."""
    guesses = questions.with_columns(model=pl.int_ranges(pl.col("choices").list.len())).explode("model")
    even = [[1 / n] * n for n in guesses["choices"].list.len()]
    said = answered(guesses, guesses["model"].to_list(), even)
    return said.with_columns(pl.format("always {}", "model").alias("model"))


class TrainingRecords:
    """Records of all sites, which of them may be learned from, and what the prompts about them show.

    Args:
        registries: every site of the test questions and every training site.
        training: training site -> its training patients.
        codebooks: site -> the codebook that its prompts are written with, for every site in `registries`.
    """

    def __init__(
        self,
        registries: Sequence[Registry],
        training: Mapping[str, Sequence[str]],
        codebooks: Mapping[str, Codebook],
    ) -> None:
        features: dict[str, Feature] = {}
        for registry in registries:
            features |= {f.column: f for f in registry.features if f.column not in features}
        self.features = features
        self.times = registries[0].times
        self.outcomes = {o.column: o for registry in registries for o in registry.outcomes}
        self.codebooks = codebooks
        self.frame = pl.concat(
            [
                widen(r.frame, list(features.values())).with_columns(site=pl.lit(r.site), record=RECORD)
                for r in registries
            ]
        )
        pairs = [(site, patient) for site, patients in training.items() for patient in patients]
        known = pl.DataFrame(pairs, schema={"site": pl.String, "patient": pl.String}, orient="row")
        self.training = self.frame.join(known, on=["site", "patient"], how="semi", maintain_order="left")

    def records_of(self, asked: pl.DataFrame) -> pl.DataFrame:
        """The records that questions are about, row by row."""
        key = ["site", "patient", "record"]
        return asked.select(key).join(self.frame, on=key, how="left", maintain_order="left")

    def decimals(self, feature: Feature) -> int:
        """The most decimals with which any site prints a number."""
        columns = [book.of(feature) for book in self.codebooks.values() if feature.quantity in book.columns]
        return max((column.decimals for column in columns), default=0)


def answer_by(
    questions: pl.DataFrame, records: TrainingRecords, suit: Callable[["Target", pl.DataFrame], list[Suitability]]
) -> pl.DataFrame:
    """Answer feature by feature: `suit` gets the target and its questions, and a judge of choices for each."""
    answers = np.zeros(questions.height, dtype=np.int64)
    likelihoods: list[list[float] | None] = [None] * questions.height
    grouped = questions.with_row_index("place").group_by("task", "feature", "kind", maintain_order=True)
    for (task, column, kind), asked in grouped:
        outcome = None if task == MASKED_VALUE else records.outcomes[str(column)]
        target = Target(records, records.features[str(column)], str(kind), outcome)
        judges = suit(target, asked)
        for place, choices, judge in zip(asked["place"], asked["choices"].to_list(), judges, strict=True):
            suitable = judge(choices)
            answers[place] = int(np.argmax(suitable))
            likelihoods[place] = None if target.is_number else shares(suitable)
    return answered(questions, answers.tolist(), likelihoods)


def shares(weights: Floats) -> list[float]:
    """Weights as shares of their sum; even ones where nobody in training had any of the choices."""
    total = float(weights.sum())
    return (weights / total if total else np.full(len(weights), 1 / len(weights))).tolist()


class Target:
    """What is asked for, and what training patients show in it: a masked feature, or a declared outcome.

    A number with few distinct values is asked like a category; if the sites together have too many for that, it is
    predicted as a number.
    """

    def __init__(self, records: TrainingRecords, feature: Feature, asked_as: str, outcome: Outcome | None) -> None:
        self.feature, self.outcome = feature, outcome
        self.rows = records.training.filter(pl.col(feature.column).is_not_null())
        values = self.rows[feature.column]
        if feature.kind == "number":
            values = values.round(records.decimals(feature))
        self.values = values
        self.answers = {self.plain(v): a for v, a in outcome.values.items()} if outcome else {}
        many = not self.answers and values.n_unique() > MOST_CATEGORIES
        self.is_number = feature.kind == "number" and (asked_as == "number" or many)

    def plain(self, value: str) -> str:
        """The name of a class: numbers by value, however many decimals they are printed with."""
        return str(float(value)) if self.feature.kind == "number" else value

    def labels(self) -> list[str]:
        names = [self.plain(str(value)) for value in self.values]
        return [self.answers.get(name, name) for name in names]

    def label(self, choice: str) -> str:
        return choice if choice in self.answers.values() else self.plain(choice)

    def most_frequent(self) -> Suitability:
        return densest(self.values) if self.is_number else self.by_label(Counter(self.labels()))

    def by_label(self, weights: Mapping[str, float]) -> Suitability:
        return lambda choices: np.array([weights.get(self.label(c), 0.0) for c in choices], dtype=np.float64)


def as_numbers(choices: Sequence[str]) -> Floats:
    return np.array([float(choice) for choice in choices])


def densest(column: pl.Series) -> Suitability:
    """For numbers: how many training values lie within half the smallest step between the choices; of equals, the
    one nearer to the median."""
    observed = np.sort(column.to_numpy())
    median = float(np.median(observed)) if len(observed) else 0.0

    def suitability(choices: Sequence[str]) -> Floats:
        values = as_numbers(choices)
        steps = np.diff(np.unique(values))
        half = steps.min() / 2 if len(steps) else 0.0
        near = np.searchsorted(observed, values + half, "right") - np.searchsorted(observed, values - half, "left")
        away = np.abs(values - median)
        return near - away / (1.0 + away.max())

    return suitability


def nearest(value: float) -> Suitability:
    return lambda choices: -np.abs(as_numbers(choices) - value)


def most_frequent(questions: pl.DataFrame, records: TrainingRecords) -> pl.DataFrame:
    """The offered choice that is the most frequent among training patients, whatever the record says."""
    return answer_by(questions, records, lambda target, asked: [target.most_frequent()] * asked.height)


def gradient_boosting(questions: pl.DataFrame, records: TrainingRecords) -> pl.DataFrame:
    """Histogram gradient boosting on the columns that the prompts show: one classifier or regressor per masked
    feature or outcome; of the offered choices the likeliest category, or the number nearest to the prediction.
    Deterministic.
    """
    return answer_by(questions, records, lambda target, asked: boosted(target, records, records.records_of(asked)))


def boosted(target: Target, records: TrainingRecords, rows: pl.DataFrame) -> list[Suitability]:
    """Learn `target` from the training patients and judge the choices of these records, row by row.

    A feature that a site's codebook leaves out of the prompt (or that the site does not have) is missing in that
    site's rows, in training as in testing. Free text, which trees cannot read, is left out.
    """
    hidden = {site: hidden_columns(records, target, book) for site, book in records.codebooks.items()}
    nowhere = set.intersection(*hidden.values())
    shown = [f for f in records.features.values() if f.kind != "text" and f.column not in nowhere]
    training = as_shown(target.rows, shown, hidden)
    shown = [f for f in shown if training[f.column].n_unique() > 1]
    if not shown or target.values.n_unique() < 2:
        return [target.most_frequent()] * rows.height
    levels = {f.column: commonest(training[f.column]) for f in shown if f.kind == "category"}
    settings: dict[str, Any] = {"categorical_features": [f.kind == "category" for f in shown], **BOOSTING}
    known, asked = (matrix(frame, shown, levels) for frame in (training, as_shown(rows, shown, hidden)))
    if target.is_number:
        regressor = HistGradientBoostingRegressor(**settings).fit(known, target.values.to_numpy())
        return [nearest(value) for value in regressor.predict(asked)]
    classifier = HistGradientBoostingClassifier(**settings).fit(known, target.labels())
    names = [str(name) for name in classifier.classes_]
    return [target.by_label(dict(zip(names, row, strict=True))) for row in classifier.predict_proba(asked)]


def hidden_columns(records: TrainingRecords, target: Target, codebook: Codebook) -> set[str]:
    """What a prompt about `target` does not show; a masked value itself is not shown either."""
    features = list(records.features.values())
    if target.outcome is None:
        shown = shown_with(target.feature, features, records.times, codebook)
    else:
        shown = known_at(target.outcome.at, features, records.times)
    return {f.column for f in features} - {f.column for f in shown} | {target.feature.column}


def as_shown(rows: pl.DataFrame, features: Sequence[Feature], hidden: Mapping[str, set[str]]) -> pl.DataFrame:
    """Rows as their prompts show them: what a site leaves out is null."""
    return rows.with_columns(
        pl.when(pl.col("site").is_in([site for site, columns in hidden.items() if f.column in columns]))
        .then(None)
        .otherwise(pl.col(f.column))
        .alias(f.column)
        for f in features
    )


def commonest(column: pl.Series) -> list[str]:
    """Categories, the most frequent first, so that codes do not depend on the order of rows."""
    counts = column.drop_nulls().value_counts().sort("count", column.name, descending=[True, False])
    return counts[column.name].head(MOST_LEVELS).to_list()


def matrix(rows: pl.DataFrame, features: Sequence[Feature], levels: Mapping[str, list[str]]) -> Floats:
    """Records as `[rows, features]`: numbers as they are, dates in minutes, categories as codes, missing NaN."""
    columns = []
    for feature in features:
        column = rows[feature.column]
        if feature.kind == "category":
            codes = {level: code for code, level in enumerate(levels[feature.column])}
            column = column.replace_strict(codes, default=None, return_dtype=pl.Float64)
        elif feature.kind == "date":
            column = column.dt.epoch("s") / 60
        columns.append(column.cast(pl.Float64).fill_null(float("nan")).to_numpy())
    return np.column_stack(columns)
