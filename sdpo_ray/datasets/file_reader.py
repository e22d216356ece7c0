"""Stream the rows of a log file: JSON Lines, one JSON array or Parquet, gzipped or not, detected by its first bytes.

A row that cannot be parsed gives a row without a record, and the next one is read. At most one row, or one small
batch of Parquet, is in memory at a time.

Arrays are read with the standard library's `raw_decode`. ijson 3.6.0 (yajl2_c) is no substitute for files of unknown
origin: 100,000 nested brackets take all memory, a lone surrogate silently becomes "?", an integer over 64 bits or a
byte that is not UTF-8 ends the whole file, and elements have no limit.
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
"""A longer line is skipped unread: it is no conversation to train on, and could fill the memory."""

_ROWS_A_BATCH = 64
_CHUNK_CHARS = 1 << 16
_Stream = BufferedReader | gzip.GzipFile
_BETWEEN = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One line, array element or row of Parquet. Made by `read_rows`; read by `datasets.log_reader`."""

    number: int
    """From 1: the line number in a file of lines, else the record's."""
    record: Mapping[str, Any] | None
    """None if the row is no JSON object, or a line over the limit."""
    bytes_done: int
    """Approximate bytes of the file read so far."""


def read_rows(path: Path, fields: Collection[str]) -> Iterator[LogRow]:
    """The rows of a file in order, without blank lines; of Parquet only the columns in `fields`.

    Raises DataError for a missing or broken file: a truncated gzip or array, damaged Parquet.
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
    """Rows of an array if the text begins with one of objects, else rows of lines."""
    head = stream.read(_CHUNK_CHARS).lstrip(b"\xef\xbb\xbf \t\r\n")
    stream.seek(0)
    is_array = head.startswith(b"[") and head[1:].lstrip().startswith((b"{", b"]"))
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
    """Elements of one array. Raises DataError at one that is not JSON, since the start of the next is unknown."""
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
                # Double the buffer, so that a long element is not parsed again for every chunk.
                left = len(buffer) - at
                more = text.read(max(left, _CHUNK_CHARS)) if left < MAX_RECORD_BYTES else ""
                if not more:
                    raise DataError(f"record {number + 1} of its array is not JSON, or is truncated") from error
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
