"""Training questions of one synthetic hospital and a study whose base model is the tiny one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from common.questions.site_questions import site_questions
from common.registry.config import read_registry_config
from common.registry.registry import load_registry
from common.study import Study, parse_study

SHIPPED = Path(__file__).parents[3] / "site_configs" / "synthetic" / "synthetic-north.toml"


@pytest.fixture(scope="session")
def make_study(tiny_study: dict[str, Any], tiny_model: Path) -> Callable[..., Study]:
    """A study over one site; keyword arguments go into its `grpo` table, `trainable` into `model`."""

    def make(trainable: str = "all", seed: int = 1, **grpo: Any) -> Study:
        values = {
            **tiny_study,
            "seed": seed,
            "sites": {"train": ["synthetic-north"]},
            "model": {"base": str(tiny_model), "trainable": trainable},
            "grpo": {**tiny_study["grpo"], **grpo},
            "rounds": {**tiny_study["rounds"], "rounds": 3},
        }
        return parse_study(values, "test")

    return make


@pytest.fixture(scope="session")
def questions(make_study: Callable[..., Study]) -> pl.DataFrame:
    return site_questions(load_registry(read_registry_config(SHIPPED)), make_study()).train.head(30)
