"""What a site declares about cleaning one column; nothing is repaired that is not declared."""

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from common.strict import Strict


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


class NotApplicable(Strict):
    """A column that flags that this one does not apply; what stands in this one is then not looked at."""

    where: str
    """The column of the flag."""
    answers: tuple[str, ...] = Field(min_length=1)
    """Raw values of the flag that say so."""
    means: str = ""
    """Raw value that is read instead; missing unless given."""


class Convert(Strict):
    """Numbers in another unit than the feature's: read as number x `factor` + `offset`."""

    unit: str = ""
    """The unit that the table uses, as it may stand behind a number."""
    factor: float = 1.0
    offset: float = 0.0

    @model_validator(mode="after")
    def reversible(self) -> "Convert":
        if self.factor == 0:
            raise ValueError("factor is 0, which makes all numbers one; give the right factor")
        return self


class Clean(Strict):
    """In the order in which it is applied: `blank`, `not_applicable`, what belongs to the kind, then `values`."""

    messy: Literal["refuse", "missing", "keep"] = "refuse"
    """A value that is none of its kind. `missing` drops it. `keep`: a number loses a comparison sign before it and
    the declared unit behind it; a word that is neither yes nor no, or an unlisted code, stays as it is."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """Of numbers: the sign between thousands."""
    decimal: Literal[".", ","] = "."
    units: tuple[str, ...] = ()
    """Of numbers: other spellings of `unit` (of `convert.unit` where given) that may stand behind one."""
    convert: Convert | None = None
    """Of numbers: the table has them in another unit."""
    least: float | None = None
    most: float | None = None
    """Of numbers: what is possible, in the feature's unit; anything else is messy."""
    unlisted: Literal["keep", "refuse", "missing"] = "keep"
    """Of categories: what becomes of a value that `values` does not list, neither as code nor as word."""
    ignore_case: bool = False
    """Of categories: values in lower case, so that those that differ only in case are one; `values` decides how
    they are printed."""
    yes_no: bool = False
    """Of categories: the words of `[words]` become one yes and one no."""
    several: str = Field(default="", max_length=1)
    """Of categories: the sign between several codes in a cell; each is translated by `values`."""
    blank: Blank | None = None
    not_applicable: NotApplicable | None = None
    date_format: str = ""
    """Of dates: how they are written, for example `%d.%m.%Y`; ISO dates are always read."""
    time: str = ""
    """Of dates: the column that holds the time of day."""
    earliest: date | None = None
    latest: date | None = None
    """Of dates: the days that are possible, both included; any other is messy."""

    def substitutes(self) -> set[str]:
        """Raw values that cleaning itself puts into cells."""
        blank = {self.blank.means, self.blank.otherwise} if self.blank else set[str]()
        return blank | ({self.not_applicable.means} if self.not_applicable else set[str]())

    def fits(self, column: str, kind: str, values: dict[str, str]) -> None:
        """Raises ValueError: something that does not belong to this kind, or two things that exclude each other."""
        belongs = {
            "number": {"messy", "thousands", "decimal", "units", "convert", "least", "most"},
            "category": {"messy", "ignore_case", "yes_no", "several", "unlisted"},
            "date": {"messy", "date_format", "time", "earliest", "latest"},
            "text": set[str](),
        }[kind] | {"blank", "not_applicable"}
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
        if self.least is not None and self.most is not None and self.least >= self.most:
            raise ValueError(f"{column!r} has a clean.least that is not below clean.most; correct one")
        if self.earliest and self.latest and self.earliest > self.latest:
            raise ValueError(f"{column!r} has a clean.earliest after clean.latest; correct one")
        if kind == "category":
            self.fits_category(column, values, declared)

    def fits_category(self, column: str, values: dict[str, str], declared: set[str]) -> None:
        if "unlisted" in declared and (not values or self.yes_no or self.several):
            raise ValueError(f"{column!r} has clean.unlisted, which checks against `values` alone; see clean.messy")
        if self.yes_no and (self.several or self.ignore_case):
            raise ValueError(f"{column!r} is declared yes_no and also several or ignore_case; keep one")
        if self.several and not values:
            raise ValueError(f"{column!r} holds several codes; list them in `values`")
        if "messy" in declared and not (self.yes_no or self.several):
            raise ValueError(f"{column!r} has a clean.messy without yes_no or several to check against; remove it")
        lowered = [key.lower() for key in values]
        if self.ignore_case and len(set(lowered)) < len(lowered):
            raise ValueError(f"{column!r} ignores case, but two keys of `values` differ only in case; remove one")
