import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks._variants import Variants, ratios, table
from benchmarks.drift import updates
from benchmarks.noniid import PLAIN, VARIANTS, chosen_study, named_variants, with_changes
from common.errors import UserError
from common.study import Study, parse_study
from common.update.tensors import sha256
from server.round_store import RoundStore


def quick_study(rounds: int | None = None) -> Study:
    return chosen_study(quick=True, rounds=rounds, test_questions=None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_its_own_settings_and_nothing_else(variant):
    plain, changed = quick_study().canonical(), with_changes(quick_study(), variant).canonical()
    different = {(t, s) for t in ("rounds", "update") for s in changed[t] if changed[t][s] != plain[t][s]}
    assert different == {(t, s) for t, settings in VARIANTS[variant].items() for s in settings}
    assert {t for t in changed if changed[t] != plain[t]} == set(VARIANTS[variant])


def test_a_folder_of_another_study_is_refused(tmp_path):
    Variants({PLAIN: quick_study()}, tmp_path, tmp_path, [1]).run(PLAIN)
    with pytest.raises(UserError, match="another study"):
        Variants({PLAIN: quick_study(rounds=3)}, tmp_path, tmp_path, [1]).run(PLAIN)


def test_fedavg_is_always_compared_with():
    assert named_variants(quick=False, only="int8,patients") == [PLAIN, "patients", "int8"]
    with pytest.raises(UserError, match="no such variant"):
        named_variants(quick=False, only="fedsgd")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_study: dict[str, Any], tiny_model: Path) -> Variants:
    sites = Path(__file__).parents[2] / "site_configs" / "synthetic"
    values = tiny_study | {
        "model": {"base": str(tiny_model)},
        "sites": {"train": ["synthetic-north", "synthetic-south"], "unseen": ["synthetic-unseen-1"]},
        "simulation": {"site_configs": str(sites)},
        # Slow enough that after a round groups still differ in their rewards.
        "grpo": tiny_study["grpo"] | {"learning_rate": 1e-3, "group_size": 8},
    }
    folder, study = tmp_path_factory.mktemp("noniid"), parse_study(values, "small")
    studies = {name: with_changes(study, name) for name in (PLAIN, "nesterov")}
    variants = Variants(studies, folder / "runs", folder / "cache", [1])
    variants.play_all()
    return variants


def test_what_is_finished_is_not_run_again(played):
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in played.folder.rglob("*.*") if path.name != "study.toml"}

    before = files()
    played.play_all()
    assert files() == before
    assert {path.name for path in before} >= {"round-0001.json", "held_out.parquet", "unseen_sites.parquet"}


def test_differences_are_paired_with_fedavg(played):
    found = played.compared()
    assert set(found) == {"base", PLAIN, "nesterov"}
    for split, figures in found["nesterov"].items():
        difference = figures["accuracy"] - found[PLAIN][split]["accuracy"]
        assert figures["paired"]["difference"] == pytest.approx(difference)
    assert len(table(found, "FedAvg").splitlines()) == 2 + 2 * len(found)
    assert json.loads(json.dumps(ratios(found)))["fedavg_held_out"] == found[PLAIN]["held_out"]["accuracy"]


def test_variants_of_a_seed_start_alike_and_end_apart(played):
    stores = [RoundStore(played.run(variant).arm(1, "federated")) for variant in (PLAIN, "nesterov")]
    first, last = ([sha256(store.load(number).model) for store in stores] for number in (0, 1))
    assert first[0] == first[1]
    assert last[0] != last[1]
    assert len(played.validation("nesterov", 1)) == 2


def test_drift_goes_on_from_the_last_round(played):
    folder = played.run(PLAIN)
    made = updates(folder, folder.study().with_seed(1))
    assert made.shape[:2] == (2, 2)
    assert (abs(made).sum(axis=2) > 0).all()
    assert (made[:, 0] != made[:, 1]).any(axis=1).all(), "the draws of a site are not the same"
