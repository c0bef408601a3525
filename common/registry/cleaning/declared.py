"""What a site declares about cleaning one column; nothing is repaired that is not declared."""

from typing import Literal

from pydantic import Field, model_validator

from common.study import Strict


class Words(Strict):
    """How this registry writes yes and no, upper and lower case alike; the first of each list is printed."""

    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()

    @model_validator(mode="after")
    def apart(self) -> "Words":
        both = sorted({w.lower() for w in self.yes} & {w.lower() for w in self.no})
        if both:
            raise ValueError(f"{both[0]!r} means both yes and no; remove one")
        return self


class Blank(Strict):
    """What an empty cell means where it depends on the answer to another question (tick boxes)."""

    where: str
    """The column of that other question."""
    answers: tuple[str, ...] = Field(min_length=1)
    """Raw answers that say that this question applies."""
    means: str
    """Raw value of an empty cell where it does."""
    otherwise: str = ""
    """Raw value of an empty cell where another answer was given; it stays missing unless this is set."""


class Clean(Strict):
    """In the order in which it is applied: `blank`, then what belongs to the feature's kind, then `values`."""

    messy: Literal["refuse", "missing", "keep"] = "refuse"
    """A value that is none of its kind. `missing` drops it. `keep`: a number loses a comparison sign before it and
    the declared unit behind it; a word that is neither yes nor no, or an unlisted code, stays as it is."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """Of numbers: the sign between thousands."""
    decimal: Literal[".", ","] = "."
    units: tuple[str, ...] = ()
    """Of numbers: other spellings of `unit` that may stand behind one."""
    ignore_case: bool = False
    """Of categories: values in lower case, so that those that differ only in case are one; `values` decides how
    they are printed."""
    yes_no: bool = False
    """Of categories: the words of `[words]` become one yes and one no."""
    several: str = Field(default="", max_length=1)
    """Of categories: the sign between several codes in a cell; each is translated by `values`."""
    blank: Blank | None = None
    date_format: str = ""
    """Of dates: how they are written, for example `%d.%m.%Y`; ISO dates are always read."""
    time: str = ""
    """Of dates: the column that holds the time of day."""

    def fits(self, column: str, kind: str, values: dict[str, str]) -> None:
        """Raises ValueError: something that does not belong to this kind, or two things that exclude each other."""
        belongs = {
            "number": {"messy", "thousands", "decimal", "units"},
            "category": {"messy", "ignore_case", "yes_no", "several"},
            "date": {"messy", "date_format", "time"},
            "text": set[str](),
        }[kind] | {"blank"}
        declared = {name for name, value in self if value != Clean.model_fields[name].default}
        wrong = sorted(declared - belongs)
        if wrong:
            raise ValueError(f"{column!r} is a {kind}, to which clean.{wrong[0]} does not apply; remove it")
        if kind == "number" and self.thousands == self.decimal:
            raise ValueError(f"{column!r} has {self.decimal!r} between thousands and before decimals; change one")
        if kind == "date" and self.messy == "keep":
            raise ValueError(f"{column!r} is a date, and none can be kept that is not one; use 'missing' or 'refuse'")
        if kind == "date" and self.date_format and not all(part in self.date_format for part in ("%d", "%m", "%Y")):
            raise ValueError(f"{column!r} has a clean.date_format without %d, %m or %Y; write all three")
        if kind != "category":
            return
        if self.yes_no and (self.several or self.ignore_case):
            raise ValueError(f"{column!r} is declared yes_no and also several or ignore_case; keep one")
        if self.several and not values:
            raise ValueError(f"{column!r} holds several codes; list them in `values`")
        if "messy" in declared and not (self.yes_no or self.several):
            raise ValueError(f"{column!r} has a clean.messy without yes_no or several to check against; remove it")
        lowered = [key.lower() for key in values]
        if self.ignore_case and len(set(lowered)) < len(lowered):
            raise ValueError(f"{column!r} ignores case, but two keys of `values` differ only in case; remove one")
