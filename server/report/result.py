"""What `result.json` holds: every arm's figures, their intervals, and how the arms compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from common.evaluation.intervals import Draws, Estimate, Floats, draw, interval, paired, tally
from common.evaluation.outcomes import discrimination
from common.evaluation.scoring import Group, Scores, grouped, per_question, score
from common.study import Study
from common.tasks.outcome import OUTCOME

ARMS = ("base", "local", "federated", "centralized", "random_letter", "most_frequent", "gradient_boosting")
"""The order in which arms are shown: four models, then three yardsticks."""
SPLITS = ("held_out", "unseen_sites")
PAIRS = (
    ("federated", "base"),
    ("federated", "local"),
    ("federated", "centralized"),
    ("centralized", "base"),
    ("local", "base"),
    ("federated", "most_frequent"),
    ("federated", "gradient_boosting"),
)

Answered = Mapping[tuple[str, int, str], pl.DataFrame]
"""(arm, seed, split) -> answered frame."""
Runs = dict[int, pl.DataFrame]
"""seed -> `per_question` frame."""


def bounds(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]


def drawn(runs: Sequence[pl.DataFrame], study: Study) -> Draws:
    return draw(tally(runs), study.evaluation.bootstrap, study.seed)


def with_intervals(draws: Draws) -> dict[str, Any]:
    return {
        "accuracy": draws.micro,
        "ci95": bounds(interval(draws.micro, draws.micro_draws)),
        "macro": draws.macro,
        "macro_ci95": bounds(interval(draws.macro, draws.macro_draws)),
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_groups(runs: Runs, column: str) -> dict[str, dict[str, float]]:
    """Accuracy by `column`, mean over the seeds that asked it; questions and patients of one seed, on average."""
    per_seed: list[dict[str, Group]] = [grouped(run, column) for run in runs.values()]
    out = {}
    for name in sorted({name for groups in per_seed for name in groups}):
        found = [groups[name] for groups in per_seed if name in groups]
        out[name] = {
            "accuracy": mean([g.accuracy for g in found]),
            "n_questions": round(mean([g.n_questions for g in found])),
            "n_patients": round(mean([g.n_patients for g in found])),
        }
    return out


def letters(scores: Sequence[Scores]) -> dict[str, dict[str, float]]:
    return {
        "answers": {x: mean([s.answered_letters[x] for s in scores]) for x in scores[0].answered_letters},
        "key": {x: mean([s.key_letters[x] for s in scores]) for x in scores[0].key_letters},
    }


def likely_accuracy(frames: Sequence[pl.DataFrame]) -> float | None:
    """Accuracy of the likeliest letter; None where an arm's letters were not ranked."""
    if any(frame["likely"].null_count() == frame.height for frame in frames):
        return None
    return mean([score(frame, "likely").accuracy for frame in frames])


def arm_result(
    frames: Mapping[int, pl.DataFrame], runs: Runs, study: Study, names: Mapping[str, str]
) -> dict[str, Any]:
    """One arm on one split: the mean over its seeds, each seed, and the parts."""
    scores = [score(frame) for frame in frames.values()]
    kinds = pl.concat(list(runs.values())).select("feature", "kind", "section").unique().sort("feature")
    by_feature: dict[str, dict[str, Any]] = mean_groups(runs, "feature")
    for feature, kind, section in kinds.iter_rows():
        by_feature[feature] |= {"name": names.get(feature, feature), "kind": kind, "section": section}
    asked = pl.concat(list(runs.values())).select("site", "patient", "question_id")
    return {
        "n_patients": asked.select("site", "patient").n_unique(),
        "n_questions": asked.n_unique(),
        **with_intervals(drawn(list(runs.values()), study)),
        "likely_accuracy": likely_accuracy(list(frames.values())),
        "boxed_rate": mean([s.boxed_rate for s in scores]),
        "letters": letters(scores),
        "per_seed": [
            {"seed": seed, "n_patients": s.n_patients, "n_questions": s.n_questions}
            | with_intervals(drawn([run], study))
            for (seed, run), s in zip(runs.items(), scores, strict=True)
        ],
        "by_task": by_task(runs, study),
        "outcomes": by_outcome(frames, study, names),
        "by_feature": by_feature,
        "by_section": mean_groups(runs, "section"),
        "by_kind": mean_groups(runs, "kind"),
    }


def by_task(runs: Runs, study: Study) -> dict[str, dict[str, Any]]:
    """Accuracy of each task with its interval, mean over the seeds that asked it."""
    groups = mean_groups(runs, "task")
    out = {}
    for task, figures in groups.items():
        asked = [run.filter(pl.col("task") == task) for run in runs.values()]
        out[task] = {**figures, **with_intervals(drawn([run for run in asked if not run.is_empty()], study))}
    return out


