from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from common.grpo.noise import KEY_NAME, SECRET, derived_key, normals, site_secret, uniforms, write_secret

KEY = derived_key(b"s" * SECRET, "test")


def test_normal_numbers_are_standard_normal() -> None:
    numbers = normals(KEY, 200_000)
    assert kstest(numbers, "norm").pvalue > 1e-3
    assert abs(numbers.var() - 1.0) < 4 * np.sqrt(2 / len(numbers))


def test_uniform_numbers_are_uniform_and_never_0_or_1() -> None:
    numbers = uniforms(KEY, 200_000)
    assert chisquare(np.histogram(numbers, 64, (0, 1))[0]).pvalue > 1e-3
    assert 0.0 < numbers.min() and numbers.max() < 1.0


def test_each_patient_is_drawn_with_the_stated_probability() -> None:
    """As PatientTrainer draws: by the first uniform number of a key for each patient and step."""
    draws = np.array([[uniforms(derived_key(b"s" * SECRET, t, p), 3)[0] < 0.1 for p in range(50)] for t in range(300)])
    times = draws.sum(axis=0)
    assert chisquare(times).pvalue > 1e-3
    assert abs(draws.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / draws.size)


@given(
    st.lists(st.one_of(st.text(), st.integers()), max_size=3), st.lists(st.one_of(st.text(), st.integers()), max_size=3)
)
def test_other_purposes_have_other_keys(one: list[str | int], other: list[str | int]) -> None:
    secret = b"s" * SECRET
    assert (derived_key(secret, *one) == derived_key(secret, *other)) == (one == other)
    assert derived_key(secret, *one) != derived_key(b"t" * SECRET, *one)


def test_a_site_keeps_its_secret_to_itself(tmp_path: Path) -> None:
    secret = site_secret(tmp_path / "site")
    assert len(secret) == SECRET and secret == site_secret(tmp_path / "site")
    assert (tmp_path / "site" / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert secret != site_secret(tmp_path / "other")
    write_secret(tmp_path / "site", bytes(SECRET))
    assert site_secret(tmp_path / "site") == secret
    assert [path.name for path in (tmp_path / "site").iterdir()] == [KEY_NAME]
