"""Ways to carry a patient's data out of a site in replies, counts, errors and beats: each is refused and noted.

Each attempt has its honest twin, which passes: what is refused is refused for what was smuggled. Ways that go by the
update itself are in test_egress_updates.py, ways that a coordinator may try by its messages in test_app.py.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
import pytest
from flwr.app import MetricRecord, RecordDict

from client.bulk import Channel
from client.egress import REFUSALS, answer, beat_of
from client.outbox import Outbox
from client.policy import (
    APPROVAL_ENDED,
    BAD_REQUEST,
    INTERNAL,
    LOG_CLOSED,
    NOT_ALLOWED,
    NOT_APPROVED,
    SITE_CONFIGURATION,
    TOO_FEW_PATIENTS,
    TOO_MANY_ANSWERS,
    Refusal,
)
from client.progress import Progress
from client.replies import (
    Acknowledged,
    Configured,
    Counted,
    Described,
    Evaluated,
    Handed,
    Held,
    Reply,
    Summarised,
    Uploaded,
)
from client.sense import MOST_ANSWERS
from client.summary import share
from common.bulk.opening import Transfer
from common.errors import UserError
from common.questions.joint import Binning, Layout
from common.registry.config import Feature
from common.transfer.records import PAYLOAD_MISSING
from common.update.tensors import BadUpdate
from tests.client.smuggling import (
    ASKED,
    BORN,
    DAY,
    NAME,
    SECRETS,
    Attempt,
    check_refused,
    door,
    entries,
    question,
    trained,
)


def configured(**changes: Any) -> Configured:
    return Configured(**({"patients": 20, "questions": 40, "codebook": "c" * 64, "private": False} | changes))


def evaluated(**changes: Any) -> Evaluated:
    values = {"round": 3, "patients": 20, "questions": 40, "right": 9, "boxed": 30, "seconds": 1.5}
    return Evaluated(**(values | changes))


def reply(make: Callable[..., Reply], code: int = NOT_ALLOWED, rule: str = "", **changes: Any) -> Attempt:
    """An honest reply with some fields changed."""
    return Attempt(lambda _: make(), lambda _: make(**changes), code, rule)


def figures(code: int = NOT_ALLOWED, rule: str = "", **changes: Any) -> Attempt:
    return Attempt(lambda folder: trained(folder), lambda folder: trained(folder, **changes), code, rule)


class Mrs_Example(Configured):
    """A reply whose class is named after a patient: kinds of replies stand in the log."""


class Birthday(int):
    """A number that prints as something else."""

    def __repr__(self) -> str:
        return DAY


def by_hand(_: Path) -> Any:
    return RecordDict({NAME: MetricRecord({DAY: 1})})


BEYOND = "Trained.metrics.{} is not"
REPLIES = {
    "records made past the typed replies": Attempt(lambda _: configured(), by_hand, NOT_ALLOWED, "of no kind"),
    "the name of a class": Attempt(
        lambda _: configured(), lambda _: Mrs_Example(20, 40, "c" * 64, False), NOT_ALLOWED, "of no kind"
    ),
    "text for a count": reply(configured, INTERNAL, questions=NAME),
    "a question for a count": reply(evaluated, INTERNAL, boxed=f"{NAME} was admitted on {DAY}."),
    "a list of patients for a count": reply(configured, questions=[BORN, BORN + 1]),
    "a list of one figure a patient": figures(rule=BEYOND.format("reward"), reward=[0.1, 0.9]),
    "a count beyond all patients": reply(configured, questions=BORN * 1000),
    "a count in more than 64 bits": reply(configured, questions=BORN << 64),
    "a negative count": reply(evaluated, right=-BORN),
    "a number of a class of its own": reply(configured, questions=Birthday(40)),
    "a truth value for a count": reply(evaluated, INTERNAL, right=True),
    "a fraction for a count": reply(evaluated, right=9.19310402),
    "a figure that is not a number": figures(rule=BEYOND.format("reward"), reward=math.nan),
    "an infinite figure": figures(rule=BEYOND.format("informative"), informative=math.inf),
    "the sign of zero": figures(rule=BEYOND.format("reward"), reward=-0.0),
    "a subnormal figure": figures(rule=BEYOND.format("reward"), reward=BORN * 5e-324),
    "digits after a figure": figures(rule=BEYOND.format("reward"), reward=0.500019310402),
    "digits after a time": figures(rule=BEYOND.format("learning_s"), learning_s=2.2519310402),
    "digits after another time": reply(evaluated, rule="Evaluated.counts.seconds is not", seconds=1.519310402),
    "a time of a year": figures(rule=BEYOND.format("generating_s"), generating_s=float(BORN)),
    "counts of too few": reply(configured, TOO_FEW_PATIENTS, patients=9),
    "an update of too few": figures(TOO_FEW_PATIENTS, patients=1),
    "right answers of too few": reply(evaluated, TOO_FEW_PATIENTS, patients=9),
    "more right answers than questions": reply(evaluated, right=41),
    "fewer questions than patients": reply(configured, questions=19),
    "a round that was not asked for": reply(evaluated, rule="does not answer", round=BORN),
    "an update of another round": figures(rule="does not answer", round=BORN),
    "a round that is acknowledged": Attempt(
        lambda _: Acknowledged(3), lambda _: Acknowledged(BORN), NOT_ALLOWED, "does not answer"
    ),
    "the site's name": Attempt(
        lambda _: Described("north"), lambda _: Described("mrs-example-1931-04-02"), NOT_ALLOWED, "does not answer"
    ),
    "shards that nobody announced": Attempt(lambda _: Held(2, 2), lambda _: Held(BORN, 2), NOT_ALLOWED),
    "the codebook's hash, which the log notes": reply(configured, rule="does not answer", codebook=NAME),
}  # fmt: skip


@pytest.mark.parametrize("attempt", REPLIES.values(), ids=REPLIES)
def test_by_a_reply(tmp_path: Path, attempt: Attempt) -> None:
    attempt.check(tmp_path)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


ERRORS = {
    "an exception's text": (ValueError(f"no such value: {NAME}"), INTERNAL),
    "the key of a KeyError": (KeyError(DAY), INTERNAL),
    "a reader's own message": (UserError(f"line 7: {NAME}, {DAY}", NAME), SITE_CONFIGURATION),
    "a tensor's name in a message": (BadUpdate("north", f"tensor {NAME!r} is missing"), SITE_CONFIGURATION),
    "the text of an end of the process": (SystemExit(f"{NAME}, {DAY}"), INTERNAL),
    "a file's name": (FileNotFoundError(2, "No such file", f"/data/{NAME}.csv"), INTERNAL),
    "a refusal's number": (Refusal(BORN), INTERNAL),
    "several exceptions at once": (ExceptionGroup(NAME, [ValueError(DAY), KeyError(BORN)]), INTERNAL),
}


@pytest.mark.parametrize(("error", "code"), ERRORS.values(), ids=ERRORS)
def test_by_an_error(tmp_path: Path, error: BaseException, code: int) -> None:
    check_refused(tmp_path, answer(door(tmp_path), ASKED, question(), raising(error)), code)
    kept = tmp_path / "state" / "errors.log"
    assert isinstance(error, Refusal) or any(secret in kept.read_text() for secret in SECRETS), "it stays here"


def test_by_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing leaves unlogged, and the system's message, which has the path, does not either."""
    place = door(tmp_path / "mrs-example")
    (place.state / "audit.jsonl").mkdir(parents=True)
    told = answer(place, ASKED, question(), configured)
    assert (told.error.code, told.error.reason) == (LOG_CLOSED, REFUSALS[LOG_CLOSED])
    assert not [secret for secret in SECRETS if secret in repr(told)] and "mrs-example" in capsys.readouterr().err