def by_outcome(
    frames: Mapping[int, pl.DataFrame], study: Study, names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What accuracy does not say of outcomes that few patients have (common/evaluation/outcomes.py), by column."""
    out: dict[str, dict[str, Any]] = {}
    asked = [frame.filter(pl.col("task") == OUTCOME.name) for frame in frames.values()]
    for feature in sorted({feature for frame in asked for feature in frame["feature"]}):
        runs = [frame.filter(pl.col("feature") == feature) for frame in asked]
        runs = [run for run in runs if not run.is_empty()]
        found = discrimination(runs, study.evaluation.bootstrap, study.seed)
        out[feature] = {
            "name": names.get(feature, feature),
            "n_questions": found.n_questions,
            "n_patients": found.n_patients,
            "majority": found.majority,
        }
        figures = {"balanced_accuracy": found.balanced_accuracy, "f1": found.f1, "auroc": found.auroc}
        for name, estimate in figures.items():
            if estimate is not None:
                out[feature] |= {name: estimate.value, f"{name}_ci95": bounds(estimate)}
    return out


def same_questions(first: Runs, second: Runs) -> bool:
    """Whether two arms answered the same questions in each of these seeds."""
    key = ["site", "patient", "question_id"]
    return all(first[seed].select(key).equals(second[seed].select(key)) for seed in first)


def on_common_seeds(first: Runs, second: Runs) -> tuple[Runs, Runs]:
    """The runs of the seeds that both arms have (a run folder may be of a run that goes on)."""
    seeds = [seed for seed in first if seed in second]
    return {s: first[s] for s in seeds}, {s: second[s] for s in seeds}


def comparison(first: Runs, second: Runs, study: Study) -> dict[str, Any] | None:
    """Paired difference on the seeds that both arms have; None where they share none.

    Raises:
        ValueError: the arms answered different questions.
    """
    first, second = on_common_seeds(first, second)
    if not first:
        return None
    if not same_questions(first, second):
        raise ValueError("compared arms answered different questions")
    a, b = drawn(list(first.values()), study), drawn(list(second.values()), study)
    micro, macro = paired(a, b), paired(a, b, macro=True)
    return {
        "difference": micro.estimate.value,
        "ci95": bounds(micro.estimate),
        "p": micro.p,
        "macro_difference": macro.estimate.value,
        "macro_ci95": bounds(macro.estimate),
        "macro_p": macro.p,
        "seeds": list(first),
        "per_seed": [
            {"seed": seed, "difference": (first[seed]["credit"] - second[seed]["credit"]).sum() / first[seed].height}
            for seed in first
        ],
    }


def gap_closed(arm: Runs, low: Runs, high: Runs, study: Study) -> tuple[float, Floats] | None:
    """Share of the distance from `low` (most frequent value) to `high` (gradient boosting) that the arm closes, macro
    over the categorical columns, with its bootstrap draws; None where the three share no such questions or there is
    no distance to close."""
    seeds = [s for s in arm if s in low and s in high]
    categorical = [{s: r[s].filter(pl.col("kind") == "category") for s in seeds} for r in (arm, low, high)]
    if not seeds or any(run.is_empty() for runs in categorical for run in runs.values()):
        return None
    if not (same_questions(categorical[0], categorical[1]) and same_questions(categorical[0], categorical[2])):
        raise ValueError("compared arms answered different questions")
    a, b, c = (drawn(list(runs.values()), study) for runs in categorical)
    if c.macro <= b.macro:
        return None
    distance = c.macro_draws - b.macro_draws
    usable = distance > 0
    shares = (a.macro_draws[usable] - b.macro_draws[usable]) / distance[usable]
    return (a.macro - b.macro) / (c.macro - b.macro), shares


def summarise(
    answered: Answered,
    study: Study,
    *,
    complete: bool,
    seconds: Mapping[str, float] | None = None,
    bytes_sent: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of `result.json` (docs/run_folder.md), from answered frames.

    Args:
        answered: (arm, seed, split) -> answered frame; arms, seeds and splits may be missing while a run goes on. A
            frame with a `model` column holds several models' answers (arm `local`): a question counts their mean.
        study: gives name, hash, number of resamples and the seed of the bootstrap.
        complete: whether the run has finished.
        seconds: time by what it was spent on.
        bytes_sent: bytes that left each site.
        names: column -> the feature's name as prompts print it; the column itself unless given.

    Raises:
        ValueError: an empty frame, or arms that are compared answered different questions.
    """
    frames: dict[tuple[str, str], dict[int, pl.DataFrame]] = {}
    for arm, seed, split in sorted(answered):
        frames.setdefault((arm, split), {})[seed] = answered[arm, seed, split]
    runs = {place: {seed: per_question(f) for seed, f in found.items()} for place, found in frames.items()}

    arms: dict[str, dict[str, Any]] = {}
    comparisons: dict[str, dict[str, Any]] = {}
    gaps: dict[str, dict[str, float]] = {}
    gap_intervals: dict[str, dict[str, list[float]]] = {}
    for split in SPLITS:
        present = [arm for arm in ARMS if (arm, split) in runs]
        for arm in present:
            arms.setdefault(arm, {})[split] = arm_result(frames[arm, split], runs[arm, split], study, names or {})
        for first, second in PAIRS:
            if first not in present or second not in present:
                continue
            found = comparison(runs[first, split], runs[second, split], study)
            if found is not None:
                comparisons.setdefault(f"{first}-{second}", {})[split] = found
        if "most_frequent" not in present or "gradient_boosting" not in present:
            continue
        for arm in present:
            closed = gap_closed(runs[arm, split], runs["most_frequent", split], runs["gradient_boosting", split], study)
            if closed is not None:
                gaps.setdefault(arm, {})[split] = closed[0]
                gap_intervals.setdefault(arm, {})[split] = bounds(interval(*closed))
    return {
        "study": study.name,
        "hash": study.hash,
        "seeds": sorted({seed for _, seed, _ in answered}),
        "complete": complete,
        "resamples": study.evaluation.bootstrap,
        "arms": arms,
        "comparisons": comparisons,
        "gap_closed": gaps,
        "gap_closed_ci95": gap_intervals,
        "seconds": dict(seconds or {}),
        "bytes": dict(bytes_sent or {}),
    }
