"""A study small enough to run in a test: two synthetic hospitals, an unseen one, the tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.questions.codebook_file import to_toml
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study
from common.tasks.site_questions import own_codebook

REGISTRY = Path(__file__).parents[2] / "site_configs" / "synthetic" / "_registry.toml"
SITES = {"a": 120, "b": 90, "elsewhere": 60}


@pytest.fixture(scope="session")
def small_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site files."""
    folder = tmp_path_factory.mktemp("sites")
    for seed, (site, patients) in enumerate(SITES.items(), start=1):
        text = f'extends = "{REGISTRY}"\nsite = "{site}"\n[synthetic]\npatients = {patients}\nseed = {seed}\n'
        (folder / f"{site}.toml").write_text(text)
    return folder


@pytest.fixture
def small_study(small_sites: Path, tiny_model: Path) -> Callable[..., Study]:
    """A study over the small sites; keyword arguments replace whole tables."""

    def make(**tables: object) -> Study:
        values = {
            "name": "small",
            "sites": {"train": ["a", "b"], "unseen": ["elsewhere"]},
            "model": {"base": str(tiny_model)},
            "questions": {"ask": ["category"], "per_patient": 2},
            "grpo": {"group_size": 2, "prompts_per_step": 4, "max_completion_tokens": 4, "learning_rate": 1e-2},
            "rounds": {"rounds": 2, "local_steps": 2, "validation_patients": 12, "deadline_s": 60},
            "evaluation": {"patients_per_site": 15, "questions_per_patient": 2, "bootstrap": 100,
                           "max_completion_tokens": 4},
            "simulation": {"site_configs": str(small_sites), "workers": 1},
        }  # fmt: skip
        return parse_study(values | tables, "test")

    return make


@pytest.fixture
def public_codebook(small_study: Callable[..., Study], small_sites: Path, tmp_path: Path) -> dict[str, str]:
    """A codebook file made from the hospital that takes no part, as keys of a study's `[questions]`."""
    codebook = own_codebook(load_registry(read_registry_config(small_sites / "elsewhere.toml")), small_study())
    path = tmp_path / "codebook.toml"
    path.write_text(to_toml(codebook))
    return {"codebook": str(path), "codebook_sha256": codebook.hash}
