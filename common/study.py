"""The declared computation. One study file drives simulate, federate and centralize alike.

A study is what a hospital approves, so everything that decides numbers is in it and nothing that is
local to one machine is: its SHA-256 (`Study.hash`) is taken over the resolved values without the
`[simulation]` table, which only says where a laptop finds the sites it plays.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field, model_validator

from common.errors import UserError
from common.federation import Rounds, Transfer, Update
from common.launcher import TrainingJobs
from common.model import BUILT_IN, Model
from common.privacy import Privacy, check_private
from common.secure_sum import SecureSum, check_summable
from common.strict import Fraction, Positive, Strict, checked, read_toml

PrefixRoute = Literal["auto", "expanded", "packed", "plain"]
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]

CODEBOOK_ORIGINS = ("site", "federated")
CODEBOOK_FILE = "file"
"""What stands for a codebook file's path in what sites approve."""


class Sites(Strict):
    """Who takes part, by name. A run starts when all of `train` are present, or not at all."""

    train: tuple[SiteName, ...] = Field(min_length=1)
    unseen: tuple[SiteName, ...] = ()
    public: tuple[SiteName, ...] = ()
    """Declared public cohorts: excluded from every other role; the built-in model sees them, and `rounds.gate`."""

    @model_validator(mode="after")
    def one_role_each(self) -> "Sites":
        names = [*self.train, *self.unseen, *self.public]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"site {twice[0]!r} stands twice; give each site one role")
        return self


class Questions(Strict):
    """How a registry becomes questions (method.md section 1)."""

    tasks: tuple[Literal["masked_value", "outcome", "forecast"], ...] = Field(default=("masked_value",), min_length=1)
    """What is asked; outcomes and forecasts as each site declares them."""
    fidelity: Literal["strict", "paper"] = "strict"
    ask: tuple[Literal["category", "number"], ...] = ("category", "number")
    """Kinds of feature that are asked; the other kinds are still shown in the record."""
    per_patient: Positive = 4
    """Training questions of each task drawn per record (distinct features)."""
    per_site: Positive | None = None
    """Training questions that a site keeps at most, drawn by their hash; all unless given."""
    max_choices: int = Field(default=5, ge=2, le=5)
    difficulty: float = Field(default=2.0, gt=0)
    """`paper`: step of the numeric ladder, in standard deviations of the mixture component. `strict`: 2.0 spreads a
    number's choices evenly over all training patients, 1.0 puts them twice as close."""
    mi_threshold: float = Field(default=0.5, gt=0)
    """Features with more mutual information (nats) with the masked one are left out of its prompt."""
    test_fraction: Fraction = 0.2
    codebook: str = Field(default="site", min_length=1)
    """Where column statistics come from: `site`, each site's own; `federated`, one for all from the sites' summed
    counts; or the path of a codebook file, relative to the study file."""
    codebook_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of a codebook file: the hash that stands in it. Filled in when the study is read; the path is no part of the
    study's hash, this is."""

    codebook_patients: Positive = 100_000
    """A site fits its own codebook to so many training patients at most, drawn by a hash; `paper` to all of them."""

    @property
    def codebook_file(self) -> Path | None:
        return None if self.codebook in CODEBOOK_ORIGINS else Path(self.codebook)

    @model_validator(mode="after")
    def codebook_fits(self) -> "Questions":
        if self.fidelity == "paper" and self.codebook != "site":
            raise ValueError(
                "fidelity = 'paper' fits its codebook to all rows of a site, test patients included; "
                "set codebook = 'site' or fidelity = 'strict'"
            )
        if self.codebook_sha256 is not None and self.codebook_file is None:
            raise ValueError("codebook_sha256 belongs to a codebook file; remove it or set codebook to the file's path")
        return self

    @model_validator(mode="after")
    def choices_fit(self) -> "Questions":
        if self.fidelity == "strict" and self.difficulty > 2.0:
            raise ValueError(
                f"difficulty {self.difficulty} would spread a number's choices wider than all patients; "
                "lower it to 2.0 or set fidelity = 'paper'"
            )
        return self


