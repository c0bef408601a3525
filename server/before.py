"""What can be known to be wrong before a run starts: a site's file or table, the base model's folder."""

from pathlib import Path

from common.errors import UserError
from common.model import BUILT_IN
from common.questions.codebook_file import check_codebook, read_codebook
from common.registry.config import read_registry_config
from common.registry.registry import LeftOut, concat_registries, load_registry
from common.study import Study


def check_sites(study: Study) -> list[tuple[str, LeftOut]]:
    """Load every site that a simulation plays, once, which takes seconds.

    Returns:
        the declared features that a site's data cannot use, by site.

    Raises:
        UserError: a file is missing or wrong, a table does not hold what its file declares, or the sites do not
            share a feature dictionary.
    """
    registries = {}
    for site in (*study.sites.train, *study.sites.unseen, *study.sites.public):
        path = Path(study.simulation.site_configs) / f"{site}.toml"
        config = read_registry_config(path)
        if config.site != site:
            raise UserError(f"{path}: site = {config.site!r}, but the study calls it {site!r}.", "Use one name.")
        registries[site] = load_registry(config)
    concat_registries([registries[site] for site in study.sites.train + study.sites.unseen], "all")
    if study.questions.codebook_file is not None:
        given = read_codebook(study.questions.codebook_file)
        for site in study.sites.train:
            place = f"{study.questions.codebook_file}, site {site}"
            check_codebook(given, registries[site].features, study.questions, place)
    if study.sites.public:
        concat_registries([registries[site] for site in study.sites.public], "public")
    return [(site, left) for site, registry in registries.items() for left in registry.left_out]


def check_model(study: Study) -> None:
    """A base model that lies in a folder has a `config.json`; one named with `.`, `/` or `~` in front is a folder.

    Raises:
        UserError: it is not.
    """
    base = study.model.base
    if base == BUILT_IN:
        return
    if Path(base).is_dir():
        if not (Path(base) / "config.json").is_file():
            raise UserError(f"model.base: {base} holds no config.json.", "Give the folder of a model, or a hub name.")
    elif base.startswith((".", "/", "~")):
        raise UserError(f"model.base: {base} is not a folder.", "Give a folder with config.json, or a hub name.")
