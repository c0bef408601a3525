"""How well can the answer be told WITHOUT the record? A classifier sees how the choices look and nothing else.

What it sees of a choice: its letter, how many choices there are, whether it is a number, how many of the choices are
printed like it; and of a number in a numeric question its rank, decimals, closing zeros and fives, and sign. Of words
it sees no more: length or rank would name the word, and how frequent a word is in its column is knowledge about
patients, not a leak. Nor does it see the feature, for the same reason.

Length is told apart from these looks: with a fixed number of decimals it is the size of the number, and a ladder
around an age of 85 has rungs that nobody's age is. That is knowledge too, but it is told without the record, so a
second accuracy says how far it goes.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from common.errors import UserError
from common.questions.building import build_questions
from common.questions.codebook import fit_codebook
from common.questions.paper_codebook import as_numbers
from common.questions.randomness import derive_seed, hash_keys
from common.questions.site_questions import choose, rows_to_fit
from common.registry.registry import Registry
from common.registry.splits import split_patients
from common.study import Questions

FEWEST_PATIENTS = 50
MOST_PATIENTS = 1500
RESAMPLES = 2000
UNSEEN = -1.0
"""In place of a look that is not shown; none that is shown is negative."""
LOOKS = ("letter", "choices", "number", "alike", "rank", "decimals", "zeros", "negative", "length")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """Share of questions whose answer a classifier tells, and its 95 % interval, patients resampled."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Leak:
    """What is told of the questions about half of the patients, by a classifier trained on the other half.

    `chance`: mean of 1 / number of choices; `by_looks`: told by all looks but length; `with_length`: by length too.
    """

    fidelity: str
    kind: str
    questions: int
    patients: int
    chance: float
    by_looks: Told
    with_length: Told

    @property
    def found(self) -> bool:
        """Whether the looks tell more than chance does."""
        return self.by_looks.low > self.chance


def leak_table(registry: Registry, spec: Questions, seed: int) -> list[Leak]:
    """Both fidelities on the same patients, at most 1,500 of them: a row for each kind that is asked.

    Raises:
        UserError: too few patients to tell.
    """
    everyone = sorted(set(registry.frame["patient"]))
    training = split_patients(everyone, derive_seed(seed, "split"), spec.test_fraction)["train"]
    asked = choose(everyone, MOST_PATIENTS, derive_seed(seed, "leaks"))
    rows = []
    for fidelity in ("strict", "paper"):
        built = Questions.model_validate({**spec.model_dump(), "fidelity": fidelity})
        frame = rows_to_fit(registry.frame, training, built)
        codebook = fit_codebook(frame, registry.features, built, derive_seed(seed, "codebook"))
        questions = build_questions(registry, asked, codebook, built, derive_seed(seed, "questions"), None)
        for kind in sorted(set(questions["kind"])):
            rows.append(told_by_looks(questions.filter(pl.col("kind") == kind), fidelity, kind, seed))
    return rows


def told_by_looks(questions: pl.DataFrame, fidelity: str, kind: str, seed: int) -> Leak:
    """The leak in a question frame.

    One split by patients and not cross-validation: folds are judged by classifiers that share most of their patients,
    so their mean varies more than an interval over patients says.

    Raises:
        UserError: fewer than 50 patients.
    """
    patients = questions["patient"].n_unique()
    if patients < FEWEST_PATIENTS:
        raise UserError(
            f"Fewer than {FEWEST_PATIENTS} patients have {kind} questions: too few to look for leaks.",
            "Look for leaks at a site with more patients.",
        )
    x = looks(questions)
    held_out = hash_keys(seed, "held out", questions["patient"]) % np.uint64(2) == 0
    judged = questions.filter(held_out)
    return Leak(
        fidelity=fidelity,
        kind=kind,
        questions=judged.height,
        patients=judged["patient"].n_unique(),
        chance=float((1 / judged["choices"].list.len()).to_numpy().mean()),
        by_looks=told(judged, guesses(questions, x[:, : LOOKS.index("length")], held_out), seed),
        with_length=told(judged, guesses(questions, x, held_out), seed),
    )


def told(questions: pl.DataFrame, guessed: NDArray[np.int64], seed: int) -> Told:
    """How many guesses are right. The interval is that of the excess over chance, at the mean chance."""
    right = guessed == questions["answer"].to_numpy()
    chance = 1 / questions["choices"].list.len().to_numpy()
    patients, patient = np.unique(questions["patient"].to_numpy(), return_inverse=True)
    members = np.bincount(patient).astype(float)
    excess = np.bincount(patient, weights=right - chance)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    weights = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=RESAMPLES)
    low, high = np.quantile((weights @ excess) / (weights @ members), [0.025, 0.975]) + chance.mean()
    return Told(float(right.mean()), float(low), float(high))


def guesses(questions: pl.DataFrame, x: Floats, held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The likeliest choice of each held-out question, told by a classifier trained on the others; (held out,).

    Args:
        x: looks of the choices of all questions, in order; held_out: of questions, shape (n,).
    """
    sizes = questions["choices"].list.len().to_numpy().astype(np.int64)
    question = np.repeat(np.arange(len(sizes)), sizes)
    letter = x[:, LOOKS.index("letter")].astype(np.int64)
    right = letter == questions["answer"].to_numpy()[question]
    asked = held_out[question]
    model = HistGradientBoostingClassifier(max_iter=50, random_state=0).fit(x[~asked], right[~asked])
    scores = np.full((len(sizes), int(sizes.max())), -inf)
    scores[question[asked], letter[asked]] = model.predict_proba(x[asked])[:, 1]
    return scores[held_out].argmax(axis=1)


def looks(questions: pl.DataFrame) -> Floats:
    """One row per choice in the order of questions and letters, shape (choices of all questions, `LOOKS`)."""
    choices = (
        questions.select("kind", "choices")
        .with_row_index("question")
        .explode("choices")
        .with_columns(
            letter=pl.int_range(pl.len()).over("question"),
            choices_there=pl.len().over("question"),
            value=as_numbers(questions["choices"].explode()),
            text=pl.col("choices"),
        )
    )
    number = pl.col("value").is_not_nan()
    decimals = pl.when(pl.col("text").str.contains(".", literal=True)).then(
        pl.col("text").str.len_chars() - pl.col("text").str.find(".", literal=True) - 1
    )
    seen = number & (pl.col("kind") == "number")
    shown = choices.with_columns(number=number, decimals=decimals.fill_null(0)).select(
        pl.col("letter"),
        pl.col("choices_there"),
        pl.col("number"),
        pl.when(pl.col("kind") == "number").then(pl.len().over("question", "number", "decimals")),
        pl.when(seen).then(pl.col("value").rank("ordinal").over("question", "number")).alias("rank"),
        pl.when(seen).then("decimals").alias("decimals"),
        pl.when(seen)
        .then(pl.col("text").str.len_chars() - pl.col("text").str.strip_chars_end("05").str.len_chars())
        .alias("zeros"),
        pl.when(seen).then(pl.col("text").str.starts_with("-")).alias("negative"),
        pl.when(seen).then(pl.col("text").str.len_chars()).alias("length"),
    )
    return shown.cast(pl.Float64).fill_null(UNSEEN).to_numpy()
