"""The attacks on a study file's first site or another, its base model and questions made as in a simulation."""

from pathlib import Path

from common.errors import UserError
from common.model import BUILT_IN
from common.models.builtin import build_builtin
from common.questions.codebook_file import read_codebook
from common.study import Study
from common.tasks.site_questions import site_questions
from server.attacks.attack import Found, attack
from server.frames import public_cohort, registries


def play(study: Study, site: str, canaries: int, seed: int, cache: Path) -> Found:
    """Args: `canaries`, `seed`: see `attack`. `cache`: folder of built models.

    Raises:
        UserError: no such site, a codebook of several sites, too few patients, or the base model is at fault.
    """
    if site not in study.sites.train:
        names = ", ".join(study.sites.train)
        raise UserError(f"--site {site}: the study does not train there.", f"Choose from {names}.")
    if study.questions.codebook == "federated":
        raise UserError(
            "A codebook from all sites' counts cannot be made where one site is attacked.",
            "Set questions.codebook = 'site' or to a codebook file.",
        )
    place = study.questions.codebook_file
    registry = registries(study, (site,))[0]
    questions = site_questions(registry, study, None if place is None else read_codebook(place)).train
    if study.model.base == BUILT_IN:
        return attack(study, questions, build_builtin(study, public_cohort(study), cache), canaries, seed)
    return attack(study, questions, Path(study.model.base), canaries, seed)
