"""What this hospital permits. It comes from the site's own file, never from a message."""

import re
from typing import Annotated

from pydantic import Field

from common.strict import Strict
from common.study import Study

MINIMUM_PATIENTS = 10
"""Smallest number of patients behind a figure that may leave, unless the site's file says otherwise."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Policy(Strict):
    approve_all: bool = False
    """Every study is approved: for simulations, where the coordinator and the hospitals are one person."""
    approved: tuple[Hash, ...] = ()
    """SHA-256 of the studies that were read and approved (`wardround plan STUDY` prints it)."""
    minimum_patients: int = Field(default=MINIMUM_PATIENTS, ge=1)
    tell_progress: bool = True
    """Whether the coordinator hears how many local steps are done while this site trains."""
    max_epsilon: float | None = Field(default=None, gt=0)
    """What a private study may cost its patients here; what the approved study plans as a whole unless given."""


class Refusal(Exception):
    """The site says no. `code` is one of `client.egress.REFUSALS`; nothing else about the cause leaves."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


NOT_APPROVED = 1001
NOT_THE_STUDY = 1002
TOO_FEW_PATIENTS = 1003
BAD_REQUEST = 1004
NOT_CONFIGURED = 1005
BAD_MODEL = 1006
SITE_CONFIGURATION = 1007
INTERNAL = 1008
BAD_CODEBOOK = 1009
JOB_OUT_OF_MEMORY = 1010
JOB_ENDED = 1011
RUN_REMOVED = 1012
BUDGET_SPENT = 1020
LEDGER_BROKEN = 1021

BULK_FAILED = 1013

RUN_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,99}$")


def check_study(policy: Policy, study: Study, claimed: str) -> None:
    """Refuse a study whose hash is not what was claimed, or that this site has not approved.

    Raises:
        Refusal: NOT_THE_STUDY or NOT_APPROVED.
    """
    if study.hash != claimed:
        raise Refusal(NOT_THE_STUDY)
    if not policy.approve_all and study.hash not in policy.approved:
        raise Refusal(NOT_APPROVED)


def check_patients(policy: Policy, patients: int) -> None:
    """Refuse a figure with too few patients behind it.

    Raises:
        Refusal: TOO_FEW_PATIENTS.
    """
    if patients < policy.minimum_patients:
        raise Refusal(TOO_FEW_PATIENTS)


def check_run_name(name: str) -> str:
    """A run's name becomes a folder at the site, so it must be a plain name.

    Raises:
        Refusal: BAD_REQUEST.
    """
    if not RUN_NAME.fullmatch(name):
        raise Refusal(BAD_REQUEST)
    return name
