"""The accountants' figures, and studies whose patients would not stand apart."""

from typing import Any

import pytest
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from common.errors import UserError
from common.privacy import Privacy
from common.study import parse_study

PRIVACY = Privacy(clip=1.0, noise_multiplier=1.0, sample_rate=1 / 32, patients_per_step=8, delta=1 / 5120)
VALUES: dict[str, Any] = {
    "name": "private",
    "sites": {"train": ["north"], "public": ["open"]},
    "questions": {"codebook": "book.toml", "codebook_sha256": "a" * 64},
    "rounds": {"validation_patients": 0},
    "privacy": {"clip": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.02, "patients_per_step": 8},
}


def test_epsilon_is_the_accountants() -> None:
    """At noise 1, q 1/32, 60 steps and delta 1/5120, PRV gave 1.3 elsewhere (Opacus 1.6)."""
    assert PRIVACY.epsilon(60) == pytest.approx(1.31, abs=0.02)
    loose = PRIVACY.model_copy(update={"accountant": "rdp"})
    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    rdp = compute_rdp(q=1 / 32, noise_multiplier=1.0, steps=60, orders=orders)
    assert loose.epsilon(60) == pytest.approx(get_privacy_spent(orders=orders, rdp=rdp, delta=1 / 5120)[0], rel=1e-6)
    assert loose.epsilon(60) > PRIVACY.epsilon(60)


def test_epsilon_grows_with_steps_and_falls_with_noise() -> None:
    assert PRIVACY.epsilon(0) == 0.0 < PRIVACY.epsilon(1) < PRIVACY.epsilon(60)
    assert PRIVACY.model_copy(update={"noise_multiplier": 2.0}).epsilon(60) < PRIVACY.epsilon(60)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grpo": {"loss_type": "dapo"}}, "grpo.loss_type 'dapo'"),
        ({"grpo": {"loss_type": "bnpo"}}, "grpo.loss_type 'bnpo'"),
        ({"grpo": {"dynamic_sampling": 1}}, "grpo.dynamic_sampling"),
        ({"grpo": {"groups_at_once": 4}}, "grpo.groups_at_once"),
        ({"curriculum": {"drop": ["never_right"]}}, "curriculum.drop"),
        ({"questions": {**VALUES["questions"], "per_site": 50}}, "questions.per_site"),
        ({"questions": {"codebook": "site"}}, "questions.codebook 'site'"),
        ({"questions": {"codebook": "federated"}}, "questions.codebook 'federated'"),
        ({"rounds": {"validation_patients": 0, "weights": "patients"}}, "rounds.weights 'patients'"),
        ({"rounds": {"validation_patients": 20}}, "rounds.validation_patients is 20"),
        ({"privacy": {**VALUES["privacy"], "noise_multiplier": 0.0}}, "noise_multiplier"),
        ({"privacy": {**VALUES["privacy"], "sample_rate": 1.5}}, "sample_rate"),
    ],
)
def test_what_would_mix_patients_or_leave_without_noise_is_refused(changed: dict[str, Any], named: str) -> None:
    assert parse_study(VALUES, "test").privacy is not None
    with pytest.raises(UserError, match=named):
        parse_study({**VALUES, **changed}, "test")


def test_a_study_without_privacy_keeps_its_hash() -> None:
    """Sites approve hashes: the table must not stand in those of studies that have none."""
    plain = parse_study({key: value for key, value in VALUES.items() if key != "privacy"}, "test")
    assert "privacy" not in plain.canonical()
