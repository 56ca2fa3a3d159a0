"""Which reader takes which file."""

from __future__ import annotations

from typing import Final

from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.data.source import Source, file_error

__all__ = ["ARRAYS", "DATABASES", "SUFFIXES", "open_source"]

ARRAYS: Final = (".npz",)
DATABASES: Final = (".db", ".sqlite", ".sqlite3")
SUFFIXES: Final = (*ARRAYS, ".csv", ".parquet", *DATABASES)
"""The ends of the names of files that can be read."""


def open_source(file: ExamplesFile) -> Source:
    """The reader of a file of rows.

    Raises:
        ExamplesError: No reader takes a file of this name.
    """
    suffix = file.path.suffix.lower()
    if suffix == ".csv":
        from edge_sdk.training.data.csv_file import CsvFile

        return CsvFile(file.path)
    if suffix == ".parquet":
        from edge_sdk.training.data.parquet_file import ParquetFile

        return ParquetFile(file.path)
    if suffix in DATABASES:
        from edge_sdk.training.data.sqlite_file import SqliteFile

        if not file.table and not file.query:
            raise file_error(file.path, "a database needs the name of a table, or a query: data.table or data.query")
        return SqliteFile(file.path, table=file.table, query=file.query)
    what = f"a file of examples ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not {suffix!r}"
    raise file_error(file.path, what)
