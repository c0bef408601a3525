"""What a site counts for a common codebook, and what of it passes the door."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import policy
from client.app import app
from common.questions.common_codebook import fit_columns, layout_of
from common.questions.counts import count_values
from common.questions.joint import Binning, Layout
from common.registry.config import read_registry_config
from common.registry.registry import Registry, load_registry
from common.study import Study, parse_study
from common.tasks.site_questions import training_rows

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"
MINIMUM = 12


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def context(tmp_path: Path) -> Context:
    path = tmp_path / "a.toml"
    path.write_text(
        f'extends = "{REGISTRY}"\nsite = "a"\n[synthetic]\npatients = 150\nseed = 1\n'
        f"[client.policy]\nminimum_patients = {MINIMUM}\n"
    )
    node = {"site-config": str(path), "state-dir": str(tmp_path / "state"), "approve-all": True}
    return Context(1, 2, node, RecordDict(), {})


def study(codebook: str = "federated", train: str = "a") -> Study:
    questions = {"codebook": codebook}
    values = {"name": "s", "sites": {"train": [train]}, "model": {"base": "x"}, "questions": questions}
    return parse_study(values, "test")


def ask(context: Context, wanted: Study, layout: str | None = None) -> Message:
    content = RecordDict({"study": ConfigRecord({"json": wanted.message, "hash": wanted.hash})})
    if layout is not None:
        content["layout"] = ConfigRecord({"json": layout})
    message = Message(content, 2, "query.count")
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, context)


def counts(reply: Message) -> np.ndarray:
    return reply.content.array_records["counts"]["counts"].numpy()


def registry_of(context: Context) -> Registry:
    return load_registry(read_registry_config(Path(str(context.node_config["site-config"]))))


def layout_for(context: Context) -> Layout:
    registry = registry_of(context)
    rows = training_rows(registry, study())
    cells = count_values(rows, registry.features, 1).drop("patients")
    return layout_of(cells, registry.features, fit_columns(cells, registry.features))


def test_a_value_of_few_patients_leaves_neither_its_count_nor_its_name(context: Context) -> None:
    reply = ask(context, study())
    names = json.loads(str(reply.content.config_records["cells"]["cells"]))
    registry = registry_of(context)
    found = count_values(training_rows(registry, study()), registry.features, MINIMUM)
    rare = found.filter(found["patients"] < MINIMUM).select("quantity", "what", "cell").rows()
    assert rare and not {tuple(name) for name in names} & set(rare)
    assert len(names) == len(counts(reply)) == found.height - len(rare)
    assert counts(reply).dtype == np.int64


def test_a_pair_of_few_patients_leaves_as_nothing(context: Context) -> None:
    layout = layout_for(context)
    reply = ask(context, study(), layout.model_dump_json())
    found = counts(reply)
    assert len(found) == layout.pairs.sum()
    assert found.max() > MINIMUM and not ((found > 0) & (found < MINIMUM)).any()


def test_features_leave_without_raw_codes(context: Context) -> None:
    texts = ask(context, study()).content.config_records["cells"]
    features = json.loads(str(texts["features"]))
    assert [f["column"] for f in features] == [f.column for f in registry_of(context).features]
    assert not any({"values", "missing", "clean"} & set(f) for f in features)


def test_asked_again_a_site_says_the_same_after_an_admission(context: Context, tmp_path: Path) -> None:
    first = ask(context, study())
    path = tmp_path / "a.toml"
    path.write_text(path.read_text().replace("patients = 150", "patients = 151"))
    again = ask(context, study())
    assert np.array_equal(counts(first), counts(again))


def test_other_classes_for_the_pairs_are_refused(context: Context) -> None:
    layout = layout_for(context)
    assert not ask(context, study(), layout.model_dump_json()).has_error()
    place = next(i for i, b in enumerate(layout.binnings) if b.cuts)
    moved = layout.binnings[place].model_copy(update={"cuts": tuple(c + 0.5 for c in layout.binnings[place].cuts)})
    other = Layout(binnings=(*layout.binnings[:place], moved, *layout.binnings[place + 1 :]))
    assert ask(context, study(), other.model_dump_json()).error.code == policy.BAD_REQUEST
    assert np.array_equal(
        counts(ask(context, study(), layout.model_dump_json())), counts(ask(context, study(), layout.model_dump_json()))
    )


@pytest.mark.parametrize("wanted", [study(codebook="site"), study(train="b")])
def test_a_study_that_has_no_use_for_counts_gets_none(context: Context, wanted: Study) -> None:
    assert ask(context, wanted).error.code == policy.BAD_REQUEST


@pytest.mark.parametrize(
    "layout",
    [
        "no JSON",
        '{"binnings": [{"quantity": "age", "cuts": [2.0, 1.0]}]}',
        json.dumps({"binnings": [{"quantity": "age", "cuts": [i / 10 for i in range(400)]}]}),
        '{"binnings": [{"quantity": "age", "buckets": 1000}]}',
    ],
)
def test_classes_that_are_none_or_too_fine_are_refused(context: Context, layout: str) -> None:
    assert ask(context, study(), layout).error.code == policy.BAD_REQUEST


def test_the_audit_log_says_how_much_was_held_back(context: Context, tmp_path: Path) -> None:
    ask(context, study())
    entry = json.loads((tmp_path / "state" / "audit.jsonl").read_text().splitlines()[-1])
    assert entry["kind"] == "Counted" and entry["detail"].endswith("counts held back")


def test_classes_of_a_quantity_are_one_kind() -> None:
    with pytest.raises(ValueError, match="three ways"):
        Binning(quantity="x", values=("a",), buckets=3)
