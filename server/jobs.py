"""The jobs of a run: what each is for, where its result lies, and when it is done. Imports nothing that learns."""

from pathlib import Path

from common.errors import UserError
from common.models.transfer import folder_sha256
from common.study import Study
from server.run_folder import RunFolder, read_json
from server.workers import Job

SPLITS = ("held_out", "unseen_sites")
YARDSTICKS = ("random_letter", "most_frequent", "gradient_boosting")


def answered_path(folder: RunFolder, job: Job, split: str) -> Path:
    return folder.arm(job.seed, job.arm, job.site) / f"{split}.parquet"


def is_done(folder: RunFolder, job: Job) -> bool:
    if job.arm == "model":
        return (folder.seed(job.seed) / "base.json").exists()
    if job.arm == "questions":
        return (folder.seed(job.seed) / "questions" / "done.json").exists()
    arms = YARDSTICKS if job.arm == "yardsticks" else (job.arm,)
    jobs = [Job(job.seed, arm, job.site) for arm in arms]
    return all(answered_path(folder, each, split).exists() for each in jobs for split in SPLITS)


def base_model(folder: RunFolder, seed: int) -> Path:
    """The folder (or hub name) of the seed's base model.

    Raises:
        UserError: it is no longer the model that the run began with.
    """
    note = read_json(folder.seed(seed) / "base.json")
    base = Path(note["folder"])
    if note["sha256"] and (not base.is_dir() or folder_sha256(base) != note["sha256"]):
        raise UserError(
            f"{base}: the base model is not the one that this run began with.", "Put it back, or start a new run."
        )
    return base


def work(run: Path, job: Job, cache: Path) -> None:
    """Do one job in a worker process, which alone imports the training libraries."""
    from server.arm_jobs import do_job

    do_job(run, job, cache)


def jobs_of(study: Study, seeds: list[int], arms: list[str]) -> list[Job]:
    """Every job, the longest arms first, so that no long one is left for the end."""
    jobs = []
    for arm in ("federated", "centralized", "local", "yardsticks", "base"):
        if arm not in arms:
            continue
        for seed in seeds:
            sites = sorted(study.sites.train) if arm == "local" else [""]
            jobs += [Job(seed, arm, site) for site in sites]
    return jobs
