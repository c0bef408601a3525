import tomllib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.approval import approve, expected, with_approvals
from client.site import read_site
from common.errors import UserError

ONE, TWO = "1" * 64, "2" * 64
SITE = """
site = "somewhere"   # the hospital's name
patient = "id"

[table]
source = "csv"
path = "patients.csv"

[[features]]
column = "age"
name = "Age"
section = "Patient"
kind = "number"

[[features]]
column = "sex"
name = "Sex"
section = "Patient"
kind = "category"
"""
POLICY = "\n[client.policy]  # signed off by the data protection officer\nminimum_patients = 20\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


@pytest.mark.parametrize("more", ["", POLICY, POLICY + f'approved = [\n  "{ONE}", # spring\n]\n'])
def test_an_approval_is_added_and_the_rest_stays(config: Path, more: str) -> None:
    config.write_text(SITE + more)
    before = read_site(config, config.parent)
    assert approve(config, TWO)
    after = read_site(config, config.parent)
    assert after.settings.policy.approved == (*before.settings.policy.approved, TWO)
    assert after.settings.policy.minimum_patients == before.settings.policy.minimum_patients
    assert after.registry == before.registry
    assert "# the hospital's name" in config.read_text()


ENDING = f'{POLICY}approved = ["{ONE}"]\n[client.policy.until]\n{ONE} = 2030-01-01\n'


@pytest.mark.parametrize("more", ["", POLICY, ENDING])
def test_an_approval_may_end(config: Path, more: str) -> None:
    config.write_text(SITE + more)
    before = read_site(config, config.parent).settings.policy
    assert approve(config, TWO, date(2031, 12, 31))
    after = read_site(config, config.parent).settings.policy
    assert after.until == before.until | {TWO: date(2031, 12, 31)}
    assert after.approved == (*before.approved, TWO)


def test_twice_is_once(config: Path) -> None:
    assert approve(config, ONE)
    text = config.read_text()
    assert not approve(config, ONE)
    assert config.read_text() == text


def test_the_files_mode_is_kept(config: Path) -> None:
    config.chmod(0o640)
    approve(config, ONE)
    assert config.stat().st_mode & 0o777 == 0o640


def test_no_safe_place_is_refused_and_nothing_is_written(config: Path) -> None:
    text = SITE + "\n[client]\npolicy = { minimum_patients = 20 }\n"
    config.write_text(text)
    with pytest.raises(UserError, match="without touching something else"):
        approve(config, ONE)
    assert config.read_text() == text


@given(st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=4, unique=True))
def test_what_is_written_is_what_is_read(digests: list[str]) -> None:
    for text in (SITE, SITE + POLICY):
        approved = tuple(digests)
        assert tomllib.loads(with_approvals(text, approved)) == expected(tomllib.loads(text), approved)
