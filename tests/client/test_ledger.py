"""The privacy ledger: charged before anything is released, once a round, never forgotten, never beyond the limit."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ledger import Charge, charge, charges, planned, spent
from client.policy import BUDGET_SPENT, LEDGER_BROKEN, Refusal
from common.study import Study, parse_study

PRIVACY = {"clip": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.02, "patients_per_step": 8, "accountant": "rdp"}
CODEBOOK = {"codebook": "book.toml", "codebook_sha256": "a" * 64}


def study_of(rounds: int = 4, **privacy: object) -> Study:
    values = {
        "name": "private",
        "sites": {"train": ["north"], "public": ["open"]},
        "questions": CODEBOOK,
        "rounds": {"rounds": rounds, "local_steps": 5, "validation_patients": 0},
        "privacy": {**PRIVACY, **privacy},
    }
    return parse_study(values, "test")


STUDY = study_of()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), st.integers(1, 2), st.sampled_from("ab")), max_size=6))
def test_what_is_spent_is_what_was_charged_once_each(asked: list[tuple[str, int, str]]) -> None:
    assert STUDY.privacy is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        done: list[tuple[str, int, str]] = []
        for run, number, model in asked:
            again = (run, number, model) in done
            expected = STUDY.privacy.epsilon(5 * (len(done) + (not again)))
            if not again and expected > planned(STUDY):
                with pytest.raises(Refusal) as refused:
                    charge(path, STUDY, run, number, model, None)
                assert refused.value.code == BUDGET_SPENT
                continue
            told = charge(path, STUDY, run, number, model, None)
            if not again:
                done.append((run, number, model))
                assert told == expected
            assert spent(path, STUDY.hash) == STUDY.privacy.epsilon(5 * len(done))
        assert [(one.run, one.round, one.occasion) for one in charges(path)] == done


def test_a_study_cannot_spend_more_than_it_planned_and_a_site_can_set_less(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for number in range(1, 5):
        charge(path, STUDY, "run", number, "a", None)
    assert spent(path, STUDY.hash) == planned(STUDY)
    for limit in (None, planned(STUDY)):
        with pytest.raises(Refusal):
            charge(path, STUDY, "run", 5, "a", limit)
    charge(path, STUDY, "run", 5, "a", 2 * planned(STUDY))
    with pytest.raises(Refusal):
        charge(tmp_path / "other.jsonl", STUDY, "run", 1, "a", 1e-6)
    assert charges(tmp_path / "other.jsonl") == []


def test_studies_are_charged_apart(tmp_path: Path) -> None:
    path, other = tmp_path / "ledger.jsonl", study_of(rounds=3)
    first = charge(path, STUDY, "run", 1, "a", None)
    assert charge(path, other, "run", 1, "a", None) == first
    assert spent(path, STUDY.hash) == spent(path, other.hash) == first


@pytest.mark.parametrize("change", ["lower", "remove", "swap"])
def test_a_changed_ledger_is_found_and_nothing_more_is_charged(tmp_path: Path, change: str) -> None:
    path = tmp_path / "ledger.jsonl"
    for number in range(1, 4):
        charge(path, STUDY, "run", number, "a", None)
    lines = path.read_text().splitlines()
    if change == "lower":
        lines[1] = json.dumps({**json.loads(lines[1]), "steps": 0}, sort_keys=True)
    elif change == "remove":
        del lines[1]
    else:
        lines[0], lines[1] = lines[1], lines[0]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(Refusal) as refused:
        charge(path, STUDY, "run", 4, "a", None)
    assert refused.value.code == LEDGER_BROKEN


CHARGING = """
import sys
from pathlib import Path
from client.ledger import charge
from tests_study import STUDY
for number in range(1, 10_000):
    charge(Path(sys.argv[1]), STUDY, "run", number, "a", 1e9)
    print(number, flush=True)
"""


def test_killed_at_any_moment_no_charge_is_forgotten_and_none_is_doubled(tmp_path: Path) -> None:
    """What stands on the output was allowed to be released, so it must stand in the ledger."""
    path = tmp_path / "ledger.jsonl"
    program = CHARGING.replace(
        "from tests_study import STUDY",
        f"""
from common.study import parse_study
STUDY = parse_study({json.loads(STUDY.model_dump_json(exclude={"simulation"}, exclude_none=True))!r}, "test")
""",
    )
    told = 0
    for attempt in range(4):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(told + 3)]
            time.sleep(0.0007 * attempt)
            process.send_signal(signal.SIGKILL)
            seen += [int(line) for line in process.stdout.read().splitlines()]
        told = max(seen)
        kept = charges(path)
        assert [one.round for one in kept] == list(range(1, len(kept) + 1))
        assert told <= len(kept) <= told + 1
        assert isinstance(kept[-1], Charge) and kept[-1].epsilon > 0
