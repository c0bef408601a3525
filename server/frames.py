"""The question frames of one seed: made once, kept in the run folder, used by every arm alike.

    seed-1/questions/
      train/SITE.parquet, validation/SITE.parquet, codebooks.json
      held_out.parquet        test patients of the training sites
      unseen_sites.parquet    patients of sites that took no part
      done.json               written last
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.questions.codebook import Codebook
from common.registry.config import read_registry_config
from common.registry.registry import Registry, concat_registries, load_registry
from common.study import Study
from common.tasks.site_questions import site_questions
from common.tasks.unseen import pooled_codebook, unseen_questions
from server.run_folder import read_json, write_atomic, write_json


def registries(study: Study, sites: tuple[str, ...]) -> list[Registry]:
    """Load the sites that a simulation plays, in the order of their names.

    Raises:
        UserError: a site's file or table is missing or wrong.
    """
    folder = Path(study.simulation.site_configs)
    return [load_registry(read_registry_config(folder / f"{site}.toml")) for site in sorted(sites)]


def public_cohort(study: Study) -> Registry:
    """The study's public cohorts as one registry.

    Raises:
        UserError: a site's file or table is missing or wrong, or the cohorts do not share a feature dictionary.
    """
    public = registries(study, study.sites.public)
    return public[0] if len(public) == 1 else concat_registries(public, "public")


@dataclass(frozen=True)
class Frames:
    folder: Path

    def train(self, site: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "train" / f"{site}.parquet")

    def validation(self, site: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "validation" / f"{site}.parquet")

    def test(self, split: str) -> pl.DataFrame:
        """`held_out` or `unseen_sites`; empty where the study has no such site."""
        return pl.read_parquet(self.folder / f"{split}.parquet")

    def codebook(self, site: str) -> Codebook:
        """A training site's own; any other site's name gives the pooled one."""
        found = read_json(self.folder / "codebooks.json")
        return Codebook.from_dict(found.get(site, found["pooled"]))


def keep(path: Path, frame: pl.DataFrame) -> None:
    write_atomic(path, frame.write_parquet)


def build_frames(study: Study, folder: Path, codebook: Codebook | None = None) -> Frames:
    """Build what is not there yet.

    Args:
        codebook: the one that all sites share; None where each has its own.

    Raises:
        UserError: a site's file or table is missing or wrong, a site has too few questions for one step, or the
            sites do not share a feature dictionary.
    """
    if (folder / "done.json").exists():
        return Frames(folder)
    sites = registries(study, study.sites.train)
    questions = {registry.site: site_questions(registry, study, codebook) for registry in sites}
    for site, q in questions.items():
        if q.train.height < study.grpo.prompts_per_step:
            raise UserError(
                f"Site {site!r} has {q.train.height} training questions, fewer than grpo.prompts_per_step = "
                f"{study.grpo.prompts_per_step}.",
                "Lower grpo.prompts_per_step, raise questions.per_patient or leave the site out.",
            )
    training = {site: q.train["patient"].unique().to_list() for site, q in questions.items()}
    pooled = codebook or pooled_codebook(sites, training, study)
    for site, q in questions.items():
        keep(folder / "train" / f"{site}.parquet", q.train)
        keep(folder / "validation" / f"{site}.parquet", q.validation)
    held_out = pl.concat([q.test for q in questions.values()])
    keep(folder / "held_out.parquet", held_out)
    unseen = [unseen_questions(registry, pooled, study) for registry in registries(study, study.sites.unseen)]
    keep(folder / "unseen_sites.parquet", pl.concat(unseen) if unseen else held_out.clear())
    codebooks = {site: q.codebook.to_dict() for site, q in questions.items()} | {"pooled": pooled.to_dict()}
    write_json(folder / "codebooks.json", codebooks)
    write_json(folder / "done.json", {site: q.train.height for site, q in questions.items()})
    return Frames(folder)
