"""Rows of log files, read in a stream: JSON Lines, one JSON array or Parquet, gzipped or not, told apart by bytes.

A row that cannot be read is a row without a record, and the next one is read all the same. No more than one row, or
one small batch of Parquet, is in memory at a time.
"""

import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo_ray.errors import DataError

MAX_RECORD_BYTES = 16 << 20
"""A longer line is stepped over unread: it holds no conversation worth having, and might fill the memory."""

_ROWS_A_BATCH = 64
_CHUNK_CHARS = 1 << 16
_Stream = BufferedReader | gzip.GzipFile
_BETWEEN = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One line, array element or row of Parquet. Made by `read_rows`; read by `datasets.import_snapshot`."""

    number: int
    """From 1: of the line in a file of lines, else of the record."""
    record: Mapping[str, Any] | None
    """None where the row is no JSON object, or a line too long to be read."""
    bytes_done: int
    """Bytes of the file that were read so far, about."""


def read_rows(path: Path, fields: Collection[str]) -> Iterator[LogRow]:
    """The rows of a file in its order, blank lines aside; of Parquet only the columns in `fields`.

    Raises DataError where the file is missing or broken: a gzip or an array that breaks off, damaged Parquet.
    """
    try:
        with path.open("rb") as raw:
            head = raw.peek(4)
            if head.startswith(b"PAR1"):
                yield from _parquet_rows(raw, path.stat().st_size, fields)
            elif head.startswith(b"\x1f\x8b"):
                yield from _json_rows(gzip.GzipFile(fileobj=raw), raw)
            else:
                yield from _json_rows(raw, raw)
    except (OSError, EOFError, zlib.error, pa.ArrowException, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _json_rows(stream: _Stream, raw: BufferedReader) -> Iterator[LogRow]:
    """Rows of an array of objects where the text begins as one, else of lines."""
    beginning = stream.read(_CHUNK_CHARS).lstrip(b"\xef\xbb\xbf \t\r\n")
    stream.seek(0)
    is_array = beginning.startswith(b"[") and beginning[1:].lstrip().startswith((b"{", b"]"))
    return _array_rows(stream, raw) if is_array else _line_rows(stream, raw)


def _line_rows(stream: _Stream, raw: BufferedReader) -> Iterator[LogRow]:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield LogRow(number=number, record=None, bytes_done=raw.tell())
        elif line.strip():
            yield LogRow(number=number, record=_record(line), bytes_done=raw.tell())


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _array_rows(stream: _Stream, raw: BufferedReader) -> Iterator[LogRow]:
    """Elements of one array. Raises DataError at one that is not JSON: where the next begins is not known."""
    with TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as text:
        decoder = json.JSONDecoder()
        buffer = text.read(_CHUNK_CHARS)
        at, number = buffer.index("[") + 1, 0
        while True:
            at += len(_BETWEEN.match(buffer, at)[0])  # type: ignore[index]
            if buffer.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(buffer, at)
            except (ValueError, RecursionError) as error:
                # As much again as there is, so that a long element is not tried again with every chunk.
                left = len(buffer) - at
                more = text.read(max(left, _CHUNK_CHARS)) if left < MAX_RECORD_BYTES else ""
                if not more:
                    raise DataError(f"record {number + 1} of its array is no JSON, or broken off") from error
                buffer, at = buffer[at:] + more, 0
                continue
            number += 1
            yield LogRow(number=number, record=value if isinstance(value, dict) else None, bytes_done=raw.tell())


def _parquet_rows(raw: BufferedReader, size: int, fields: Collection[str]) -> Iterator[LogRow]:
    file = pq.ParquetFile(raw)
    columns = [name for name in file.schema_arrow.names if name in fields]
    number = 0
    for batch in file.iter_batches(batch_size=_ROWS_A_BATCH, columns=columns):
        for index in range(batch.num_rows):
            number += 1
            yield LogRow(
                number=number,
                record=_parquet_record(batch.slice(index, 1)),
                bytes_done=size * number // file.metadata.num_rows,
            )


def _parquet_record(row: pa.RecordBatch) -> Mapping[str, Any] | None:
    try:
        record: Mapping[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return record
