"""A small run folder, written by the real writers from made-up answers, and the report made of it."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from common.errors import UserError
from common.study import Study
from server.report import write_report
from server.report.inputs import RunRecord, read_record
from server.report.report import render
from server.report.result import summarise
from server.report.timeline import bytes_sent, learning_curves
from server.run_folder import RunFolder, create_run, write_json

STUDY = Study.model_validate({
    "name": "small", "title": "A small study <of few>", "seed": 1, "evaluation": {"bootstrap": 200},
    "sites": {"train": ["north", "south"], "unseen": ["east"], "public": ["atlas"]},
})  # fmt: skip
SEEDS = (1, 2)
RATES = {"base": 0.4, "local": 0.5, "federated": 0.7, "centralized": 0.72, "most_frequent": 0.5,
         "gradient_boosting": 0.85}  # fmt: skip
FEATURES = {"age": ("Who", "number"), "sex": ("Who", "category"), "focus": ("Infection", "category")}


def answers(rate: float, seed: int, site: str) -> pl.DataFrame:
    rng = np.random.default_rng([seed, len(site)])
    rows = []
    for p in range(40):
        for feature, (section, kind) in FEATURES.items():
            key, luck = int(rng.integers(4)), rng.random()
            said = key if luck < rate else (key + 1) % 4
            rows.append((f"q{p}-{feature}", site, f"p{p}", feature, section, kind, key, said, said))
    schema = ["question_id", "site", "patient", "feature", "section", "kind", "answer", "boxed", "likely"]
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(task=pl.lit("masked_value"))


def made_result() -> dict:
    places = {"held_out": "north", "unseen_sites": "east"}
    frames = {
        (arm, seed, split): answers(rate, seed, site)
        for arm, rate in RATES.items() for seed in SEEDS for split, site in places.items()
    }  # fmt: skip
    names = {"age": "Age", "sex": "Sex", "focus": "Focus of infection"}
    return summarise(frames, STUDY, complete=True, seconds={"learning": 90.0, "evaluating": 30.0}, names=names)


def started(folder: Path) -> RunFolder:
    return create_run(folder, STUDY, list(SEEDS), list(RATES), started=1_790_000_000.0)


def write_rounds(run: RunFolder, rounds: int) -> None:
    log = run.log()
    log.write("run_started")
    for arm in ("local", "federated"):
        for seed in SEEDS:
            log.write("arm_started", arm=arm, seed=seed)
            for n in range(1, rounds + 1):
                sites = {
                    site: {"accuracy": base + 0.05 * n, "baseline": base, "n_patients": 20, "n_questions": 80}
                    for site, base in (("north", 0.4), ("south", 0.3))
                }
                log.write("steps", arm=arm, seed=seed, site="north", round=n, reward=[0.3 + 0.02 * n, 0.35])
                log.write(
                    "round_finished", arm=arm, seed=seed, round=n, accuracy=0.35 + 0.05 * n, sites=sites,
                    seconds={"generating": 2.0, "learning": 3.0, "communicating": 0.5, "evaluating": 1.0, "other": 0.1},
                    bytes={"north": 1000 * n, "south": 2000} if arm == "federated" else {},
                )  # fmt: skip
            log.write("arm_finished", arm=arm, seed=seed)


def write_examples(run: RunFolder) -> None:
    completions = {"base": "I do not know.", "local": None, "federated": "The focus is <script>. \\boxed{B}"}
    example = {"prompt": "[Who]\nAge: 63\n\nQuestion: ...", "choices": ["lung", "urine"], "answer": 1,
               "reference": "urine", "feature": "focus", "completions": completions}  # fmt: skip
    write_json(run.path / "examples.json", [example])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = started(tmp_path_factory.mktemp("runs"))
    write_rounds(run, 3)
    write_json(run.path / "result.json", made_result())
    write_examples(run)
    return run


class Page(HTMLParser):
    """The parts of the page that tests ask about."""

    VOID = {"meta", "img", "br"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(found)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_whole_report(finished: RunFolder):
    path = write_report(finished.path)
    assert path == finished.path / "report.html"
    shown = page(path)
    result = json.loads((finished.path / "result.json").read_text())
    federated = result["arms"]["federated"]["held_out"]
    gain = result["comparisons"]["federated-base"]["held_out"]["difference"]
    text = re.sub(r"\s+", " ", shown.text)
    assert f"the federated model is {100 * gain:.1f} points better than the base model" in text
    assert f"{100 * federated['accuracy']:.1f} %" in text
    assert f"{100 * federated['ci95'][0]:.1f} to {100 * federated['ci95'][1]:.1f}" in text
    assert "above base in 2 of 2 seeds" in text
    assert "declared public cohort atlas" in text
    assert STUDY.hash in text
    assert "A small study <of few>" in text
    assert "The focus is <script>" in text
    assert "no answer in a box" in text
    assert "has not finished" not in text
    assert "Random letter" not in text


def test_nothing_comes_from_outside_and_every_picture_has_words(finished: RunFolder):
    shown = page(write_report(finished.path))
    assert shown.outside == []
    assert len(shown.images) == 6
    for image in shown.images:
        assert image["alt"] and len(image["alt"]) > 40
        svg = base64.b64decode((image["src"] or "").removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_the_same_folder_gives_the_same_bytes(finished: RunFolder):
    first = write_report(finished.path).read_bytes()
    assert write_report(finished.path).read_bytes() == first


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_run_that_goes_on(tmp_path: Path, rounds: int):
    run = started(tmp_path)
    if rounds:
        write_rounds(run, rounds)
    with run.events.open("a") as file:
        file.write('{"time": 1, "event": "round_fin')
    shown = page(write_report(run.path))
    assert "has not finished" in shown.text
    assert "no comparison of federated and base yet" in shown.text
    assert len(shown.images) == (3 if rounds else 0)


def test_only_a_study_is_enough_and_none_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY.to_toml())
    assert STUDY.hash in page(write_report(tmp_path)).text


def test_curves_start_at_the_baseline_and_weigh_sites_by_questions(finished: RunFolder):
    panels, baselines = learning_curves(read_record(finished.path))
    assert list(panels) == ["All training sites", "north", "south"]
    assert baselines == pytest.approx({"All training sites": 0.35, "north": 0.4, "south": 0.3})
    rounds, values = panels["south"]["federated"][0]
    assert rounds == [0, 1, 2, 3]
    assert values == pytest.approx([0.3, 0.35, 0.4, 0.45])
    assert len(panels["south"]["federated"]) == len(SEEDS)


def test_a_resumed_run_counts_a_repeated_round_once(tmp_path: Path):
    run = started(tmp_path)
    write_rounds(run, 2)
    sent = bytes_sent(read_record(run.path))
    run.log().write("round_finished", arm="federated", seed=1, round=2, bytes={"north": 7, "south": 7}, seconds={},
                    sites={"north": {}, "south": {}})  # fmt: skip
    again = bytes_sent(read_record(run.path))
    assert len(again) == len(sent) == 4
    assert (1, 2, {"north": 7, "south": 7}) in again


def test_a_result_of_another_study_is_told(tmp_path: Path):
    run = started(tmp_path)
    write_json(run.path / "result.json", made_result() | {"hash": "0" * 64})
    assert "another study" in page(write_report(run.path)).text


def test_tasks_are_shown_apart() -> None:
    """An outcome asked beside masked values has its own table, with more than its accuracy."""
    asked = STUDY.questions.model_copy(update={"tasks": ("masked_value", "outcome")})
    study = STUDY.model_copy(update={"questions": asked})
    frames = {}
    for arm, rate in RATES.items():
        masked = answers(rate, 1, "north").with_columns(reference=pl.lit("x"), likelihoods=pl.lit([0.5, 0.5]))
        died = masked.filter(pl.col("feature") == "sex").with_columns(
            task=pl.lit("outcome"),
            feature=pl.lit("death"),
            question_id=pl.col("question_id") + "!",
            choices=pl.lit(["yes", "no"]),
            answer=pl.col("answer") % 2,
            boxed=pl.col("boxed") % 2,
        )
        died = died.with_columns(reference=pl.col("choices").list.get(pl.col("answer")))
        frames[arm, 1, "held_out"] = pl.concat([masked.with_columns(choices=pl.lit(["x", "y"])), died], how="diagonal")
    result = summarise(frames, study, complete=True, names={"death": "Death in hospital"})
    found = result["arms"]["federated"]["held_out"]
    assert set(found["by_task"]) == {"masked_value", "outcome"}
    assert found["by_task"]["outcome"]["n_questions"] == 40
    assert found["outcomes"]["death"]["name"] == "Death in hospital"
    assert found["outcomes"]["death"]["auroc"] == 0.5
    parts = sum(t["accuracy"] * t["n_questions"] for t in found["by_task"].values())
    assert parts / found["n_questions"] == pytest.approx(found["accuracy"])
    text = render(RunRecord(study, {}, (), result, []))
    assert "By task" in text and "Death in hospital, held-out patients" in text and "Balanced accuracy" in text
    assert "By task" not in render(RunRecord(STUDY, {}, (), made_result(), []))
