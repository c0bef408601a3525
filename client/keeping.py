"""How many runs' states a site keeps (`[client] keep_runs`).

A run's folder holds optimiser states and updates as large as the model. Where an older one is removed, its name stays
as an empty file `RUN.removed`: the run is refused from then on, since the site would go on from a fresh optimiser
without anyone knowing.
"""

import shutil
from pathlib import Path

from client.policy import RUN_REMOVED, Refusal


def removed(run: Path) -> Path:
    return run.with_name(f"{run.name}.removed")


def keep_runs(state: Path, run: Path, keep: int | None) -> None:
    """Remove the runs' folders of all studies but the `keep` that were worked on last, `run` among them.

    Args:
        state: the site's folder.
        run: folder of the run that is about to be worked on; it may not exist yet.
        keep: None keeps all.

    Raises:
        Refusal: RUN_REMOVED where `run` itself was removed before.
    """
    if removed(run).exists():
        raise Refusal(RUN_REMOVED)
    if keep is None:
        return
    others = [path for path in state.glob("studies/*/runs/*") if path.is_dir() and path != run]
    whole = [path for path in others if not removed(path).exists()]
    whole.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in whole[keep - 1 :]:
        removed(path).touch()
    for path in others:
        if removed(path).exists():
            shutil.rmtree(path)
