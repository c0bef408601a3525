"""Building questions and fitting a codebook, against the same work done one row and one pair at a time.

    python -m benchmarks.questions [--quick] [--json] [--plot FILE]

`build_ratio`: all maskable questions of a table in the `paper` construction, ours against the script in
`_plain_questions.py`. The script would take hours: it builds the questions of a few patients drawn at random, between
ours, and its seconds are scaled by the number of questions. The codebook is fitted before either starts.
`codebook_ratio`: a `strict` codebook with all pairs' mutual information, against scikit-learn's estimator in a loop
over pairs, on pairs drawn at random and scaled by the number of pairs.
Memory is the peak of a child process that reads a table from CSV and builds all of its questions into Parquet files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from benchmarks._plain_questions import plain_questions, statistics
from benchmarks._table import mixed_registry
from common.questions.building import build_counted
from common.questions.codebook import Codebook, binned_pairs, fit_codebook, fit_column, shortcuts
from common.questions.paper_codebook import fit_recorded
from common.questions.rendering import value_columns
from common.questions.streaming import slices
from common.registry.config import RegistryConfig, Table
from common.registry.registry import Registry
from common.registry.stored import stored_registry
from common.study import Questions, Sites, Study
from common.tasks.site_questions import write_site_questions

SEED = 1
PLAIN_PATIENTS = 24
PLAIN_PARTS = 6
PAIRS = 60
MEMORY_COLUMNS = 20
MEMORY_CODEBOOK = 10_000
"""Below the smallest table, so that all three fit their codebooks to as many patients."""
SLICE = 500


@dataclass(frozen=True)
class Pace:
    """Seconds of both ways for the whole table; the slow way's are scaled from what it did."""

    patients: int
    columns: int
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


@dataclass(frozen=True)
class Building(Pace):
    """`strict`: seconds of the other construction; `done`: questions that the script built of all `questions`."""

    questions: int
    done: int
    strict: float
    choices: tuple[float, float]


def paper_codebook(registry: Registry) -> Codebook:
    """Columns as `paper` has them. Its estimator takes an hour for 100 columns: pairs are left out by binned counts."""
    strict = {f.column: fit_column(registry.frame[f.column], f) for f in registry.features}
    nats = binned_pairs(registry.frame, registry.features, strict)
    columns = {f.column: fit_recorded(registry.frame[f.column], f, SEED) for f in registry.features}
    return Codebook(columns, shortcuts(nats, strict, 0.5), 0.5)


