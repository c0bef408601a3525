"""The names of a table's columns: what is wrong with them is said at once and not later, where it puzzles."""

from collections.abc import Sequence

from common.errors import UserError

ROW = "#row"
"""As `patient`: the table has no patient column, one row is one patient, known by its number in the file."""


def check_header(place: str, names: Sequence[str]) -> None:
    """Names as the source gives them; the spaces around one do not count.

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
    twice = sorted({name for name in stripped if stripped.count(name) > 1})
    if twice:
        raise UserError(
            f"{place}: the column {twice[0]!r} stands twice.", "Rename or remove one of the two (in a query, with AS)."
        )
