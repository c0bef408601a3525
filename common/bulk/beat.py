"""What a site says while it trains: how many of the round's local steps are done. Counts, and nothing of the work."""

from typing import Annotated

from pydantic import Field, model_validator

from common.bulk.opening import Digest
from common.strict import Strict

METHOD = "Beat"


class Beat(Strict):
    site: str
    study: Digest
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,99}$")]
    round: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0)]
    """Local steps of the round that are done."""
    steps: Annotated[int, Field(ge=1, le=10**9)]
    """Local steps that the round has."""

    @model_validator(mode="after")
    def whole(self) -> "Beat":
        if self.step > self.steps:
            raise ValueError("more steps are done than the round has; say how many are done")
        return self