COLUMNS = (
    Feature(column="sex", name="Sex", section="Person", kind="category"),
    Feature(column="age", name="Age", section="Person", kind="number"),
    Feature(column="note", name="Note", section="Person", kind="text"),
)
CELLS = [
    ("", "hidden", "", 9, 20),
    ("", "rows", "", 20, 20),
    ("age", "2 digits", "6.4e+01", 12, 12),
    ("sex", "value", "Female", 11, 11),
]
Row = tuple[str, str, str, int, int]


def counted(*more: Row, instead: int | None = None, features: tuple[Feature, ...] = COLUMNS) -> Counted:
    """Counts with more cells, one of them maybe for another, in their order."""
    rows = sorted([*(row for n, row in enumerate(CELLS) if n != instead), *more])
    cells = pl.DataFrame(rows, schema=["quantity", "what", "cell", "count", "patients"], orient="row")
    return Counted(20, features, None, cells)


def cells(*more: Row, rule: str = "", code: int = NOT_ALLOWED, **options: Any) -> Attempt:
    return Attempt(lambda _: counted(), lambda _: counted(*more, **options), code, rule)


def pairs(*numbers: int) -> Counted:
    layout = Layout(binnings=(Binning(quantity="sex", values=("F",)), Binning(quantity="age")))
    table = pl.DataFrame({"count": numbers, "patients": numbers}, schema={"count": pl.Int64, "patients": pl.Int64})
    return Counted(20, (), layout, table)


