"""Which versions of the software that decides numbers, or has to talk to its like, are installed here."""

from importlib.metadata import version

PACKAGES = ("wardround", "flwr", "torch", "transformers", "trl", "peft", "polars", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Package -> version."""
    return {name: version(name) for name in PACKAGES}
