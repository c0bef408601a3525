"""What a column's name suggests: a unit, a section, a person, an outcome, a prediction. English and German hints, for a
person to check."""

import re

PATIENT = ("patient", "patienten", "subject", "participant", "pat", "pid", "mrn", "case", "fall", "id")
"""Words of a patient column's name, the surest first."""
PERSON = frozenset(
    "mrn ssn nhs surname lastname firstname forename fullname maiden initials phone telephone mobile fax email mail "
    "address street postcode postal zip zipcode passport insurance birth dob birthdate birthday "
    "nachname vorname familienname geburtsname geburtsdatum geburtstag telefon handy adresse anschrift "
    "strasse straße plz versichertennummer".split()
)
KEY = frozenset("id ids identifier pid patient subject participant hadm accession barcode encounter uuid".split())
KEY_ENDS = frozenset("id ids identifier uuid barcode".split())
NUMBERED = frozenset("no nr num number key code nummer".split())
OUTCOME = frozenset(
    "death dead died dies deceased mortality survival survived survivor alive outcome outcomes discharge discharged "
    "disposition los expired expire readmission readmitted recurrence relapse complication complications followup "
    "mrs mace fu tod exitus".split()
)
OUTCOME_STEMS = (
    *("death", "dead", "died", "alive", "surviv", "mortal", "outcome", "discharg", "readmi", "recover"),
    *("verstorb", "gestorb", "sterbe", "todes", "überleb", "entlass", "folgejahr"),
)
"""Long enough to mean the same inside an abbreviation, as in FDEAD."""
PREDICTION = frozenset("predicted prediction pred probability prob forecast".split())
FREE_TEXT = frozenset(
    "note notes comment comments remark remarks text narrative freetext description "
    "bemerkung bemerkungen kommentar notiz notizen freitext anmerkung".split()
)
DEMOGRAPHICS = frozenset(
    "age sex gender height weight bmi ethnicity alter geschlecht gewicht größe körpergröße".split()
)
LABORATORY = re.compile(r"^(?:[mµun]?g|pg|[mµun]?mol|meq|m?iu|u)/(?:dl|l|ml)$|^10\^\d+/l$")
"""Units of concentration, in lower case."""
LATER = re.compile(r"^(?:\d+(?:d|day|days|m|mo|month|months|y|yr|year|years)|(?:d|day|month)(?:28|30|60|90|180|365))$")

UNITS = {
    ("mg", "dl"): "mg/dL",
    ("g", "dl"): "g/dL",
    ("ug", "dl"): "ug/dL",
    ("mg", "l"): "mg/L",
    ("g", "l"): "g/L",
    ("ug", "l"): "ug/L",
    ("ng", "ml"): "ng/mL",
    ("pg", "ml"): "pg/mL",
    ("ng", "l"): "ng/L",
    ("mmol", "l"): "mmol/L",
    ("umol", "l"): "umol/L",
    ("µmol", "l"): "µmol/L",
    ("μmol", "l"): "µmol/L",
    ("meq", "l"): "mEq/L",
    ("iu", "l"): "IU/L",
    ("u", "l"): "U/L",
    ("ml", "h"): "mL/h",
    ("ml", "min"): "mL/min",
    ("l", "min"): "L/min",
    ("kg", "m2"): "kg/m2",
    ("mm", "hg"): "mmHg",
    ("mmhg",): "mmHg",
    ("kpa",): "kPa",
    ("bpm",): "bpm",
    ("kg",): "kg",
    ("cm",): "cm",
    ("mm",): "mm",
    ("ml",): "mL",
    ("mg",): "mg",
    ("pct",): "%",
    ("percent",): "%",
    ("years",): "years",
    ("jahre",): "years",
    ("yrs",): "years",
    ("months",): "months",
    ("days",): "days",
    ("hours",): "hours",
    ("hrs",): "hours",
    ("minutes",): "minutes",
}
"""The last words of a name -> the unit as it is printed."""
BRACKETS = re.compile(r"^(?P<name>.*\S)\s*[(\[](?P<unit>[^()\[\]]{1,15})[)\]]\s*$")


def words(column: str) -> list[str]:
    """Lower-case words of a name: `ICUDeath_28d` -> icu, death, 28d."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", column)
    return [word.lower() for word in re.split(r"[^\w%]+|_+", spaced) if word]


def name_and_unit(column: str) -> tuple[str, str]:
    """A name for the prompt, and the unit that the column's name ends in, or ""."""
    bracket = BRACKETS.match(column)
    if bracket is not None:
        unit = bracket["unit"].strip()
        return readable(re.split(r"[\s_.]+", bracket["name"])), UNITS.get((unit.lower(),), unit)
    parts = list(re.finditer(r"[^\s_./-]+", column))
    for length in (2, 1):
        unit = UNITS.get(tuple(part[0].lower() for part in parts[-length:]))
        if unit is not None and len(parts) > length:
            return readable(re.split(r"[\s_.]+", column[: parts[-length].start()].rstrip("/-"))), unit
    return readable(re.split(r"[\s_.]+", column)), ""


def readable(parts: list[str]) -> str:
    name = " ".join(part for part in parts if part)
    return name[:1].upper() + name[1:]


def says(column: str, hints: frozenset[str]) -> str:
    """The first word of the name that is among the hints, or ""."""
    return next((word for word in words(column) if word in hints), "")


def section(column: str, unit: str) -> str:
    """Where in the record a column may stand."""
    if says(column, DEMOGRAPHICS):
        return "Demographics"
    return "Laboratory" if LABORATORY.match(unit.lower()) else "Record"


def outcome_word(column: str) -> str:
    found = says(column, OUTCOME) or next((word for word in words(column) if LATER.match(word)), "")
    return found or next((stem for stem in OUTCOME_STEMS if stem in column.lower()), "")


def is_key(column: str) -> bool:
    """`stay_id`, `Patient` and `case no`, but not `patient_age` or `diagnosis_code`."""
    found = words(column)
    if not found:
        return False
    numbered = found[-1] in NUMBERED and any(word in KEY or word in PATIENT for word in found)
    return found[-1] in KEY_ENDS or numbered or (len(found) == 1 and (found[0] in KEY or found[0] in PATIENT))


def patient_rank(column: str) -> int | None:
    """How surely this is the patient column: 0 is the surest, None is not at all."""
    found = [PATIENT.index(word) for word in words(column) if word in PATIENT]
    return min(found, default=None) if is_key(column) else None
