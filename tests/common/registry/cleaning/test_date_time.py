"""A date in one column, its time in the next."""

import polars as pl

from common.registry.cleaning.date_time import join_time


def test_date_and_time_are_joined() -> None:
    table = pl.DataFrame(
        [
            ("2024-03-01", "10:30", "2024-03-01 10:30"),
            ("2024-03-01 00:00:00", "1899-12-31 10:30:00", "2024-03-01 10:30:00"),
            ("2024-03-01T00:00", "9:05", "2024-03-01 09:05"),
            ("2024-03-01", None, "2024-03-01"),
            (None, "10:30", None),
        ],
        schema=["d", "t", "expected"],
        orient="row",
    )
    assert table.select(join_time(pl.col("d"), pl.col("t")))["d"].to_list() == table["expected"].to_list()
