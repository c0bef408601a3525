"""The `[privacy]` table of a study: differential privacy for each patient of a site, and what it costs.

The mechanism is the Gaussian one on Poisson-sampled patients (Abadi et al. 2016, arXiv 1607.00133), the neighbours are
registries that differ by one patient with everything that belongs to it. Epsilon is by Opacus's accountants.
"""

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.strict import Positive, Strict

if TYPE_CHECKING:
    from common.study import Study

ONE_PATIENT_AT_A_TIME = ("grpo", "dr_grpo")
"""Losses whose step is a sum over patients; the others divide by a number of tokens that all patients share."""


class Privacy(Strict):
    clip: float = Field(gt=0)
    """C: largest L2 norm of one patient's gradient in a step."""
    noise_multiplier: float = Field(ge=0.3)
    """sigma: the noise on a step's sum of gradients has the standard deviation sigma C. Less than 0.3 protects nobody,
    and the accountants do not bound it."""
    sample_rate: float = Field(gt=0, le=1)
    """q: probability with which each patient is drawn into a step."""
    patients_per_step: Positive
    """What a step's sum is divided by, whatever the number that was drawn; about q times a site's patients."""
    questions_per_patient: Positive = 1
    """Questions of a drawn patient in a step, fewer where it has fewer; the sum is divided by this number."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    accountant: Literal["prv", "rdp"] = "prv"

    def epsilon(self, steps: int) -> float:
        """After so many steps of a site. 0 before the first."""
        return accounted(self, steps) if steps else 0.0


@cache
def accounted(privacy: Privacy, steps: int) -> float:
    # Importing Opacus takes seconds, and most commands ask for no epsilon.
    from opacus.accountants import PRVAccountant, RDPAccountant

    accountant = PRVAccountant() if privacy.accountant == "prv" else RDPAccountant()
    accountant.history = [(privacy.noise_multiplier, privacy.sample_rate, steps)]
    return float(accountant.get_epsilon(privacy.delta))


def check_private(study: "Study") -> None:
    """Refuse what would make one patient's part in an update depend on another's, or leave without noise.

    Raises:
        ValueError: the setting, its value and the remedy.
    """
    grpo, questions, rounds = study.grpo, study.questions, study.rounds
    found = [
        (grpo.loss_type not in ONE_PATIENT_AT_A_TIME, f"grpo.loss_type {grpo.loss_type!r} divides by tokens of all "
         "patients together; set 'dr_grpo' or 'grpo'"),
        (grpo.dynamic_sampling > 0, "grpo.dynamic_sampling replaces questions by patients' values; set it to 0"),
        (grpo.groups_at_once is not None, "grpo.groups_at_once has no meaning where each patient is learned alone; "
         "remove it"),
        (study.curriculum.data_dependent, "curriculum.drop leaves out questions by patients' values; remove it"),
        (questions.per_site is not None, "questions.per_site keeps a patient's question or not by those of others; "
         "remove it"),
        (questions.codebook_file is None, f"questions.codebook {questions.codebook!r} is made from the patients "
         "themselves and stands behind every prompt; give a codebook file from public data"),
        (rounds.weights != "uniform", f"rounds.weights {rounds.weights!r} needs figures that leave without noise; set "
         "'uniform'"),
        (rounds.validation_patients > 0, f"rounds.validation_patients is {rounds.validation_patients}, whose answers "
         "would leave without noise; set it to 0"),
    ]  # fmt: skip
    for wrong, why in found:
        if wrong:
            raise ValueError(f"the study has [privacy], but {why}")
