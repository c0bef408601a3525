import numpy as np
import pytest

from benchmarks.drift import parts_of


def made_up(shared: float, own: float, chance: float) -> np.ndarray:
    """Updates of 8 sites, two draws each, whose parts have these mean squared lengths."""
    rng = np.random.default_rng(1)
    weights = 20_000

    def part(square: float, *shape: int) -> np.ndarray:
        return rng.normal(size=(*shape, weights)) * (square / weights) ** 0.5

    return part(shared, 1, 1) + part(own, 8, 1) + part(chance, 8, 2)


@pytest.mark.parametrize("truth", [(0.2, 0.1, 0.7), (0.5, 0.5, 0.0), (0.3, 0.0, 0.7), (0.0, 0.0, 1.0)])
def test_the_parts_of_an_update_are_told_apart(truth):
    found = parts_of(made_up(*truth))
    assert (found.shared, found.own, found.chance) == pytest.approx(truth, abs=0.02)


def test_the_parts_add_up():
    found = parts_of(np.random.default_rng(2).normal(size=(3, 2, 5)))
    assert found.shared + found.own + found.chance == pytest.approx(1.0)
