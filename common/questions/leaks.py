"""How well can the answer be told WITHOUT the record? A classifier sees the choices and nothing else.

By looks: of a choice its letter, how many choices there are, whether it is a number, how many of the choices are
printed like it; and of a number in a numeric question its rank, length, decimals, closing zeros and fives, last digit,
sign, the gaps to its neighbours and its distance from the middle, as shares of the range of the choices. Of words it
sees no more: length or rank would name the word. Nor does it see the feature.

By prior: the feature too, and what other patients have in it: how many have this value and how many have a smaller
number. That is knowledge about patients and not a leak of the construction, so it is told apart: of categories the
most frequent is the best guess whatever is done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from common.errors import UserError
from common.questions.building import build_questions
from common.questions.codebook import fit_codebook, rows_to_fit
from common.questions.paper_codebook import as_numbers
from common.questions.randomness import choose, derive_seed, hash_keys
from common.registry.registry import Registry
from common.study import Questions

FEWEST_PATIENTS = 50
MOST_PATIENTS = 1500
RESAMPLES = 2000
UNSEEN = -1.0
"""In place of a look that is not shown; none that is shown is negative."""
LOOKS = (
    *("letter", "choices", "number", "alike", "rank", "length", "decimals", "zeros", "digit", "negative"),
    *("below", "above", "middle"),
)
ROUNDS = 5
PARTS, JUDGED = 4, 2
"""Patients fall into so many parts, the first of them judged; of the others one has the frequencies of the prior, and
one teaches the classifier. By looks, all of the others teach it.
"""

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

    `chance`: mean of 1 / number of choices; `by_looks` and `by_prior`: see the head of this module.
    """

    fidelity: str
    kind: str
    questions: int
    patients: int
    chance: float
    by_looks: Told
    by_prior: Told

    @property
    def found(self) -> bool:
        """Whether the looks tell more than chance does."""
        return self.by_looks.low > self.chance


def leak_table(registry: Registry, spec: Questions, seed: int) -> list[Leak]:
    """Both fidelities on the same patients, at most 1,500 of them: a row for each kind that is asked.

    Raises:
        UserError: too few patients to tell.
    """
    asked = choose(sorted(set(registry.frame["patient"])), MOST_PATIENTS, derive_seed(seed, "leaks"))
    rows = []
    for fidelity in ("strict", "paper"):
        built = Questions.model_validate({**spec.model_dump(), "fidelity": fidelity})
        # The codebook of `paper` has all rows, so that its questions are the same in every round.
        numbers = range(ROUNDS) if fidelity == "strict" else range(1)
        rounds = [round_questions(registry, asked, built, seed, number) for number in numbers] * (
            ROUNDS // len(numbers)
        )
        for kind in sorted(set(rounds[0]["kind"])):
            rows.append(told_by_looks([q.filter(pl.col("kind") == kind) for q in rounds], fidelity, kind, seed))
    return rows


def round_questions(registry: Registry, asked: Sequence[str], spec: Questions, seed: int, number: int) -> pl.DataFrame:
    """All questions about the patients. The judged ones stay out of a strict codebook.

    A strict codebook's choices are even over all its patients together, so that what is by chance more frequent in one
    half of them is less frequent in the other: with the judged ones in it the classifier falls below chance.
    """
    taught = [p for p, part in zip(asked, parts(asked, round_seed(seed, number)), strict=True) if part >= JUDGED]
    frame = rows_to_fit(registry.frame, taught, spec)
    codebook = fit_codebook(frame, registry.features, spec, derive_seed(seed, "codebook"))
    return build_questions(registry, asked, codebook, spec, derive_seed(seed, "questions"), None)


def round_seed(seed: int, number: int) -> int:
    return derive_seed(seed, f"round {number}")


def told_by_looks(rounds: Sequence[pl.DataFrame], fidelity: str, kind: str, seed: int) -> Leak:
    """The leak in question frames, one a round; each round judges another half of the patients.

    A site's few numeric questions and one split let accuracies differ by several points from split to split. The
    interval is over patients, each with all rounds in which it was judged.

    Raises:
        UserError: fewer than 50 patients.
    """
    patients = rounds[0]["patient"].n_unique()
    if patients < FEWEST_PATIENTS:
        raise UserError(
            f"Fewer than {FEWEST_PATIENTS} patients have {kind} questions: too few to look for leaks.",
            "Look for leaks at a site with more patients.",
        )
    judged = pl.concat([judge(questions, round_seed(seed, number)) for number, questions in enumerate(rounds)])
    return Leak(
        fidelity=fidelity,
        kind=kind,
        questions=judged.height,
        patients=judged["patient"].n_unique(),
        chance=float(judged["chance"].to_numpy().mean()),
        by_looks=told(judged, "by_looks", seed),
        by_prior=told(judged, "by_prior", seed),
    )


