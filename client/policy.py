"""What this hospital permits. It comes from the site's own file, never from a message."""

import re
from datetime import UTC, date, datetime
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from common.keys import reviewer_key
from common.strict import Strict
from common.study import Study

MINIMUM_PATIENTS = 10
"""Smallest number of patients behind a figure that may leave, unless the site's file says otherwise."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def is_reviewer_key(line: str) -> str:
    reviewer_key(line)
    return line


ReviewerKey = Annotated[str, AfterValidator(is_reviewer_key)]
"""A line `ssh-ed25519 AAAA...`."""


class Policy(Strict):
    approve_all: bool = False
    """Every study is approved: for simulations, where the coordinator and the hospitals are one person."""
    approved: tuple[Hash, ...] = ()
    """SHA-256 of the studies that were read and approved (`wardround plan STUDY` prints it)."""
    until: dict[Hash, date] = {}
    """Approved study -> the last day (UTC) on which anything of it leaves; without an end unless given."""
    minimum_patients: int = Field(default=MINIMUM_PATIENTS, ge=1)
    tell_progress: bool = True
    """Whether the coordinator hears how many local steps are done while this site trains."""
    reviewers: dict[str, ReviewerKey] = {}
    """Name -> public key. Code runs here only if one of them has signed it; unsigned code too where none is named."""
    require_secure_sum: bool = False
    """Whether this site takes part only in studies whose coordinator learns the sum of the sites' updates alone."""
    max_epsilon: float | None = Field(default=None, gt=0)
    """What a private study may cost its patients here; what the approved study plans as a whole unless given."""

    @model_validator(mode="after")
    def ends_are_of_approvals(self) -> "Policy":
        if not self.approve_all and not set(self.until) <= set(self.approved):
            raise ValueError("until names a study that is not in approved; add it there or remove its date")
        return self


class Refusal(Exception):
    """The site says no. `code` is one of `client.egress.REFUSALS`; nothing else about the cause leaves.

    `rule` is for the site's own audit log: which rule was broken, in fixed words and never with a value.
    """

    def __init__(self, code: int, rule: str = "") -> None:
        super().__init__(f"{code} {rule}")
        self.code, self.rule = code, rule


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
NOT_ALLOWED = 1014
APPROVAL_ENDED = 1015
TOO_MANY_ANSWERS = 1016
LOG_CLOSED = 1017
DISK_FULL = 1018

SUM_REQUIRED = 1030
SUM_IDENTITY = 1031
SUM_KEYS = 1032
SUM_OLD = 1033
SUM_CHANGED = 1034
SUM_FEW = 1035

RUN_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,99}$")


def check_study(policy: Policy, study: Study, claimed: str) -> None:
    """Refuse a study whose hash is not what was claimed, or that this site has not approved.

    Raises:
        Refusal: NOT_THE_STUDY, NOT_APPROVED or APPROVAL_ENDED; SUM_REQUIRED for updates in clear where the site's
            policy has none.
    """
    if study.hash != claimed:
        raise Refusal(NOT_THE_STUDY)
    check_approved(policy, study.hash)
    if policy.require_secure_sum and study.secure_sum is None:
        raise Refusal(SUM_REQUIRED)


def check_approved(policy: Policy, digest: str) -> None:
    """Refuse a study that this site has not approved, or not for today.

    Args:
        digest: SHA-256 of the study.

    Raises:
        Refusal: NOT_APPROVED or APPROVAL_ENDED.
    """
    if not policy.approve_all and digest not in policy.approved:
        raise Refusal(NOT_APPROVED)
    last = policy.until.get(digest)
    if last is not None and datetime.now(UTC).date() > last:
        raise Refusal(APPROVAL_ENDED)


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
