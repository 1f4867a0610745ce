"""Writes runs as Parquet; the only file that needs pyarrow."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from app.llm.persistence.codec import to_json
from app.llm.persistence.exporting import COLUMNS, SENDS, TEXTS, Column, Kind

ROWS_IN_GROUP = 10_000
BYTES_IN_GROUP = 32 * 2**20
"""What is gathered in memory at most before it is written, in rows or in bytes."""

_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.COUNT: pa.int64(),
    Kind.FLAG: pa.bool_(),
    Kind.MILLISECONDS: pa.float64(),
    Kind.DOLLARS: pa.decimal128(18, 9),
    Kind.TIME: pa.timestamp("us", tz="UTC"),
    Kind.JSON: pa.string(),
}


class ParquetFile:
    """A Parquet file in the making: zstd, some ten thousand runs to a row group."""

    def __init__(self, file: BinaryIO, *, texts: bool) -> None:
        columns = (*COLUMNS, *(TEXTS if texts else ()))
        self._schema = pa.schema([_field(each) for each in columns])
        self._as_text = [each.name for each in columns if each.kind is Kind.JSON]
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._gathered: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Gather rows; write them once they are enough for a group."""
        batch = pa.RecordBatch.from_pylist([self._row(row) for row in rows], schema=self._schema)
        self._gathered.append(batch)
        self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + batch.nbytes
        if self._rows >= ROWS_IN_GROUP or self._bytes >= BYTES_IN_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the rest and the footer; what fails here is not tried again when memory is tidied up."""
        try:
            self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False

    def _flush(self) -> None:
        if self._gathered:
            self._writer.write_table(pa.Table.from_batches(self._gathered), row_group_size=self._rows)
        self._gathered, self._rows, self._bytes = [], 0, 0

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        texts = {name: None if row[name] is None else to_json(row[name]) for name in self._as_text}
        return {**row, **texts}


def _field(column: Column) -> Any:
    if column.kind is Kind.SENDS:
        return pa.field(column.name, pa.list_(pa.struct([_field(each) for each in SENDS])))
    return pa.field(column.name, _TYPES[column.kind], metadata={"meaning": column.meaning})
