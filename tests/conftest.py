"""Settings that hold for every test: nothing is looked up outside this machine, and nothing is left to chance."""

import os

# Before anything imports flwr or huggingface_hub: both read these at import.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from benchmarks._tiny import TINY, answering_model

# The same examples each time, so that what is tested is the change and not the draw. Others are searched for with
# `pytest --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny_study() -> dict[str, Any]:
    """Values of a study that takes seconds; `sites` is for the test to name."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_study: dict[str, Any]) -> Path:
    """Folder of a model of the built-in one's kind, 1 layer of 32, that answers every question with some letter."""
    return answering_model(tmp_path_factory.mktemp("tiny-model"), tiny_study, hidden=32)