def judge(questions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The questions about one half of the patients: `patient`, `chance`, and whether each guess is right."""
    part = parts(questions["patient"], seed)
    judged, counted = part < JUDGED, part == JUDGED
    answered = questions.filter(judged)
    seen = looks(questions)
    known = np.column_stack([seen, prior(questions, counted)])
    answers = answered["answer"].to_numpy()
    return answered.select(
        "patient",
        chance=1 / pl.col("choices").list.len(),
        by_looks=pl.Series(guesses(questions, seen, ~judged, judged) == answers),
        by_prior=pl.Series(guesses(questions, known, ~judged & ~counted, judged) == answers),
    )


def parts(patients: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """0 to `PARTS` - 1 for each patient."""
    return hash_keys(seed, "part", patients) % np.uint64(PARTS)


def told(judged: pl.DataFrame, guess: str, seed: int) -> Told:
    """How many guesses are right. The interval is that of the excess over chance, at the mean chance."""
    right, chance = judged[guess].to_numpy(), judged["chance"].to_numpy()
    patients, patient = np.unique(judged["patient"].to_numpy(), return_inverse=True)
    members = np.bincount(patient).astype(float)
    excess = np.bincount(patient, weights=right - chance)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    weights = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=RESAMPLES)
    low, high = np.quantile((weights @ excess) / (weights @ members), [0.025, 0.975]) + chance.mean()
    return Told(float(right.mean()), float(low), float(high))


def guesses(
    questions: pl.DataFrame, x: Floats, taught: NDArray[np.bool_], judged: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The likeliest choice of each judged question, told by a classifier trained on others; (judged,).

    Args:
        x: what is seen of the choices of all questions, in order; taught, judged: of questions, shape (n,).
    """
    sizes = questions["choices"].list.len().to_numpy().astype(np.int64)
    question = np.repeat(np.arange(len(sizes)), sizes)
    letter = x[:, LOOKS.index("letter")].astype(np.int64)
    right = letter == questions["answer"].to_numpy()[question]
    teaching, asked = taught[question], judged[question]
    model = HistGradientBoostingClassifier(max_iter=50, random_state=0).fit(x[teaching], right[teaching])
    scores = np.full((len(sizes), int(sizes.max())), -inf)
    scores[question[asked], letter[asked]] = model.predict_proba(x[asked])[:, 1]
    return scores[judged].argmax(axis=1)


def in_rows(questions: pl.DataFrame) -> pl.DataFrame:
    """One row per choice in the order of questions and letters: `question`, `feature`, `kind`, `text`, `value` (NaN of
    a word), `number` (whether it is one) and `letter`."""
    choices = questions.select("feature", "kind", text="choices").with_row_index("question").explode("text")
    return choices.with_columns(
        letter=pl.int_range(pl.len()).over("question"), value=as_numbers(choices["text"])
    ).with_columns(number=pl.col("value").is_not_nan())


def looks(questions: pl.DataFrame) -> Floats:
    """Shape (choices of all questions, `LOOKS`), in the order of `in_rows`."""
    text, value = pl.col("text"), pl.col("value")
    range_ = (value.max() - value.min()).over("question", "number")
    decimals = pl.when(text.str.contains(".", literal=True)).then(
        text.str.len_chars() - text.str.find(".", literal=True) - 1
    )
    choices = in_rows(questions).with_columns(
        decimals=decimals.fill_null(0),
        below=value.diff().over("question", "number", order_by="value") / range_,
        above=-value.diff(-1).over("question", "number", order_by="value") / range_,
        middle=(value - value.mean().over("question", "number")).abs() / range_,
    )
    numeric = pl.col("kind") == "number"
    shown = choices.select(
        "letter",
        pl.len().over("question").alias("choices"),
        "number",
        pl.when(numeric).then(pl.len().over("question", "number", "decimals")).alias("alike"),
        *(
            pl.when(numeric & pl.col("number")).then(look).alias(name)
            for name, look in {
                "rank": value.rank("ordinal").over("question", "number"),
                "length": text.str.len_chars(),
                "decimals": pl.col("decimals"),
                "zeros": text.str.len_chars() - text.str.strip_chars_end("05").str.len_chars(),
                "digit": text.str.tail(1).cast(pl.Int64, strict=False),
                "negative": text.str.starts_with("-"),
                "below": pl.col("below"),
                "above": pl.col("above"),
                "middle": pl.col("middle"),
            }.items()
        ),
    )
    return shown.select(LOOKS).cast(pl.Float64).fill_nan(UNSEEN).fill_null(UNSEEN).to_numpy()


def prior(questions: pl.DataFrame, counted: NDArray[np.bool_]) -> Floats:
    """What the counted questions' right answers say of each choice, in the order of `in_rows`, shape (choices, 3).

    The feature's number; the share of its right answers that are this text; and of its numbers that are smaller.
    """
    answers = questions.filter(counted).select("feature", text=pl.col("choices").list.get(pl.col("answer")))
    shares = (
        answers.group_by("feature", "text")
        .agg(n=pl.len())
        .with_columns(share=pl.col("n") / pl.col("n").sum().over("feature"))
    )
    choices = in_rows(questions).join(shares, on=["feature", "text"], how="left", maintain_order="left")
    known = choices.select(pl.col("feature").rank("dense").cast(pl.Float64), pl.col("share").fill_null(0.0)).to_numpy()
    smaller = np.full(choices.height, UNSEEN)
    values, feature = choices["value"].to_numpy(), choices["feature"].to_numpy()
    right, of = as_numbers(answers["text"]).to_numpy(), answers["feature"].to_numpy()
    for name in np.unique(of):
        numbers = np.sort(right[(of == name) & np.isfinite(right)])
        here = (feature == name) & np.isfinite(values)
        smaller[here] = np.searchsorted(numbers, values[here]) / max(1, len(numbers))
    return np.column_stack([known, smaller])
