"""Configuration that is read strictly: what a file may not say is one sentence with a remedy."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Strict(BaseModel):
    """Unknown keys and numbers that are not finite are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Strict)


def checked(model: type[Checked], values: dict, source: str) -> Checked:
    """Values as read from a file, as the model; "3" is no number and 1 is no truth value.

    Raises:
        UserError: wrong key, type, value or combination.
    """
    try:
        # As JSON, since only there pydantic's strict types take a list for a tuple and a table for a model.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, source) from None


def explain(error: ValidationError, source: str) -> UserError:
    """The first thing wrong with a configuration, as one sentence with the field, value and remedy."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UserError(f"{source}: there is no setting {field!r}.", "Remove it or correct its spelling.")
    if first["type"] == "missing":
        return UserError(f"{source}: {field!r} is missing.", "Add it.")
    if first["type"] == "value_error":
        # Our own validators say "what is wrong; what to do".
        what, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
        place = f"{source}: {field}" if field else source
        return UserError(f"{place}: {what}.", f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Correct the value.")
    return UserError(f"{source}: {field or '(whole file)'} = {first['input']!r}: {first['msg']}.", "Correct the value.")


def read_toml(path: Path) -> dict:
    """Parse a TOML file.

    Raises:
        UserError: the file is missing, not readable text or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.", "Give the path of an existing TOML file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder.", "Give the path of a TOML file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text.", "Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error}).", "Correct the line it names.") from None