class Curriculum(Strict):
    """Which of a site's training questions are asked, and how often."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How often a question of a section is asked in an epoch; once where its section is not named."""
    drop: tuple[Literal["always_right", "never_right"], ...] = ()
    """Questions to leave out, by the base model's answers to them: GRPO learns nothing from a group that agrees."""
    completions: int = Field(default=8, ge=2)
    """Answers sampled to each training question, once, to know which to drop."""

    @property
    def data_dependent(self) -> bool:
        """Whether patients' values decide which questions are asked. Patient-level privacy accounting cannot hold."""
        return bool(self.drop)


class Rewards(Strict):
    """Weights of the terms of a completion's reward (common/grpo/rewards.py)."""

    answer: float = Field(default=1.0, gt=0)
    format: float = Field(default=0.0, ge=0)
    """Of 1 for a box that can be read, right or wrong."""
    length: float = Field(default=0.0, ge=0)
    """Of the penalty on completions that come near max_completion_tokens."""
    length_from: Fraction = 0.8
    """Share of max_completion_tokens from which on the penalty grows, to 1 at the end."""


class Grpo(Strict):
    """Local GRPO steps. Defaults are those of the small CPU studies; docs/reproducing_the_paper.md has the paper's."""

    group_size: int = Field(default=8, ge=2)
    prompts_per_step: Positive = 16
    groups_at_once: Positive | None = None
    """Groups whose completions stand in memory together in learning; all of a step unless given. Of several processes
    each holds as many completions at most. Part of the study as `prefix_route` is: gradients are the same up to
    rounding."""
    rewards: Rewards = Rewards()
    dynamic_sampling: int = Field(default=0, ge=0)
    """How many times a step's groups whose rewards agree are replaced by other questions; 0 for never."""
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"] = "dr_grpo"
    scale_rewards: Literal["group", "none"] = "group"
    beta: float = Field(default=0.0, ge=0)
    """KL coefficient to the reference, the base model; 0 holds no reference in memory."""
    reference_every: Positive | None = None
    """Move the reference toward the policy after every so many steps of the run; never unless given."""
    reference_alpha: float = Field(default=0.9, gt=0, le=1)
    """The policy's share in a moved reference."""
    temperature: float = Field(default=1.0, gt=0)
    prefix_route: PrefixRoute = "auto"
    """How a group shares its prompt (docs/design.md, Shared prefixes). The routes differ in rounding, so it counts."""
    max_prompt_tokens: Positive = 1024
    """Longer questions are left out and counted; prompts are never cut."""
    max_completion_tokens: Positive = 16

    @property
    def data_dependent(self) -> bool:
        """Whether patients' values decide which questions a step takes; see `Curriculum.data_dependent`."""
        return self.dynamic_sampling > 0

    @model_validator(mode="after")
    def groups_divide(self) -> "Grpo":
        if self.groups_at_once is None:
            return self
        if self.prompts_per_step % self.groups_at_once:
            raise ValueError(
                f"groups_at_once {self.groups_at_once} does not divide prompts_per_step {self.prompts_per_step}; "
                "choose a divisor"
            )
        if self.loss_type == "bnpo" and self.groups_at_once < self.prompts_per_step:
            raise ValueError(
                "loss_type 'bnpo' is a mean over the tokens in memory together, so groups_at_once would change it; "
                "remove groups_at_once or choose another loss_type"
            )
        return self


class Evaluation(Strict):
    patients_per_site: Positive = 200
    questions_per_patient: Positive | None = None
    """Test questions of each task per record; all that can be asked unless given."""
    bootstrap: int = Field(default=1000, ge=100)
    max_completion_tokens: Positive = 16


class Simulation(TrainingJobs):
    """Only for runs that play every site on this machine; not part of the study's hash. Training without federation is
    started as `TrainingJobs` says."""

    site_configs: str = "../site_configs"
    """Folder of the sites' TOML files, relative to the study file: NAME.toml is the site called NAME."""
    workers: Positive | None = None
    """Processes, one torch thread each; one per core unless given."""


