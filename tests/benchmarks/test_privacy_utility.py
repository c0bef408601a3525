"""The rows of the privacy-utility table: what they share, what they differ in, and that they run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks._epsilon import with_epsilon
from benchmarks._variants import Variants, ratios, table
from benchmarks.privacy_utility import (
    EPSILONS,
    PLAIN,
    SETTINGS,
    chosen_study,
    larger_hospitals,
    rows,
    setting_of,
    with_public_codebook,
)
from common.privacy import Privacy
from common.registry.config import read_registry_config
from common.study import Study, parse_study, read_study

PRIVACY = Privacy(
    clip=0.1, noise_multiplier=1.0, sample_rate=0.04, patients_per_step=8, questions_per_patient=2, accountant="rdp"
)


@pytest.mark.parametrize("epsilon", [8, 3, 1])
def test_the_noise_is_the_least_that_keeps_the_epsilon(epsilon: int) -> None:
    found = with_epsilon(PRIVACY, 40, epsilon)
    less = found.model_copy(update={"noise_multiplier": found.noise_multiplier - 0.02})
    assert found.epsilon(40) <= epsilon < less.epsilon(40)


def test_private_rows_differ_in_privacy_alone(tmp_path: Path) -> None:
    plain = chosen_study(setting_of("synthetic", quick=True), tmp_path, quick=True, rounds=None)
    found = {name: study.canonical() for name, study in rows(plain, PRIVACY).items()}
    assert plain.grpo.prompts_per_step == 8 * SETTINGS["synthetic"].privacy.questions_per_patient
    noises = [found[f"epsilon-{epsilon}"].pop("privacy")["noise_multiplier"] for epsilon in EPSILONS]
    assert noises == sorted(noises) and len(set(noises)) == len(EPSILONS)
    assert all(study == found[PLAIN] for study in found.values())


def test_only_training_hospitals_are_larger(tmp_path: Path) -> None:
    study = read_study(Path(__file__).parents[2] / "studies" / "demo.toml")
    folder = larger_hospitals(study, tmp_path / "sites", 4000)
    for site in (*study.sites.train, *study.sites.unseen, *study.sites.public):
        shipped = read_registry_config(Path(study.simulation.site_configs) / f"{site}.toml")
        drawn = read_registry_config(folder / f"{site}.toml")
        assert shipped.synthetic is not None and drawn.synthetic is not None
        assert drawn.synthetic.patients == (4000 if site in study.sites.train else shipped.synthetic.patients)
        assert drawn.synthetic.seed == shipped.synthetic.seed


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_study: dict[str, Any], tiny_model: Path) -> Variants:
    sites = Path(__file__).parents[2] / "site_configs" / "synthetic"
    values = tiny_study | {
        "model": {"base": str(tiny_model), "trainable": "lora", "lora": {"rank": 1}},
        "sites": {"train": ["synthetic-north"], "unseen": ["synthetic-unseen-1"], "public": ["synthetic-public"]},
        "simulation": {"site_configs": str(sites)},
        "rounds": tiny_study["rounds"] | {"validation_patients": 0, "local_steps": 1},
    }
    folder = tmp_path_factory.mktemp("utility")
    studies = rows(with_public_codebook(parse_study(values, "small"), folder), PRIVACY)
    some = {name: studies[name] for name in (PLAIN, "epsilon-8")}
    variants = Variants(some, folder / "runs", folder / "cache", [1])
    variants.play_all()
    return variants


def ledgers(played: Variants, name: str) -> list[Path]:
    return sorted(played.folder.glob(f"{name}/**/ledger.jsonl"))


def test_a_private_row_is_charged_to_its_sites_ledgers_and_compared(played: Variants) -> None:
    assert not ledgers(played, PLAIN)
    (ledger,) = ledgers(played, "epsilon-8")
    study: Study = played.studies["epsilon-8"]
    assert study.privacy is not None
    assert json.loads(ledger.read_text().splitlines()[-1])["epsilon"] == study.privacy.epsilon(1)
    found = played.compared()
    assert found["epsilon-8"]["held_out"]["paired"]["seeds"] == [1]
    assert len(table(found, "no privacy").splitlines()) == 2 + 2 * 3
    assert ratios(found)["no-privacy_held_out"] == found[PLAIN]["held_out"]["accuracy"]
