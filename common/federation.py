"""The tables of a study that say how sites' updates travel and become the next model: `[update]`, `[transfer]`
and `[rounds]`.

Each algorithm has its own vetted defaults; the formulas and their sources stand where they are computed
(`common/update`, `server/fold.py`, `server/outer.py`).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.strict import Positive, Strict

StepName = Literal["delta", "difference", "sparse-bf16", "clip", "topk", "int8", "int4"]
OPENING = ("delta", "difference", "sparse-bf16")
"""The first step: how the site's model is set against the round's model."""
AFTER_DIFFERENCE = ("clip", "topk", "int8", "int4")
"""The order of the steps that work on differences of values."""


class Update(Strict):
    """The update chain, in the order in which a site applies it."""

    steps: tuple[StepName, ...] = ("delta",)
    clip_norm: float | None = Field(default=None, gt=0)
    """L2 norm over all tensors together that an update is scaled down to (`clip`)."""
    topk: float | None = Field(default=None, gt=0, le=1)
    """Share of each tensor's differences that are sent, the largest ones (`topk`)."""

    @model_validator(mode="after")
    def order(self) -> "Update":
        if not self.steps or self.steps[0] not in OPENING:
            raise ValueError(f"update.steps must begin with one of {', '.join(OPENING)}; 'delta' is exact")
        first, *rest = self.steps
        if rest and first != "difference":
            raise ValueError(
                f"update.steps has {rest[0]!r} after {first!r}, whose numbers are no differences of values; "
                "begin with 'difference'"
            )
        if rest != [name for name in AFTER_DIFFERENCE if name in rest]:
            raise ValueError(
                f"update.steps has its steps twice or out of order; after 'difference' it is "
                f"{', '.join(AFTER_DIFFERENCE)}"
            )
        if "int8" in rest and "int4" in rest:
            raise ValueError("update.steps has both 'int8' and 'int4'; choose one")
        return self

    @model_validator(mode="after")
    def settings_fit(self) -> "Update":
        for step, setting, value in (("clip", "clip_norm", self.clip_norm), ("topk", "topk", self.topk)):
            if step in self.steps and value is None:
                raise ValueError(f"update.steps has {step!r} but update.{setting} is not given; give it")
            if step not in self.steps and value is not None:
                raise ValueError(f"update.{setting} is given but update.steps has no {step!r}; take one out")
        return self


class Transfer(Strict):
    """How updates and models are moved (docs/transfer.md). Nothing of it changes what is computed."""

    shard_mb: float = Field(default=64.0, gt=0, le=256)
    """Million bytes that are asked for, sent and verified at a time."""
    inline_mb: float = Field(default=16.0, ge=0, le=256)
    """A payload up to this size travels inside the message itself; 0 for none."""

    @property
    def shard_bytes(self) -> int:
        return max(1, int(self.shard_mb * 1e6))

    @property
    def inline_bytes(self) -> int:
        return int(self.inline_mb * 1e6)


class Sgd(Strict):
    """The sites' mean itself at lr 1 (FedAvg)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=1.0, gt=0)


class Nesterov(Strict):
    name: Literal["nesterov"]
    lr: float = Field(default=0.7, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Adam(Strict):
    """A step moves a weight by about lr at most, so lr is to be seen beside what the local steps move it by."""

    name: Literal["adam"]
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    second: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)


Outer = Annotated[Sgd | Nesterov | Adam, Field(discriminator="name")]


class Mean(Strict):
    name: Literal["mean"] = "mean"
    max_norm: float | None = Field(default=None, gt=0)
    """L2 norm that the coordinator scales each site's difference to the round's model down to."""


class TrimmedMean(Strict):
    name: Literal["trimmed-mean"]
    trim: Positive = 1
    """Sites left out of each weight's mean at either end."""


class Median(Strict):
    name: Literal["median"]


class Krum(Strict):
    name: Literal["krum"]
    faulty: Positive = 1
    """Sites that may send anything."""
    keep: Positive = 1
    """Sites whose mean is taken: 1 is Krum, more is multi-Krum."""


Fold = Annotated[Mean | TrimmedMean | Median | Krum, Field(discriminator="name")]


class Gate(Strict):
    """Questions about the study's public cohort, at the coordinator, on which an outer step must not lose accuracy."""

    patients: Positive = 100
    """Patients of the cohort who are asked about."""
    worse_than: float = Field(default=0.02, ge=0, lt=1)
    """Share of right answers that a step may lose; one that loses more is not taken."""


class Rounds(Strict):
    rounds: Positive = 6
    local_steps: Positive = 10
    quorum: Positive | None = None
    """Updates that must arrive for a round to count; every training site unless given."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """Seconds that a round's sites have to send their updates."""
    on_missing: Literal["go-on", "stop", "wait"] = "go-on"
    """Where updates are missing at the deadline: `go-on`, the others are folded if they reach the quorum, else the run
    stops; `stop`, the run stops; `wait`, the missing sites are asked again and again until all have answered."""
    weights: Literal["uniform", "patients", "questions", "informative"] = "uniform"
    """What a site's part in the mean goes by; `informative`: its question groups with unequal rewards."""
    proximal: float = Field(default=0.0, ge=0)
    """FedProx: pull of the local steps toward the round's model; 0 for none."""
    fold: Fold = Mean()
    outer: Outer = Sgd()
    gate: Gate | None = None
    """Every outer step is taken unless given."""
    keep_checkpoints: int | None = Field(default=None, ge=2)
    """Rounds whose models stay in the run folder, the last ones, beside the base model's; all unless given. Two at
    least, so that where the last is damaged the one before is there. Every round's figures stay."""
    validation_patients: int = Field(default=40, ge=0)
    """Patients a site puts aside from training to draw the learning curve each round; 0 for none."""

    @model_validator(mode="after")
    def quorum_fits(self) -> "Rounds":
        if self.quorum is not None and self.on_missing != "go-on":
            raise ValueError(
                f"rounds.quorum is given, but on_missing = {self.on_missing!r} folds no round without all sites; "
                "remove it or set on_missing = 'go-on'"
            )
        return self

    @model_validator(mode="after")
    def robust_folds_count_sites(self) -> "Rounds":
        if self.fold.name != "mean" and self.weights != "uniform":
            raise ValueError(
                f"rounds.fold {self.fold.name!r} gives every site one voice but rounds.weights is "
                f"{self.weights!r}; set weights = 'uniform'"
            )
        return self

    @property
    def plain_mean(self) -> bool:
        """Whether the next model is the sites' weighted mean itself."""
        return self.fold == Mean() and self.outer == Sgd()

    def smallest_fold(self) -> int:
        """Updates that the fold needs at least."""
        match self.fold:
            case TrimmedMean(trim=trim):
                return 2 * trim + 1
            case Krum(faulty=faulty, keep=keep):
                return faulty + max(faulty + 3, keep)
        return 1