class Study(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str = ""
    seed: int = Field(default=1, ge=0)
    sites: Sites
    model: Model = Model()
    questions: Questions = Questions()
    curriculum: Curriculum = Curriculum()
    grpo: Grpo = Grpo()
    rounds: Rounds = Rounds()
    update: Update = Update()
    transfer: Transfer = Transfer()
    privacy: Privacy | None = None
    secure_sum: SecureSum | None = None
    evaluation: Evaluation = Evaluation()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def possible(self) -> "Study":
        if self.privacy is not None:
            check_private(self)
        if self.secure_sum is not None:
            check_summable(self)
        quorum = self.rounds.quorum
        if quorum is not None and quorum > len(self.sites.train):
            raise ValueError(
                f"rounds.quorum is {quorum} but sites.train names {len(self.sites.train)}; "
                "lower the quorum or name more sites"
            )
        needed = self.rounds.smallest_fold()
        if self.quorum < needed:
            raise ValueError(
                f"rounds.fold {self.rounds.fold.name!r} needs {needed} updates but a round may have {self.quorum}; "
                "raise the quorum, name more sites or choose another fold"
            )
        if "sparse-bf16" in self.update.steps and (self.model.dtype, self.model.trainable) != ("bfloat16", "all"):
            raise ValueError(
                "update.steps has 'sparse-bf16' but what is trained is not a whole bfloat16 model; set model.dtype "
                "= 'bfloat16' and model.trainable = 'all', or choose other steps"
            )
        if self.rounds.gate is not None and not self.sites.public:
            raise ValueError(
                "rounds.gate asks about a public cohort but sites.public is empty; name one there or remove rounds.gate"
            )
        if self.model.factors_apart and not self.rounds.plain_mean:
            raise ValueError(
                f"model.lora.average {self.model.lora.average!r} is defined by the sites' mean alone; set "
                "rounds.fold = {name = 'mean'} and rounds.outer = {name = 'sgd', lr = 1.0}, or choose another average"
            )
        if self.grpo.reference_every is not None:
            if not self.grpo.beta:
                raise ValueError(
                    "grpo.reference_every moves a reference, but grpo.beta is 0: there is none; set beta or remove it"
                )
            if self.model.trainable == "lora":
                raise ValueError(
                    "grpo.reference_every moves a copy of the whole model, which LoRA does not hold; "
                    "remove it or set model.trainable = 'all'"
                )
        if self.model.base == BUILT_IN and not self.sites.public:
            raise ValueError(
                "model.base is 'built-in' but sites.public is empty: the built-in model takes its base rates "
                "from a declared public cohort; name one in sites.public or give model.base a folder"
            )
        return self

    @property
    def quorum(self) -> int:
        return self.rounds.quorum or len(self.sites.train)

    @property
    def total_steps(self) -> int:
        """Optimiser steps one site takes over the whole run."""
        return self.rounds.rounds * self.rounds.local_steps

    def canonical(self) -> dict:
        """The resolved values that decide numbers, ready for hashing or printing."""
        values = self.model_dump(mode="json", exclude={"simulation"}, exclude_none=True)
        if self.questions.codebook_file is not None:
            values["questions"]["codebook"] = CODEBOOK_FILE
        return values

    @property
    def message(self) -> str:
        """The canonical JSON, as it is sent to the sites."""
        return json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON: what a site approves."""
        return hashlib.sha256(self.message.encode()).hexdigest()

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def with_seed(self, seed: int) -> "Study":
        return self.model_copy(update={"seed": seed})


def parse_study(values: dict, source: str) -> Study:
    return checked(Study, values, source)


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        UserError: missing file, not TOML, wrong key, type, value or combination.
    """
    study = parse_study(read_toml(path), str(path))
    folder = Path(study.simulation.site_configs)
    if not folder.is_absolute():
        resolved = str((path.parent / folder).resolve())
        study = study.model_copy(update={"simulation": study.simulation.model_copy(update={"site_configs": resolved})})
    if study.questions.codebook_file is None:
        return study
    return with_codebook_file(study, path.parent / study.questions.codebook_file)


def with_codebook_file(study: Study, place: Path) -> Study:
    """The study with the absolute path of its codebook file and the hash that stands in it.

    Raises:
        UserError: the file is missing, holds no hash, or another one than the study names.
    """
    found = read_toml(place).get("sha256")
    if not isinstance(found, str):
        raise UserError(f"{place}: this is no codebook: it has no sha256.", "Give the file of a codebook.")
    if study.questions.codebook_sha256 not in (None, found):
        raise UserError(
            f"{place}: this is not the codebook that the study names in questions.codebook_sha256.",
            "Put that codebook back, or remove codebook_sha256 to take this one.",
        )
    values = {**study.questions.model_dump(), "codebook": str(place.resolve()), "codebook_sha256": found}
    return study.model_copy(update={"questions": Questions.model_validate(values)})
