"""The `[meds]` table of a site file: what the codes of an event table mean."""

from pydantic import Field

from common.strict import Strict


class Meds(Strict):
    """Codes are compared by their beginning, but those of `sex` and of the variables, which are whole."""

    subject: str = "subject_id"
    time: str = "time"
    code: str = "code"
    value: str = "numeric_value"
    start: tuple[str, ...] = Field(min_length=1)
    """Codes that begin a stay. What follows the beginning is the column `unit`."""
    end: tuple[str, ...] = Field(min_length=1)
    """Codes that end it."""
    birth: str = "MEDS_BIRTH"
    sex: dict[str, str] = {}
    """Code -> printed value."""
    discharge: tuple[str, ...] = Field(min_length=1)
    """Codes of leaving the hospital, dead or alive."""
    died: tuple[str, ...] = Field(min_length=1)
    """Those of them that mean death."""
