"""The names of a table's columns: what is wrong with them is said at once and not later, where it puzzles."""

from collections.abc import Sequence

from common.errors import UserError

ROW = "#row"
"""As `patient`: the table has no patient column, one row is one patient, known by its number in the file."""


def check_header(place: str, names: Sequence[str]) -> None:
    """Names as the source gives them; the spaces around one do not count. A message tells places and quotes no name:
    in a file without a header the names are the first patient's values.

    Raises:
        UserError: no names, a column without one, a name that stands twice, or one that is reserved.
    """
    stripped = [name.strip() for name in names]
    if not any(stripped):
        raise UserError(f"{place}: there are no column names.", "Put them in the first line.")
    if "" in stripped:
        raise UserError(f"{place}: column {stripped.index('') + 1} has no name.", "Give every column a name.")
    if ROW in stripped:
        raise UserError(f"{place}: a column may not be called {ROW!r}.", "Rename it (in a query, with AS).")
    again = next((n for n, name in enumerate(stripped) if name in stripped[:n]), None)
    if again is not None:
        raise UserError(
            f"{place}: columns {stripped.index(stripped[again]) + 1} and {again + 1} have the same name.",
            "Rename or remove one of the two (in a query, with AS).",
        )
