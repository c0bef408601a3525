"""A query's result as a table: PostgreSQL over ADBC.

Apart from the other readers because its library takes half a second to import (with pandas), and a site starts a
process for each message.
"""

import adbc_driver_postgresql.dbapi as postgres
import polars as pl

from common.errors import UserError
from common.registry.config import Table, expand_environment
from common.registry.header import check_header
from common.registry.sql import failed


def read_postgres(table: Table) -> pl.DataFrame:
    """Every column as text, written by the server itself: numbers with a point, dates and times as ISO.

    Raises:
        UserError: an unset environment variable, no connection, or the query fails.
    """
    server = expand_environment(table.server, "table.server", table.place)
    try:
        connection = postgres.connect(server)
    except postgres.Error:
        raise UserError(
            f"{table.place}: no connection to this PostgreSQL server.",
            "Check table.server, the user, the password in the environment, and that the server can be reached.",
        ) from None
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            cursor.execute("SET datestyle TO 'ISO'")
            connection.commit()
            query = table.query.strip().removesuffix(";")
            names = cursor.adbc_execute_schema(query).names
            check_header(table.place, names)
            quoted = ['"' + name.replace('"', '""') + '"' for name in names]
            texts = ", ".join(f"{name}::text AS {name}" for name in quoted)
            # The query on lines of its own: its last one may be a comment.
            return pl.read_database(f"SELECT {texts} FROM (\n{query}\n) AS registry", connection)
    except postgres.Error as error:
        raise failed(table.place, error.sqlstate or "") from None
    except pl.exceptions.ComputeError:
        # What fails while rows arrive comes through polars.
        raise failed(table.place, "") from None
