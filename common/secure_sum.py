"""The `[secure_sum]` table of a study: the coordinator learns the sum of the sites' updates and no single one.

The protocol is `common/update/secagg.py`, the encoding `common/update/fixed_point.py`. A weighted mean is a sum too:
each site multiplies its update by its weight w_i / `largest_weight` before it encodes it, and the coordinator, which is
told the weights, divides by their sum.
"""

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, field_validator

from common.errors import UserError
from common.federation import Mean
from common.keys import parse_public_key
from common.strict import Positive, Strict
from common.update.fixed_point import FixedPoint
from common.update.secagg import Session

if TYPE_CHECKING:
    from common.study import Study

STEPS = ("difference", "clip")
COUNTED = ("patients", "questions")
"""Weights that are whole numbers, fixed before the first round."""
ROUNDING = 1e-6
"""Share by which a clipped update's largest value may lie above the norm, from float32."""


class SecureSum(Strict):
    threshold: Positive
    """Sites whose shares open a sum: more than half of the training sites. Fewer than 2 threshold - sites of them, in
    league with the coordinator, cannot have two different sums opened."""
    minimum: int = Field(default=3, ge=3)
    """Sites that a sum must be of; with fewer, nothing is opened."""
    largest_weight: Positive | None = None
    """No site has more patients (or questions) than this, where `rounds.weights` goes by them."""
    keys: dict[str, str] = {}
    """Training site -> its site.pub, one line. May be left out to simulate; a real site refuses a study without."""

    @field_validator("keys")
    @classmethod
    def keys_are_keys(cls, keys: dict[str, str]) -> dict[str, str]:
        for site, line in keys.items():
            try:
                parse_public_key(line.encode())
            except ValueError as fault:
                raise ValueError(
                    f"the entry of site {site!r} is {fault}; paste the line of the site.pub that "
                    "`wardround-site keygen` made"
                ) from None
        return keys

    @property
    def needed(self) -> int:
        """Sites that a sum must be of for it to be opened."""
        return max(self.threshold, self.minimum)

    def identities(self) -> dict[str, ec.EllipticCurvePublicKey]:
        return {site: parse_public_key(line.encode()) for site, line in self.keys.items()}


def session_of(study: "Study", run: str, round: int, attempt: int) -> Session:
    assert study.secure_sum is not None
    sites = tuple(sorted(study.sites.train))
    return Session(study.hash, run, round, attempt, sites, study.secure_sum.threshold)


def coding_of(study: "Study") -> FixedPoint:
    """No value of a clipped update lies beyond the norm, and no weight above 1."""
    assert study.update.clip_norm is not None
    return FixedPoint(study.update.clip_norm * (1 + ROUNDING), len(study.sites.train))


def weight_of(study: "Study", figures: dict[str, float]) -> float:
    """What a site multiplies its update by: 1, or its number of patients (or questions) over the largest.

    Args:
        figures: of the site's training; none are needed for uniform weights.
    """
    assert study.secure_sum is not None
    largest = study.secure_sum.largest_weight
    return 1.0 if largest is None else figures[study.rounds.weights] / largest


def check_weight(study: "Study", figures: dict[str, float]) -> None:
    """Raises: UserError: the site weighs more than the study has room for."""
    if weight_of(study, figures) > 1.0:
        assert study.secure_sum is not None
        raise UserError(
            f"This site has {figures[study.rounds.weights]} {study.rounds.weights}, more than "
            f"secure_sum.largest_weight = {study.secure_sum.largest_weight}.",
            "Raise it in the study.",
        )


def check_summable(study: "Study") -> None:
    """Refuse what cannot be computed from the sum of the sites' updates, and numbers of sites that protect nobody.

    Raises:
        ValueError: the setting, its value and the remedy.
    """
    spec, rounds, update = study.secure_sum, study.rounds, study.update
    assert spec is not None
    number, keyed = len(study.sites.train), sorted(spec.keys)
    counted = rounds.weights in COUNTED
    found = [
        (number < 3, f"sites.train names {number}: of two sites' sum each knows the other's part; name three at least"),
        (2 * spec.threshold <= number, f"secure_sum.threshold is {spec.threshold}: half of {number} sites or fewer "
         f"could open two sums whose difference is one site's update; set it to {number // 2 + 1} at least"),
        (spec.threshold > number, f"secure_sum.threshold is {spec.threshold}, more than the {number} training sites; "
         "lower it"),
        (spec.minimum > number, f"secure_sum.minimum is {spec.minimum}, more than the {number} training sites; "
         "lower it"),
        (study.quorum < spec.needed, f"a round may have {study.quorum} updates (rounds.quorum), but no sum of fewer "
         f"than {spec.needed} is opened; raise rounds.quorum"),
        (update.steps != STEPS, f"update.steps is {list(update.steps)}, which cannot be summed or has values without "
         "a bound; set ['difference', 'clip'], whose clip_norm sizes the whole numbers"),
        (rounds.fold != Mean(), f"rounds.fold is {rounds.fold.model_dump(exclude_none=True)}, which needs each "
         "site's own update; set {name = 'mean'}"),
        (study.model.factors_apart, f"model.lora.average {study.model.lora.average!r} is not linear in what sites "
         "send; set 'frozen-a' or 'alternating'"),
        (rounds.weights == "informative", "rounds.weights 'informative' is not known before the round, so the sum's "
         "error would have no bound; set 'uniform', 'patients' or 'questions'"),
        (counted and spec.largest_weight is None, f"rounds.weights is {rounds.weights!r} but "
         "secure_sum.largest_weight is not given, which bounds what a site multiplies its update by; give it"),
        (not counted and spec.largest_weight is not None, f"secure_sum.largest_weight is given but rounds.weights is "
         f"{rounds.weights!r}; take it out"),
        (bool(keyed) and keyed != sorted(study.sites.train), f"secure_sum.keys names {keyed}, sites.train "
         f"{sorted(study.sites.train)}; give the key of each training site and no other"),
        (len({tuple(line.split()[:2]) for line in spec.keys.values()}) < len(keyed), "secure_sum.keys has one key "
         "twice; a site has a key of its own"),
    ]  # fmt: skip
    for wrong, why in found:
        if wrong:
            raise ValueError(f"the study has [secure_sum], but {why}")
