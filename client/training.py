"""A site's own work in a study: its questions, its local steps, its validation answers.

Everything lasting is under the site's folder, since a new process may answer each message:

    models/SHA256/                     model folders that the coordinator sent
    studies/HASH/study.json            the study, where its model is, and what its questions were built from
    studies/HASH/codebook.toml         the codebook behind the questions
    studies/HASH/{train,validation}.parquet
    studies/HASH/changed               see same_registry.py
    studies/HASH/pass_rates.parquet    of the base model, where the study drops questions by them
    studies/HASH/runs/RUN/             optimiser state, what is left over, last.json: the last answer to `train`;
                                       progress.json, how far the local steps are;
                                       steps-ROUND.json, rewards and signs of reward hacking by step, never leaves;
                                       evaluated-ROUND.json, the round's last answer to `evaluate`
    studies/HASH/runs/RUN/{model,inbox,outbox}/    see round_model.py, inbox.py, outbox.py
    studies/HASH/sum.json, runs/RUN/withheld/      see secure_sum.py
    studies/HASH/runs/RUN/job/         the training job's log and files, where the site has a launcher
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import polars as pl
from safetensors.torch import load_file, save_file

from client.disk import write
from client.heartbeat import Heartbeat
from client.keeping import keep_runs
from client.ledger import NAME as LEDGER
from client.ledger import charge
from client.messages import HASH, Task
from client.outbox import Outbox
from client.policy import (
    BAD_CODEBOOK,
    BAD_MODEL,
    BAD_REQUEST,
    JOB_ENDED,
    JOB_OUT_OF_MEMORY,
    NOT_CONFIGURED,
    Refusal,
)
from client.progress import note
from client.replies import Configured, Evaluated, Learned, Trained
from client.same_registry import changed_since
from client.secure_sum import WITHHELD, forget, identities
from client.site import Site
from common.errors import UserError
from common.evaluation.answering import answer
from common.evaluation.probe import pass_rates
from common.evaluation.scoring import right
from common.grpo.launch import JobEnded, JobOutOfMemory, JobTrainer
from common.grpo.local import LocalResult, LocalTrainer, by_step, digest
from common.grpo.noise import site_secret
from common.grpo.patient_dp import PatientTrainer
from common.models.adapters import trained_in_round
from common.models.policy import Policy, load_policy, load_trainable, trainable_state
from common.questions.codebook import Codebook
from common.questions.codebook_file import to_toml
from common.questions.curriculum import worth_asking
from common.registry.stored import digest as registry_digest
from common.registry.stored import stored_registry
from common.secure_sum import check_weight
from common.study import Study
from common.tasks.site_questions import site_questions
from common.transfer.manifest import Manifest, manifest_from
from common.update.chain import chain, encode
from common.update.tensors import BadUpdate, State, check_finite, check_like, sha256


@dataclass(frozen=True)
class Workbench:
    """A loaded policy and the trainers that work on it, by their questions."""

    policy: Policy
    trainers: dict[Path, LocalTrainer]


in_memory: dict[tuple[str, str], Workbench] = {}
"""The workbench of the last study and model, kept for the next message to this process."""


def workbench(study: Study, model: str) -> Workbench:
    """Args: `model`: folder or hub name. A folder that was sent is named by its hash, so that sites which are
    played in one process share what they all got."""
    name = Path(model).name
    key = (study.hash, name if HASH.fullmatch(name) else model)
    if key not in in_memory:
        in_memory.clear()
        in_memory[key] = Workbench(load_policy(study, model), {})
    return in_memory[key]


def goes_on_from(last: dict[str, Any] | None, task: Task) -> int:
    """The step whose optimiser state a round starts with: that of the last round in which this site took part.

    That is the round before, unless the site missed some; the same as last time where the last round is
    computed again (from another model), and 0, afresh, at the first.
    """
    if last is None:
        return 0
    if last["asked"]["round"] >= task.round:
        return int(last["state_step"])
    return int(last["asked"]["first_step"] + last["asked"]["steps"])


def read_left_over(folder: Path, step: int) -> State:
    """What the update after this step of the run did not say (common/update/chain.py); empty where there is none."""
    path = folder / f"left-over-{step}.safetensors"
    return load_file(path) if path.exists() else {}


def write_left_over(folder: Path, step: int, left: State, kept: int) -> None:
    """Keep it under its step, beside that of step `kept`: a round computed again starts from what it started from."""
    if left:
        write(folder / f"left-over-{step}.safetensors", lambda part: save_file(left, part))
    for old in folder.glob("left-over-*.safetensors"):
        if int(old.stem.removeprefix("left-over-")) not in (kept, step):
            old.unlink()


@dataclass(frozen=True)
class SiteStudy:
    """One study at one site."""

    site: Site
    study: Study

    @property
    def folder(self) -> Path:
        return self.site.state / "studies" / self.study.hash

    def configure(self, model: Path | None, codebook: Codebook | None) -> Configured:
        """Build the questions once and note where the model is; doing it again changes nothing.

        A registry that has changed since does not change the questions either, so that a run goes on with those that
        it began with; the site's audit log and its status say so.

        Args:
            model: the folder that the coordinator sent; None where the site has its own.
            codebook: the one that all sites share; None where each has its own.

        Raises:
            Refusal: BAD_CODEBOOK for a codebook that is not this study's, or not the one behind the questions.
            UserError: the site's data are at fault, or it is not a training site of the study.
        """
        if self.site.name not in self.study.sites.train:
            raise UserError(f"Site {self.site.name!r} is no training site of the study.", "Correct sites.train.")
        self.check_codebook(codebook)
        if self.study.secure_sum is not None:
            identities(self.site, self.study)
        base = self.study.model.base
        place = str(model) if model is not None else self.site.settings.models.get(base, base)
        about, changed = self.folder / "study.json", ""
        if about.exists():
            entry = json.loads(about.read_text())
            changed = changed_since(self.site, self.folder, entry["registry"], entry["built"])
        else:
            with stored_registry(self.site.registry, self.folder) as registry:
                questions = site_questions(registry, self.study, codebook)
                built_from = registry_digest(registry)
            train = self.worth_asking(questions.train, place)
            write(self.folder / "train.parquet", train.write_parquet)
            write(self.folder / "validation.parquet", questions.validation.write_parquet)
            text = to_toml(questions.codebook)
            write(self.folder / "codebook.toml", lambda part: part.write_text(text, encoding="utf-8"))
            patients, digest = train["patient"].n_unique(), questions.codebook.hash
            entry = {"study": self.study.canonical(), "patients": patients, "model": place, "codebook": digest,
                     "registry": built_from, "built": f"{datetime.now(UTC):%Y-%m-%d}"}  # fmt: skip
            write(about, lambda part: part.write_text(json.dumps(entry)))
        if codebook is not None and entry["codebook"] != codebook.hash:
            raise Refusal(BAD_CODEBOOK)
        private, asked = self.study.privacy is not None, self.questions("train").height
        if self.study.secure_sum is not None:
            check_weight(self.study, {"patients": entry["patients"], "questions": asked})
        return Configured(entry["patients"], asked, entry["codebook"], private, changed)

    def check_codebook(self, codebook: Codebook | None) -> None:
        """The approved study says whether sites share a codebook, and which, where it is a file.

        Raises:
            Refusal: BAD_CODEBOOK.
        """
        spec = self.study.questions
        named = spec.codebook_sha256 or (codebook.hash if codebook is not None else "")
        if (codebook is None) != (spec.codebook == "site") or (codebook is not None and codebook.hash != named):
            raise Refusal(BAD_CODEBOOK)

    def worth_asking(self, train: pl.DataFrame, model: str) -> pl.DataFrame:
        """What `curriculum.drop` leaves; the pass rates of the base model stay in the folder.

        Args:
            model: folder or hub name of the base model.
        """
        if not self.study.curriculum.data_dependent:
            return train
        rates = self.folder / "pass_rates.parquet"
        if not rates.exists():
            # A policy in memory may have been trained.
            in_memory.clear()
            write(rates, pass_rates(workbench(self.study, model).policy, train, self.study).write_parquet)
        return worth_asking(train, pl.read_parquet(rates), self.study)

    def questions(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / f"{name}.parquet")

    def about(self) -> dict[str, Any]:
        """What `configure` noted.

        Raises:
            Refusal: NOT_CONFIGURED.
        """
        about = self.folder / "study.json"
        if not about.exists():
            raise Refusal(NOT_CONFIGURED)
        return dict(json.loads(about.read_text()))

    def workbench(self) -> Workbench:
        return workbench(self.study, str(self.about()["model"]))

    def trainer(self, folder: Path) -> LocalTrainer | JobTrainer:
        """Args: `folder`: the run's."""
        bench, questions = self.workbench(), self.folder / "train.parquet"
        settings = self.site.settings
        if settings.launcher is not None:
            if self.study.privacy is not None:
                raise UserError(
                    "A study with [privacy] takes its steps in one process, but this site has a launcher.",
                    "Take client.launcher out of the site's file.",
                )
            model = str(self.about()["model"])
            return JobTrainer(bench.policy, self.study, model, questions, self.site.name, settings, folder / "job")
        if questions not in bench.trainers:
            kind = LocalTrainer if self.study.privacy is None else PatientTrainer
            bench.trainers[questions] = kind(bench.policy, self.study, pl.read_parquet(questions), self.site.name)
        return bench.trainers[questions]

    def policy(self, model: State) -> Policy:
        """The policy with the round's model in place.

        Raises:
            Refusal: NOT_CONFIGURED, or BAD_MODEL where tensors are missing, mis-shaped or not finite.
        """
        policy = self.workbench().policy
        try:
            check_like(model, trainable_state(policy), "the coordinator")
            check_finite(model, "the coordinator")
        except BadUpdate:
            raise Refusal(BAD_MODEL) from None
        load_trainable(policy, model)
        return policy

    def check(self, task: Task) -> None:
        """The approved study fixes which steps a round takes: a message cannot ask for fewer patients in an update.

        Raises:
            Refusal: BAD_REQUEST for a round or steps that are not the study's.
        """
        rounds = self.study.rounds
        first = (task.round - 1) * rounds.local_steps
        if not 1 <= task.round <= rounds.rounds or (task.first_step, task.steps) != (first, rounds.local_steps):
            raise Refusal(BAD_REQUEST)

    def learn(self, task: Task, folder: Path, state_step: int, occasion: str) -> LocalResult:
        """The local steps, from the weights in the policy.

        Args:
            occasion: digest of what the steps depend on, for the noise of a private study.

        Raises:
            Refusal: JOB_OUT_OF_MEMORY or JOB_ENDED. Nothing of it is lost that the next try would need.
        """
        trainer, proximal = self.trainer(folder), self.study.rounds.proximal
        state = folder / "state"
        if isinstance(trainer, PatientTrainer):
            trainer.begin(site_secret(self.site.state), occasion)

        heartbeat = Heartbeat(self.site, self.site.bulk) if self.site.bulk is not None else None

        def taken(step: int, _: float) -> None:
            progress = note(folder, self.study.hash, task.run, task.round, step + 1 - task.first_step, task.steps)
            if heartbeat is not None:
                heartbeat.tell(progress)

        try:
            return trainer.run(task.first_step, task.steps, state, taken, state_step, proximal)
        except JobOutOfMemory:
            raise Refusal(JOB_OUT_OF_MEMORY) from None
        except JobEnded:
            raise Refusal(JOB_ENDED) from None

    def train(self, task: Task, model: State) -> Trained:
        """The local steps of a round, and the update they make.

        The update stays on the disk until its round is folded: asked again for the same round from the same
        model, the site sends the same bytes and takes no further step.
        """
        self.check(task)
        folder = self.folder / "runs" / task.run
        keep_runs(self.site.state, folder, self.site.settings.keep_runs)
        asked = {"round": task.round, "first_step": task.first_step, "steps": task.steps, "model": sha256(model)}
        last = json.loads((folder / "last.json").read_text()) if (folder / "last.json").exists() else None
        before, outbox = trained_in_round(self.study.model, task.round, model), Outbox(folder / "outbox")
        outbox.acknowledged(task.round - 1)
        outbox.drop_older(self.site.settings.keep_days)
        if self.study.secure_sum is not None:
            forget(self.folder, task.run, task.round - 1)
            outbox = Outbox(folder / WITHHELD)
        if last is not None and last["asked"] == asked and outbox.payload(last["manifest"]["sha256"]).exists():
            return self.trained(outbox, manifest_from(last["manifest"]), before, last["figures"])
        about = self.about()
        policy = self.policy(model)
        state_step = goes_on_from(last, task)
        occasion = digest(self.study.hash, task.run, task.round, asked["model"], state_step)
        epsilon = self.charge(task, occasion)
        result = self.learn(task, folder, state_step, occasion)
        told = json.dumps(by_step(result))
        write(folder / f"steps-{task.round:04d}.json", lambda part: part.write_text(told))
        after = trained_in_round(self.study.model, task.round, trainable_state(policy))
        earlier = read_left_over(folder / "state", state_step)
        update, left = encode(chain(self.study.update), before, after, earlier)
        # With what other rounds' factors left over.
        write_left_over(folder / "state", task.first_step + task.steps, earlier | left, kept=state_step)
        figures: dict[str, Any] = {
            "round": task.round,
            "patients": about["patients"],
            "questions": self.questions("train").height,
            "reward": sum(result.rewards) / len(result.rewards),
            "informative": sum(result.informative) / len(result.informative),
            "generating_s": result.seconds["generating"],
            "learning_s": result.seconds["learning"],
            "epsilon": epsilon,
        }
        manifest = outbox.put(lambda part: save_file(update, part), self.study.transfer.shard_bytes)
        kept = {"asked": asked, "figures": figures, "state_step": state_step, "manifest": manifest.to_dict()}
        write(folder / "last.json", lambda part: part.write_text(json.dumps(kept)))
        return self.trained(outbox, manifest, before, figures)

    def charge(self, task: Task, occasion: str) -> float | None:
        """Epsilon of a private study with this round, noted before anything is computed.

        Raises:
            Refusal: BUDGET_SPENT or LEDGER_BROKEN.
        """
        if self.study.privacy is None:
            return None
        limit = self.site.settings.policy.max_epsilon
        return charge(self.site.state / LEDGER, self.study, task.run, task.round, occasion, limit)

    def trained(self, outbox: Outbox, manifest: Manifest, before: State, figures: dict[str, Any]) -> Trained:
        decimals = {"reward": 4, "informative": 4, "generating_s": 2, "learning_s": 2}
        told = {name: round(value, decimals[name]) if name in decimals else value for name, value in figures.items()}
        kind = Trained if self.study.secure_sum is None else Learned
        return kind(outbox, manifest, before, chain(self.study.update), self.study.transfer, **told)

    def evaluate(self, task: Task, model: State) -> Evaluated:
        """Counts over the validation questions, answered by the round's model.

        Asked again about the same model in the same round, the site says the same.
        """
        place, asked = self.folder / "runs" / task.run / f"evaluated-{task.round:04d}.json", sha256(model)
        kept = json.loads(place.read_text()) if place.exists() else None
        if kept is not None and kept["model"] == asked:
            return Evaluated(**kept["answer"])
        policy = self.policy(model)
        start = perf_counter()
        answered = answer(policy, self.questions("validation"), self.study.evaluation)
        earned = right(answered).sum()
        evaluated = Evaluated(
            round=task.round,
            patients=answered["patient"].n_unique(),
            questions=answered.height,
            right=int(earned),
            boxed=int(answered["boxed"].is_not_null().sum()),
            seconds=round(perf_counter() - start, 2),
        )
        told = json.dumps({"model": asked, "answer": asdict(evaluated)})
        write(place, lambda part: part.write_text(told))
        return evaluated