def measure_building(patients: int, columns: int, plain_patients: int, strict: bool) -> Building:
    """Ours by slices, the script's patients in between, so that other work on the machine slows down both."""
    registry = mixed_registry(patients, columns, SEED)
    spec, codebook = Questions(fidelity="paper"), paper_codebook(registry)
    known = {f.column: statistics(codebook.columns[f.column]) for f in registry.features}
    drawn = np.sort(np.random.default_rng(SEED).choice(patients, plain_patients, replace=False))
    parts = list(slices(registry, SLICE))
    turns = np.array_split(drawn, min(PLAIN_PARTS, len(parts), plain_patients))
    every = len(parts) // len(turns)
    ours, plain, questions, by_script = 0.0, 0.0, 0, []
    for place, part in enumerate(parts):
        start = time.perf_counter()
        questions += build_counted(part, part.frame["patient"], codebook, spec, SEED, None).questions.height
        ours += time.perf_counter() - start
        if place % every == 0 and place // every < len(turns):
            asked = registry.frame[turns[place // every]]
            printed = value_columns(asked, registry.features, codebook).insert_column(0, asked["patient"])
            table = printed.to_pandas().astype(object)
            start = time.perf_counter()
            by_script.append(plain_questions(table, registry.features, codebook, known, spec.difficulty, place))
            plain += time.perf_counter() - start
    scripted = pl.concat(pl.from_pandas(frame) for frame in by_script)
    ids = registry.frame[drawn]["patient"]
    same = build_counted(registry, ids, codebook, spec, SEED, None).questions
    choices = compare(same, scripted, sum(registry.frame[drawn][f.column].count() for f in registry.features))
    seconds = time_strict(registry) if strict else 0.0
    scaled = plain / scripted.height * questions
    return Building(patients, columns, ours, scaled, questions, scripted.height, seconds, choices)


def compare(ours: pl.DataFrame, scripted: pl.DataFrame, values: int) -> tuple[float, float]:
    """Both ask the same of the same records; only the random distractors differ.

    Returns:
        mean number of choices, ours and the script's.

    Raises:
        ValueError: they do not do the same work.
    """
    record = pl.col("prompt").str.split("\nA. ").list.first().alias("asked")
    truth = pl.col("choices").list.get(pl.col("answer")).alias("truth")
    both = ours.select("patient", "feature", record, truth).join(
        scripted.select("patient", "feature", record, truth), on=["patient", "feature"], suffix="_script"
    )
    # A question whose distractors all fall away is dropped, by either way for its own draws.
    few = [1 - len(frame) / values for frame in (ours, scripted, both)]
    same = both.filter((pl.col("asked") == pl.col("asked_script")) & (pl.col("truth") == pl.col("truth_script")))
    if same.height < both.height or max(few) > 0.05:
        raise ValueError(f"{both.height - same.height} of {both.height} questions differ; {few} of the values unasked")
    sizes = [frame["choices"].list.len().cast(pl.Float64) for frame in (ours, scripted)]
    error = float(np.hypot(*[float(s.std()) / len(s) ** 0.5 for s in sizes]))
    means = float(sizes[0].mean()), float(sizes[1].mean())
    if abs(means[0] - means[1]) > 5 * error:
        raise ValueError(f"mean number of choices {means[0]:.3f} and {means[1]:.3f}, standard error {error:.3f}")
    return means


def time_strict(registry: Registry) -> float:
    spec = Questions()
    columns = {f.column: fit_column(registry.frame[f.column], f) for f in registry.features}
    codebook = Codebook(columns, {}, spec.mi_threshold)
    start = time.perf_counter()
    for part in slices(registry, SLICE):
        build_counted(part, part.frame["patient"], codebook, spec, SEED, None)
    return time.perf_counter() - start


def measure_codebook(patients: int, columns: int, pairs: int) -> Pace:
    """One fit of ours between two halves of scikit-learn's pairs."""
    registry = mixed_registry(patients, columns, SEED)
    filled = [fill(registry.frame[f.column]) for f in registry.features]
    rng = np.random.default_rng(SEED)
    chosen = [rng.choice(columns, 2, replace=False) for _ in range(pairs)]
    first = time_pairs(filled, chosen[: pairs // 2])
    start = time.perf_counter()
    fit_codebook(registry.frame, registry.features, Questions(), SEED)
    ours = time.perf_counter() - start
    sampled = first + time_pairs(filled, chosen[pairs // 2 :])
    return Pace(patients, columns, ours, sampled / pairs * columns * (columns - 1))


def fill(column: pl.Series) -> tuple[np.ndarray, bool]:
    """As scikit-learn wants it: numbers with the median where missing, categories as codes with one for missing."""
    if column.dtype == pl.String:
        return column.rank("dense").fill_null(0).to_numpy().astype(int), True
    return column.fill_null(column.median()).to_numpy(), False


def time_pairs(filled: list[tuple[np.ndarray, bool]], pairs: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for target, other in pairs:
        (y, classes), (x, discrete) = filled[target], filled[other]
        estimate = mutual_info_classif if classes else mutual_info_regression
        estimate(x[:, None], y, discrete_features=discrete, random_state=SEED)
    return time.perf_counter() - start


def measure_memory(patients: int) -> int:
    """Peak resident MB of a child that reads a CSV table and writes all of its questions."""
    with tempfile.TemporaryDirectory() as folder:
        mixed_registry(patients, MEMORY_COLUMNS, SEED).frame.write_csv(Path(folder) / "table.csv")
        command = [sys.executable, "-m", "benchmarks.questions", "--child", folder]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_in_child(folder: Path) -> None:
    """As `wardround-site questions --out` does, of a study that asks for every value."""
    features = mixed_registry(1000, MEMORY_COLUMNS, SEED).features
    table = Table(source="csv", path=str(folder / "table.csv"))
    config = RegistryConfig(site="benchmark", patient="patient", table=table, features=features)
    questions = Questions(per_patient=MEMORY_COLUMNS, codebook_patients=MEMORY_CODEBOOK)
    study = Study(name="memory", sites=Sites(train=("benchmark",), public=("public",)), questions=questions)
    with stored_registry(config, folder) as registry:
        write_site_questions(registry, study, folder / "questions")
    # Not getrusage: its peak takes in that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def plot(curves: dict[str, list[Pace]], path: Path) -> None:
    """Seconds of both ways on logarithmic axes, one panel for each curve."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    for place, (title, paces) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(2, 2, place)
        by = "patients" if title.endswith("patients") else "columns"
        sizes = [getattr(pace, by) for pace in paces]
        axes.loglog(sizes, [pace.plain for pace in paces], "s--", color="#b0532c", label="row by row / pair by pair")
        axes.loglog(sizes, [pace.ours for pace in paces], "o-", color="#1f5f8b", label="Wardround")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        fixed = paces[-1].columns if by == "patients" else paces[-1].patients
        axes.set_title(f"{title} ({fixed:,} {'columns' if by == 'patients' else 'patients'})", fontsize=10)
        axes.set_xlabel(by)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def grow(quick: bool) -> dict[str, list[Pace]]:
    """The smaller tables of the plot's four curves; the largest of each is measured apart."""
    patients, columns = ((500, 1000), (5, 10)) if quick else ((2500, 5000, 10_000), (25, 50))
    wide, tall = (20, 500) if quick else (100, 5000)
    few = 4 if quick else 6
    build, fit = measure_building, measure_codebook
    return {
        "Questions by patients": [build(n, wide, few, False) for n in patients],
        "Questions by columns": [build(tall, n, few, False) for n in (*columns, wide)],
        "Codebook by patients": [fit(n, wide, 2 * few) for n in (*patients, patients[-1] * 2)],
        "Codebook by columns": [fit(tall, n, 2 * few) for n in (*columns, wide)],
    }


def table(building: Building, codebook: Pace, memory: dict[int, int], curves: dict[str, list[Pace]]) -> str:
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    each = 1e6 / building.questions
    lines = [
        f"questions: {building.patients} x {building.columns} columns, {building.questions} questions; {cores}",
        f"  ours, paper   {building.ours:10.1f} s  {building.ours * each:8.1f} us a question, "
        f"{building.choices[0]:.2f} choices",
        f"  ours, strict  {building.strict:10.1f} s  {building.strict * each:8.1f} us",
        f"  script, paper {building.plain:10.1f} s  {building.plain * each:8.1f} us, {building.choices[1]:.2f} choices",
        f"                scaled from {building.done} questions, the same as ours but for random distractors",
        f"  ratio         {building.ratio:10.1f}",
        f"codebook: {codebook.patients} patients x {codebook.columns} columns, all pairs",
        f"  ours          {codebook.ours:10.1f} s",
        f"  scikit-learn  {codebook.plain:10.1f} s, scaled from {PAIRS} random pairs",
        f"  ratio         {codebook.ratio:10.1f}",
        f"memory: all questions of {MEMORY_COLUMNS} columns to Parquet, peak of the process",
        *(f"  {patients:6} patients {megabytes:8} MB" for patients, megabytes in memory.items()),
    ]
    for title, paces in curves.items():
        lines.append(f"{title}:")
        for p in paces:
            size = f"{p.patients:6} x {p.columns:3}"
            lines.append(f"  {size}  {p.ours:8.1f} s  against {p.plain:10.1f} s  {p.ratio:6.0f} x")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small table: seconds instead of minutes")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    parser.add_argument("--plot", type=Path, help="write the growth curves there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        write_in_child(given.child)
        return
    patients = 1000 if given.quick else 20_000
    building = measure_building(patients, 40 if given.quick else 100, 6 if given.quick else PLAIN_PATIENTS, True)
    codebook = measure_codebook(patients * (2 if given.quick else 1), 40 if given.quick else 200, PAIRS)
    memory = {n: measure_memory(n) for n in ((2000, 4000) if given.quick else (20_000, 40_000, 80_000))}
    curves = grow(given.quick)
    if not given.quick:
        curves["Questions by patients"].append(building)
    if given.plot:
        plot(curves, given.plot)
    if not given.json:
        print(table(building, codebook, memory, curves))
    sizes = list(memory.values())
    ratios = {
        "build_ratio": round(building.ratio, 1),
        "codebook_ratio": round(codebook.ratio, 1),
        "memory_growth": round(sizes[-1] / sizes[0], 3),
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
