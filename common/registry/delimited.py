"""Delimited text (CSV) whose first line names the columns."""

import csv
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import polars as pl

from common.errors import UserError
from common.registry.config import ROW, Table
from common.registry.header import check_header

DELIMITERS = (",", ";", "\t", "|")


def read_csv(path: Path, table: Table, start: bytes) -> pl.LazyFrame:
    """UTF-8 is read from the file as it is needed, text in another encoding is held in memory.

    Args:
        start: the file's first bytes.

    Raises:
        UserError: another encoding than declared, a faulty header, rows of unequal length, a quote left open.
    """
    check_encoding(path, table.encoding, start)
    check_lines(path, table)
    source = path if table.encoding == "utf-8" else recoded(path, table.encoding)
    lazy = pl.scan_csv(source, separator=table.delimiter, infer_schema=False)
    blank = pl.all_horizontal(pl.all().exclude(ROW).fill_null("") == "")
    return lazy.with_row_index(ROW, offset=1).filter(~blank).with_columns(pl.col(ROW).cast(pl.String))


def utf_16(start: bytes) -> str:
    """The kind of UTF-16 that the file's first bytes seem to be, or "": every other byte of a header is zero there."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        half, other = start[place::2], start[1 - place :: 2]
        if half.count(0) > len(half) / 2 and not other.count(0):
            return name
    return ""


def likely_encoding(path: Path) -> str:
    """A guess: UTF-8 or UTF-16 where the bytes say so, else Korean Windows where bytes beyond ASCII come in pairs, else
    Western Windows. The first megabyte is looked at."""
    with path.open("rb") as file:
        raw = file.read(1 << 20)
    if utf_16(raw[: 1 << 16]):
        return utf_16(raw[: 1 << 16])
    if is_utf_8(raw[: raw.rfind(b"\n") + 1] or raw):
        return "utf-8"
    beyond = len(re.findall(rb"[\x80-\xff]", raw))
    pairs = len(re.findall(rb"[\x80-\xff]{2}", raw))
    return "cp949" if 2 * pairs > 0.9 * beyond else "cp1252"


def check_encoding(path: Path, encoding: str, start: bytes) -> None:
    """What the first bytes say against the declared encoding; the rest is found while the lines are counted."""
    if b"\0" in "a".encode(encoding):
        # A kind of UTF-16 or UTF-32, in which zero bytes are normal.
        return
    wide = utf_16(start)
    if wide:
        raise UserError(
            f"{path}: the text seems to be UTF-16.", f"Set table.encoding to {wide!r}, or save it as UTF-8."
        )
    if b"\0" in start:
        raise UserError(
            f"{path}: this is a binary file, not text.",
            "Export the table as CSV in UTF-8, or correct table.source.",
        )


def check_lines(path: Path, table: Table) -> None:
    """Every row must have as many fields as the header: polars would fill a short one, such as the last row of
    an interrupted copy, with nulls. One pass, nothing is kept; messages name lines, never what stands there.

    Raises:
        UserError: not in the declared encoding, a faulty header, a quote left open, a row too long or too short.
    """
    lines = 0
    encoding = "utf-8-sig" if table.encoding == "utf-8" else table.encoding
    try:
        # Lines end in LF or CR LF; polars knows no others.
        with path.open(encoding=encoding, newline="\n") as file:
            counted = Lines(file)
            reader = csv.reader(counted, delimiter=table.delimiter, strict=True)
            header = next(reader, [])
            check_header(str(path), header)
            check_delimiter(path, header, table.delimiter)
            for row in reader:
                lines = reader.line_num
                if row and len(row) != len(header):
                    raise UserError(
                        f"{path}: line {lines} has {len(row)} fields, the header has {len(header)}.",
                        f"Export the table again, with values that contain {table.delimiter!r} in double quotes.",
                    )
                if counted.quotes % 2:
                    raise UserError(
                        f"{path}: line {lines} has a quote inside a value that is not in quotes.",
                        "Export the table again, with such values in double quotes and quotes inside them doubled.",
                    )
    except UnicodeError:
        raise not_in(path, table.encoding) from None
    except csv.Error:
        raise UserError(
            f"{path}: not parseable as CSV after line {lines}; the usual causes are a quote that is not closed, and "
            "lines that end in CR alone.",
            "Export the table again, with double quotes inside values doubled and ordinary line ends.",
        ) from None


class Lines:
    """A file's lines, and how many quotes they held so far: an odd number behind a whole row is one too many."""

    def __init__(self, file: Iterable[str]) -> None:
        self.file = iter(file)
        self.quotes = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.quotes += line.count('"')
        return line


def check_delimiter(path: Path, header: list[str], delimiter: str) -> None:
    """A header whose names hold another delimiter more often than the declared one separates them is suspect."""
    held = {mark: sum(name.count(mark) for name in header) for mark in DELIMITERS if mark != delimiter}
    likely = max(held, key=lambda mark: held[mark])
    if held[likely] > len(header) - 1:
        raise UserError(
            f"{path}: its columns seem to be separated by {likely!r} and not by {delimiter!r}.",
            f"Set table.delimiter to {likely!r}, or rename the columns that hold it.",
        )


def recoded(path: Path, encoding: str) -> BytesIO:
    """The file's text in UTF-8.

    Raises:
        UserError: the text is UTF-8 already; an 8-bit encoding would read it as nonsense without an error.
    """
    raw = path.read_bytes()
    if not raw.isascii() and is_utf_8(raw):
        raise UserError(f"{path}: the text is UTF-8, not {encoding}.", "Remove table.encoding.")
    return BytesIO(raw.decode(encoding).removeprefix("\ufeff").encode())


def is_utf_8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def not_in(place: Path, encoding: str) -> UserError:
    """The text is not in the encoding that the site file declares, or in UTF-8 where it declares none."""
    remedy = "Save it as UTF-8, or set table.encoding: often 'cp1252' (Western) or 'cp949' (Korean) Windows"
    return UserError(f"{place}: the text is not {encoding.upper()}.", f"{remedy}, or 'utf-16'.")
