"""The `[model]` table of a study: what is trained, and how sites' adapters become one."""

from typing import Literal

from pydantic import Field, model_validator

from common.strict import Positive, Strict

BUILT_IN = "built-in"

Average = Literal["frozen-a", "alternating", "residual", "separate"]


class Lora(Strict):
    rank: Positive = 8
    alpha: Positive = 32
    average: Average = "frozen-a"
    """Which of the factors A and B are trained, and how the sites' become one (common/models/adapters.py)."""


class Builtin(Strict):
    """The built-in small model: Phi-3 architecture, for machines without weights.

    Its seed is its own: like a published model it is one for all seeds of a study.
    """

    seed: int = Field(default=1, ge=0)
    hidden: Positive = 64
    layers: Positive = 2
    heads: Positive = 8
    vocabulary: int = Field(default=2048, ge=300)
    warmup_steps: Positive = 600
    warmup_batch: Positive = 24
    """Synthetic records per warm-up step."""
    warmup_lr: float = Field(default=5e-3, gt=0)
    questions_per_record: int = Field(default=8, ge=2)
    guesses: Positive = 3
    """How often a record's masked value is asked, the choices in another order each time."""
    practice_worlds: int = Field(default=2, ge=0)
    """Invented worlds for practice questions; 0 for none."""
    lookup_share: float = Field(default=0.4, ge=0, lt=1)
    """Share of warm-up questions that ask for a value the record shows (teaches reading and letters)."""

    @model_validator(mode="after")
    def questions_fit(self) -> "Builtin":
        lookups = round(self.lookup_share * self.questions_per_record)
        if self.guesses + lookups > self.questions_per_record:
            raise ValueError(
                f"guesses {self.guesses} and {lookups} look-ups are more than questions_per_record "
                f"{self.questions_per_record}; raise it, or lower guesses or lookup_share"
            )
        return self

    @model_validator(mode="after")
    def heads_divide(self) -> "Builtin":
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(
                f"hidden {self.hidden} over heads {self.heads} must be a whole, even head size; "
                "choose for example hidden = 64, heads = 8"
            )
        return self


class Model(Strict):
    base: str = BUILT_IN
    """`built-in`, a local folder, or a hub name."""
    trainable: Literal["all", "lora"] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora = Lora()
    builtin: Builtin = Builtin()

    @property
    def factors_apart(self) -> bool:
        """Whether a round averages both LoRA factors, each for itself."""
        return self.trainable == "lora" and self.lora.average in ("residual", "separate")
