"""One sheet of an Excel or OpenDocument file."""

from pathlib import Path

import fastexcel
import polars as pl

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.header import check_header


def read_excel(path: Path, table: Table) -> pl.LazyFrame:
    """The sheet's cells as text, the first row names the columns. Dates read `YYYY-MM-DD HH:MM:SS`.

    Raises:
        UserError: not a spreadsheet, no such sheet, several sheets and none declared, a faulty header.
    """
    try:
        book = fastexcel.read_excel(path)
        sheet = choose(path, table.sheet, book.sheet_names)
        cells = book.load_sheet(sheet, header_row=None, dtypes="string").to_polars()
    except fastexcel.FastExcelError:
        # The library's messages may quote cells.
        raise UserError(
            f"{path}: not a spreadsheet, or a damaged or protected one.",
            "Save it again as .xlsx without a password, or correct table.source.",
        ) from None
    if cells.is_empty():
        raise UserError(f"{path}: the sheet {sheet!r} is empty.", "Declare table.sheet.")
    header = [str(name or "").strip() for name in cells.row(0)]
    used = [place for place, name in enumerate(header) if name or cells[1:, place].count()]
    check_header(f"{path}, sheet {sheet!r}", [header[place] for place in used])
    body = cells[1:, used].rename(dict(zip(cells[:, used].columns, [header[place] for place in used], strict=True)))
    blank = pl.all_horizontal(pl.all().exclude(ROW).is_null())
    return body.lazy().with_row_index(ROW, offset=1).filter(~blank).with_columns(pl.col(ROW).cast(pl.String))


def choose(path: Path, sheet: str, names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names)
    if sheet and sheet not in names:
        raise UserError(f"{path}: there is no sheet {sheet!r}.", f"Set table.sheet to one of {listed}.")
    if not sheet and len(names) > 1:
        raise UserError(f"{path}: the file has {len(names)} sheets.", f"Set table.sheet to one of {listed}.")
    return sheet or names[0]
