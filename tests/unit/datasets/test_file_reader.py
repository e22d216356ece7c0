"""Rows of log files: after a malformed row the next one is read."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.datasets import file_reader
from sdpo_ray.datasets.file_reader import MAX_RECORD_BYTES, read_rows
from sdpo_ray.errors import DataError

FIELDS = ("a", "b")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def records(path: Path) -> list[Any]:
    return [row.record for row in read_rows(path, FIELDS)]


def numbers(path: Path) -> list[tuple[int, bool]]:
    return [(row.number, row.record is not None) for row in read_rows(path, FIELDS)]


ROWS = [{"a": index, "b": "ü" * index} for index in range(300)]


def lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        lines(),
        b"\xef\xbb\xbf" + lines(),
        lines().replace(b"\n", b"\r\n\r\n"),
        lines().rstrip(b"\n"),
        gzip.compress(lines()),
        json.dumps(ROWS).encode(),
        b" \n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
        gzip.compress(json.dumps(ROWS).encode()),
    ],
    ids=["lines", "bom", "crlf", "no end", "gzip", "array", "indented", "array.gz"],
)
def test_the_same_rows_are_read_from_every_kind_of_file_whatever_its_name(tmp_path: Path, data: bytes):
    path = write(tmp_path / "log.txt", data)
    assert records(path) == ROWS
    assert len(data) - 4 <= [row.bytes_done for row in read_rows(path, FIELDS)][-1] <= len(data)


def test_parquet_is_read_in_batches_and_only_the_columns_that_are_asked_for(tmp_path: Path):
    table = pa.Table.from_pylist([row | {"c": "heavy"} for row in ROWS])
    pq.write_table(table, tmp_path / "log.parquet")
    assert records(tmp_path / "log.parquet") == ROWS
    assert [row.number for row in read_rows(tmp_path / "log.parquet", FIELDS)] == list(range(1, 301))


def test_a_row_of_parquet_that_is_not_utf8_is_malformed_and_the_next_is_read(tmp_path: Path):
    bad = pa.array([b"good", b"\xff\xfe", b"too"], pa.binary()).cast(pa.large_binary())
    text = pa.Array.from_buffers(pa.large_string(), 3, bad.buffers())
    pq.write_table(pa.table({"a": text}), tmp_path / "log.parquet")
    assert records(tmp_path / "log.parquet") == [{"a": "good"}, None, {"a": "too"}]


GARBAGE = [
    random.Random(0).randbytes(2000).replace(b"\n", b""),
    b"\x00" * 50,
    b"[" * 100_000,
    b'{"a": ' * 100_000,
    b'{"a": "torn',
    b"[2024-01-01] INFO started",
    b"null",
    b"17",
    b'"a text"',
    b'[{"a": 1}]',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": "\xff\xfe"}',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_line_of_garbage_is_one_malformed_row(tmp_path: Path, garbage: bytes):
    path = write(tmp_path / "log.jsonl", b'{"a": 1}\n' + garbage + b'\n{"a": 2}\n')
    assert numbers(path) == [(1, True), (2, False), (3, True)]


def test_a_first_line_in_brackets_does_not_make_an_array(tmp_path: Path):
    path = write(tmp_path / "log.jsonl", b'[2024-01-01] INFO started\n{"a": 2}\n')
    assert numbers(path) == [(1, False), (2, True)]


@settings(max_examples=50, deadline=None)
@given(line=st.binary(max_size=200).map(lambda data: data.replace(b"\n", b" ")))
def test_no_line_hides_the_one_behind_it(tmp_path_factory: pytest.TempPathFactory, line: bytes):
    path = write(tmp_path_factory.mktemp("log") / "log.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert records(path)[-1] == {"a": 2}


def test_a_line_that_is_too_long_is_stepped_over_unread(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"a": 2}\n')
    assert path.stat().st_size > 3 * MAX_RECORD_BYTES
    assert numbers(path) == [(1, True), (2, False), (3, True)]


def test_the_longest_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_reader, "MAX_RECORD_BYTES", 10)
    path = write(tmp_path / "log.jsonl", b'{"a":123}\n{"a":1234}\n{"a":1}\n')
    assert numbers(path) == [(1, True), (2, False), (3, True)]


def test_elements_longer_than_what_is_read_at_once_are_whole(tmp_path: Path):
    rows = [{"a": "x" * 200_000}, {"a": 1}, {"a": "]}, {" * 60_000}, {"a": 2}]
    assert records(write(tmp_path / "log.json", json.dumps(rows).encode())) == rows


def test_an_element_with_half_a_surrogate_pair_or_a_huge_integer_is_read_as_it_is(tmp_path: Path):
    path = write(tmp_path / "log.json", b'[{"a": "\\ud800"}, {"a": 99999999999999999999999}]')
    assert records(path) == [{"a": "\ud800"}, {"a": 99999999999999999999999}]


def test_an_element_that_is_no_object_is_one_malformed_row(tmp_path: Path):
    assert numbers(write(tmp_path / "log.json", b'[{"a": 1}, 5, null, {"a": 2}]')) == [
        (1, True),
        (2, False),
        (3, False),
        (4, True),
    ]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'[{"a": 1}, {"a": 2', "record 2"),
        (b'[{"a": 1}, oops, {"a": 2}]', "record 2"),
        (b'[{"a": 1}, ' + b"[" * 100_000, "record 2"),
        (gzip.compress(lines())[:-20], "log.json"),
        (b"\x1f\x8bgarbage", "log.json"),
        (b"PAR1garbage", "log.json"),
        (b"PAR1", "log.json"),
    ],
)
def test_a_file_that_is_broken_is_said_to_be(tmp_path: Path, data: bytes, what: str):
    path = write(tmp_path / "log.json", data)
    with pytest.raises(DataError, match=what):
        records(path)


def test_a_file_that_is_missing_is_said_to_be(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        records(tmp_path / "log.jsonl")


def test_an_empty_file_has_no_rows(tmp_path: Path):
    assert records(write(tmp_path / "log.jsonl", b"")) == []
    assert records(write(tmp_path / "log.json", b"[]")) == []