HIDDEN_CHARACTER = "Age" + "\u200b\u200c" * 4
FORM, TEXT = "none that counts have", "hidden characters"
COUNTS = {
    "a note of free text": cells(("note", "value", f"{NAME}, {DAY}", 12, 12), rule=FORM),
    "a column that is not declared": cells(("name", "value", NAME, 12, 12), rule="not declared"),
    "a question that counts do not answer": cells(("sex", f"born {DAY}", "", 12, 12), rule=FORM),
    "a number with all its digits": cells(("age", "2 digits", "1.9310402e+07", 12, 12), rule=FORM),
    "a category that is a story": cells(("sex", "value", f"{NAME} " * 20, 12, 12), rule=FORM),
    "hidden characters in a category": cells(("sex", "value", "Male\u200b", 12, 12), rule=FORM),
    "a count that stands twice": cells(CELLS[3], rule="stands twice"),
    "a count below its patients": cells(("age", "2 digits", "6.4e+01", 1, 12), instead=2, rule="behind it"),
    "a site's size in what is held back": cells(("", "hidden", "", BORN, 20), instead=0, rule="behind it"),
    "more values than a list has": cells(
        *(("sex", "value", f"class {n}", 12, 12) for n in range(20)), rule="more than 20 values"
    ),
    "hidden characters in a column's name": cells(
        features=(COLUMNS[0], COLUMNS[1].model_copy(update={"name": HIDDEN_CHARACTER})), rule=TEXT
    ),
    "a unit that is a story": cells(
        features=(COLUMNS[0], COLUMNS[1].model_copy(update={"unit": f"{NAME}, {DAY}; " * 9})), rule=TEXT
    ),
    "an order of its own": Attempt(
        lambda _: counted(), lambda _: replace(counted(), cells=counted().cells.reverse()), NOT_ALLOWED, "in its place"
    ),
    "counts of too few patients": Attempt(
        lambda _: counted(), lambda _: replace(counted(), patients=9), TOO_FEW_PATIENTS
    ),
    "more pairs than there are classes": Attempt(
        lambda _: pairs(0, 11, 0, 0, 10, 11), lambda _: pairs(0, 11, 0, 0, 10, 11, BORN), NOT_ALLOWED, "pairs"
    ),
    "a pair below nothing": Attempt(
        lambda _: pairs(0, 11, 0, 0, 10, 11), lambda _: replace(pairs(0, 11, 0, 0, 10, 11),
        cells=pairs(0, 11, 0, 0, 10, 11).cells.with_columns(count=pl.lit(-BORN))), NOT_ALLOWED, "counts.counts is not"
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempt", COUNTS.values(), ids=COUNTS)
def test_by_counts(tmp_path: Path, attempt: Attempt) -> None:
    attempt.check(tmp_path)


def test_by_rare_categories_and_cells_of_one_patient(tmp_path: Path) -> None:
    """Held back, their names too, and the log says how many; the counts of many patients beside them leave."""
    rare = counted(("sex", "value", NAME, 1, 1), ("age", "4 digits", "1.931e+03", 9, 9))
    told = answer(door(tmp_path), ASKED, question(), lambda: rare)
    names = str(told.content.config_records["cells"]["cells"])
    assert "Female" in names and NAME not in names and "1.931e+03" not in names
    assert len(told.content.array_records["counts"]["counts"].numpy()) == len(CELLS)
    single = answer(door(tmp_path), ASKED, question(), lambda: pairs(1, 11, 9, 0, 10, 11))
    assert single.content.array_records["counts"]["counts"].numpy().tolist() == [0, 11, 0, 0, 10, 11]
    assert [entry["detail"] for entry in entries(tmp_path)] == ["2 of 6 counts held back", "2 of 6 counts held back"]


def uploaded(folder: Path, **changes: Any) -> Uploaded:
    moved = {"direction": "up", "site": "north", "study": ASKED.study, "run": "a-run", "round": 3, "sha256": "f" * 64}
    return Uploaded(Outbox(folder / "outbox"), Transfer(**(moved | changes)), Channel(None, folder, None, None))


@pytest.mark.parametrize(
    "changes", [{"site": "mrs-example"}, {"run": "mrs-example-1931-04-02"}, {"round": BORN}, {"study": f"{BORN}" * 8}]
)
def test_by_what_opens_an_upload(tmp_path: Path, changes: dict[str, Any]) -> None:
    told = answer(door(tmp_path), ASKED, question(), lambda: uploaded(tmp_path, **changes))
    check_refused(tmp_path, told, NOT_ALLOWED, "does not answer")


def test_by_a_shard_of_what_never_passed(tmp_path: Path) -> None:
    waiting = trained(tmp_path)
    for sha256, number, code in (
        (waiting.manifest.sha256, 0, PAYLOAD_MISSING),
        ("../../errors.log", 0, BAD_REQUEST),
        (NAME, 0, BAD_REQUEST),
    ):
        handed = Handed(waiting.outbox, sha256, number)
        check_refused(tmp_path, answer(door(tmp_path), ASKED, question(), lambda handed=handed: handed), code)
    # Its honest twin passes this rule, and stops where the update is missing.
    missing = answer(door(tmp_path / "honest"), ASKED, question(), lambda: uploaded(tmp_path / "honest"))
    check_refused(tmp_path / "honest", missing, PAYLOAD_MISSING)


def yesterday() -> dict[str, Any]:
    return {ASKED.study: (datetime.now(UTC) - timedelta(days=1)).date()}


@pytest.mark.parametrize("make", [configured, evaluated, counted, lambda: Held(1, 2), lambda: Acknowledged(3)])
def test_by_a_study_that_is_not_approved_or_no_longer(tmp_path: Path, make: Callable[[], Reply]) -> None:
    other = replace(ASKED, study="6" * 64)
    check_refused(tmp_path, answer(door(tmp_path), other, question(), make), NOT_APPROVED)
    ended = door(tmp_path / "ended", until=yesterday())
    check_refused(tmp_path / "ended", answer(ended, ASKED, question(), make), APPROVAL_ENDED)
    today = {ASKED.study: datetime.now(UTC).date()}
    assert answer(door(tmp_path / "today", until=today), ASKED, question(), make).has_content()


def test_by_many_answers_to_one_round(tmp_path: Path) -> None:
    """Each from a model that the coordinator chose, they would tell together what one does not."""
    for right in range(MOST_ANSWERS):
        told = answer(door(tmp_path), ASKED, question(), lambda right=right: evaluated(right=right))
        assert told.has_content()
    again = answer(door(tmp_path), ASKED, question(), lambda: evaluated(right=2))
    assert again.has_content(), "the same answer may leave as often as it is asked for"
    ninth = answer(door(tmp_path), ASKED, question(), lambda: evaluated(right=20))
    check_refused(tmp_path, ninth, TOO_MANY_ANSWERS)
    assert answer(door(tmp_path), replace(ASKED, round=4), question(), lambda: evaluated(round=4)).has_content()


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (("feature", f"Sex\npatients: {BORN}\nname: {NAME}", 20, 20), NOT_ALLOWED),
        (("feature", f"Notes, such as {NAME}, {DAY}" * 9, 20, 20), NOT_ALLOWED),
        ((DAY, "Sex", 20, 20), NOT_ALLOWED),
    ],
)
def test_by_a_summary_for_others(tmp_path: Path, row: tuple[str, str, int, int], code: int) -> None:
    def summary(*rows: tuple[str, str, int, int]) -> Summarised:
        schema = ["what", "name", "count", "patients"]
        return Summarised(20, pl.DataFrame([("feature", "Age", 19, 19), *rows], schema=schema, orient="row"))

    place = tmp_path / "summary.txt"
    with pytest.raises(UserError) as refused:
        share(door(tmp_path), "", summary(row), place)
    assert not place.exists() and entries(tmp_path)[-1]["detail"].startswith(f"{code}: ")
    assert not [secret for secret in SECRETS if secret in str(refused.value)]
    share(door(tmp_path), "", summary(), place)
    assert "Age: 10 patients" in place.read_text(), "a count is rounded down to a multiple of the minimum"


NOTED = Progress(ASKED.study, "a-run", 3, 2, 5, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "mrs-example-1931-04-02"},
        {"run": f"{NAME}"},
        {"study": f"{BORN}" * 8},
        {"study": NAME},
        {"steps": BORN},
        {"step": 6},
        {"round": BORN},
        {"step": 2.19310402},
    ],
    ids=str,
)
def test_by_a_note_of_progress(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "state" / "studies" / ASKED.study
    (folder / "runs" / "a-run").mkdir(parents=True)
    (folder / "study.json").write_text('{"study": {"rounds": {"rounds": 4, "local_steps": 5}}}')
    assert beat_of(door(tmp_path), NOTED) is not None
    assert beat_of(door(tmp_path), replace(NOTED, **changes)) is None
    last = entries(tmp_path)[-1]
    assert last["kind"] == "Refused" and last["detail"][:4] in (str(NOT_ALLOWED), str(NOT_APPROVED))
    assert not [secret for secret in SECRETS if secret in (tmp_path / "state" / "audit.jsonl").read_text()]
