"""The declared public cohort, and a study whose built-in model is small enough to build in a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.registry.config import read_registry_config
from common.registry.registry import Registry, load_registry
from common.study import Study, parse_study

SHIPPED = Path(__file__).parents[3] / "site_configs" / "synthetic" / "synthetic-public.toml"


@pytest.fixture(scope="session")
def public() -> Registry:
    return load_registry(read_registry_config(SHIPPED))


@pytest.fixture(scope="session")
def builtin_study(tiny_study: dict[str, Any]) -> Callable[..., Study]:
    """A study with the built-in model; keyword arguments go into `model.builtin`, `tables` replaces whole tables."""

    def make(tables: dict[str, Any] | None = None, **builtin: Any) -> Study:
        small = {"hidden": 16, "layers": 1, "heads": 2, "vocabulary": 400, "warmup_steps": 3, "warmup_batch": 4}
        values = {
            **tiny_study,
            "sites": {"train": ["somewhere"], "public": ["synthetic-public"]},
            "model": {"base": "built-in", "builtin": {**small, **builtin}},
        }
        return parse_study(values | (tables or {}), "test")

    return make
