"""What a worker does for one arm of one seed: train what it trains, answer the test questions, keep the answers.

An arm is done when its answered frames are there; training goes on from its last finished round.
"""

from pathlib import Path

import polars as pl

from common.evaluation.answering import answer
from common.evaluation.probe import pass_rates
from common.evaluation.yardsticks import TrainingRecords, gradient_boosting, most_frequent, random_letter
from common.model import BUILT_IN
from common.models.builtin import build_builtin
from common.models.policy import load_policy, load_trainable
from common.models.transfer import folder_sha256
from common.questions.curriculum import worth_asking
from common.study import Study
from common.update.tensors import State
from server.centralized import Cohort, train_cohort
from server.frames import Frames, build_frames, keep, public_cohort, registries
from server.jobs import SPLITS, answered_path, base_model, is_done
from server.ray_engine import simulate_with_ray
from server.round_store import RoundStore
from server.run_folder import EventLog, RunFolder, write_json
from server.simulation import simulate_federated, simulated_codebook
from server.workers import Job


def do_job(run: Path, job: Job, cache: Path) -> None:
    """Do one job; done ones end at once.

    Args:
        cache: folder of built models.
    """
    folder = RunFolder(run)
    if is_done(folder, job):
        return
    study = folder.study().with_seed(job.seed)
    always = {"arm": job.arm, "seed": job.seed} | ({"site": job.site} if job.site else {})
    log = folder.log(**always)
    if job.arm == "model":
        prepare_model(folder, study, cache, log)
        return
    place = folder.seed(job.seed) / "questions"
    if job.arm == "questions":
        build_frames(study, place, simulated_codebook(study, folder.arm(job.seed, "federated"), log))
        return
    frames = Frames(place)
    log.write("arm_started")
    if job.arm == "yardsticks":
        measure(folder, study, frames, job.seed)
    else:
        model = base_model(folder, job.seed)
        state = train(folder, study, frames, model, job, log)
        examine(folder, study, frames, model, state, job)
    log.write("arm_finished")


def prepare_model(folder: RunFolder, study: Study, cache: Path, log: EventLog) -> None:
    """Have the seed's base model, and note where it is and what it is."""

    def progress(done: int, total: int) -> None:
        if done % max(1, total // 20) == 0 or done == total:
            log.write("base_model", done=done, total=total)

    base = Path(study.model.base)
    if study.model.base == BUILT_IN:
        base = build_builtin(study, public_cohort(study), cache, progress)
    log.write("base_model", done=study.model.builtin.warmup_steps, total=study.model.builtin.warmup_steps)
    if base.is_dir():
        # A resume may be typed in another folder.
        base = base.resolve()
    digest = folder_sha256(base) if base.is_dir() else ""
    write_json(folder.seed(study.seed) / "base.json", {"folder": str(base), "sha256": digest})


def train(folder: RunFolder, study: Study, frames: Frames, model: Path, job: Job, log: EventLog) -> State | None:
    """The arm's trained tensors; None for the base model itself."""
    place = folder.arm(job.seed, job.arm, job.site)
    store = RoundStore(place)
    if job.arm == "base":
        return None
    if job.arm == "federated":
        run = f"{folder.path.name}-seed-{job.seed}"
        simulate = simulate_with_ray if folder.about()["engine"] == "ray" else simulate_federated
        simulate(folder.seed(job.seed) / "study.toml", study, run, model, place, folder.events)
        return store.load(study.rounds.rounds).model
    sites = (job.site,) if job.arm == "local" else study.sites.train
    cohort = Cohort({s: taught(study, frames, model, s) for s in sites}, {s: frames.validation(s) for s in sites})
    return train_cohort(study, model, cohort, store, log).model


def taught(study: Study, frames: Frames, model: Path, site: str) -> pl.DataFrame:
    """A site's training questions, without those that `curriculum.drop` leaves out by the base model's pass rates."""
    questions = frames.train(site)
    if not study.curriculum.data_dependent:
        return questions
    rates = frames.folder / "pass_rates" / f"{site}.parquet"
    if not rates.exists():
        keep(rates, pass_rates(load_policy(study, model), questions, study))
    return worth_asking(questions, pl.read_parquet(rates), study)


def examine(folder: RunFolder, study: Study, frames: Frames, model: Path, state: State | None, job: Job) -> None:
    """Answer the test questions of both splits; a site alone has its own held-out patients and all unseen ones."""
    policy = load_policy(study, model)
    if state is not None:
        load_trainable(policy, state)
    for split in SPLITS:
        path = answered_path(folder, job, split)
        if path.exists():
            continue
        questions = frames.test(split)
        if job.arm == "local" and split == "held_out":
            questions = questions.filter(pl.col("site") == job.site)
        answered = answer(policy, questions, study.evaluation)
        if job.arm == "local":
            answered = answered.with_columns(model=pl.lit(job.site))
        keep(path, answered)


def measure(folder: RunFolder, study: Study, frames: Frames, seed: int) -> None:
    """The yardsticks' answers to the same questions."""
    everyone = registries(study, study.sites.train + study.sites.unseen)
    training = {site: frames.train(site)["patient"].unique().to_list() for site in study.sites.train}
    codebooks = {registry.site: frames.codebook(registry.site) for registry in everyone}
    records = TrainingRecords(everyone, training, codebooks)
    for split in SPLITS:
        questions = frames.test(split)
        answers = {
            "random_letter": lambda q: random_letter(q),
            "most_frequent": lambda q: most_frequent(q, records),
            "gradient_boosting": lambda q: gradient_boosting(q, records),
        }
        for arm, by in answers.items():
            path = answered_path(folder, Job(seed, arm), split)
            if not path.exists():
                keep(path, by(questions))
