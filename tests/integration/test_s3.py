"""The tables in an S3-compatible store: moto, which supports conditional writes."""

import threading
from collections import Counter
from collections.abc import Iterator

import boto3
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import TURN, turns_from_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table, read_files
from tests.support.conversations import turn

pytestmark = pytest.mark.integration
BUCKET = "tables"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def layout(endpoint: str, tmp_path, monkeypatch) -> Layout:
    """An empty prefix, and the environment that an operator would set."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    store = boto3.client("s3")
    if not any(bucket["Name"] == BUCKET for bucket in store.list_buckets()["Buckets"]):
        store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return Layout(tmp_path, tables=f"s3://{BUCKET}/a run \u00e9/{tmp_path.name}/")


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def objects(layout: Layout) -> dict[str, bytes]:
    """Every object under the table's prefix."""
    bucket, _, prefix = layout.table("turns").removeprefix("s3://").partition("/")
    store = boto3.client("s3")
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return {key: store.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_rows_and_positions_are_committed_and_read_back(layout):
    table = Table.turns(layout)
    made = [turn(f"t{number}", f"question {number}", at_s=float(number)) for number in range(4)]
    for number, each in enumerate(made):
        assert table.append(turns_to_arrow([each]), {"log": number}) == number + 1
    again = Table.turns(layout)
    assert (again.num_rows, again.batch, again.position("log")) == (4, 4, 3)
    assert turns_from_arrow(again.read().sort_by("turn_id")) == made
    assert ids(again, after=1, upto=3) == ["t1", "t2"]
    (file,) = again.files({3})
    assert file.startswith(layout.table("turns"))
    assert read_files([file], TURN, ["turn_id"], ds.field("turn_id") == "t2").num_rows == 1
    again.sync()


def test_of_two_committers_the_second_commits_nothing(layout):
    one, other = Table.turns(layout), Table.turns(layout)
    assert one.append(turns_to_arrow([turn("t0")]), {"log": 1}) == 1
    assert other.append(turns_to_arrow([turn("t0")]), {"log": 1}) is None
    other.refresh()
    assert (ids(other), other.position("log")) == (["t0"], 1)
    assert other.append(turns_to_arrow([turn("t1")]), {"log": 2}) == 2


def test_four_writers_at_once_store_everything_once(layout):
    Table.turns(layout)
    names = Counter(f"{writer}-{number:02d}" for writer in range(4) for number in range(12))

    def write(writer: int) -> None:
        table = Table.turns(layout)
        for number in range(12):
            row = turns_to_arrow([turn(f"{writer}-{number:02d}")])
            while table.append(row, {f"log-{writer}": number}) is None:
                table.refresh()
                if table.position(f"log-{writer}") == number:
                    break

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    table = Table.turns(layout)
    assert Counter(ids(table)) == names
    assert (table.batch, table.num_rows) == (48, 48)
    assert [table.position(f"log-{writer}") for writer in range(4)] == [11] * 4


def test_maintenance_compacts_and_removes_what_it_replaced(layout):
    table = Table.turns(layout)
    for number in range(10):
        table.append(turns_to_arrow([turn(f"t{number}", at_s=float(number))]), {"log": number})
    reader = Table.turns(layout)
    assert table.maintain(every=5, keep_files_h=0, expire_before_s=3.0)
    assert (ids(table), len(table.files())) == ([f"t{number}" for number in range(2, 10)], 1)
    assert len([key for key in objects(layout) if "_delta_log" not in key]) == 1
    # The files of the reader's version are deleted: it reads the newest.
    assert ids(reader) == [f"t{number}" for number in range(2, 10)]
    assert Table.turns(layout).position("log") == 9


def test_erasure_leaves_no_byte(layout):
    table = Table.turns(layout)
    words = ["zebra in the attic", "victim-0", "victim-2"]
    for number in range(3):
        made = [turn(f"victim-{number}", "It is the zebra in the attic."), turn(f"other-{number}")]
        table.append(turns_to_arrow(made), {"log": number})
    assert table.delete([f"victim-{number}" for number in range(3)]) == 3
    table.purge()
    held = objects(layout)
    decoded = [pq.read_table(pa.BufferReader(body)) for key, body in held.items() if key.endswith(".parquet")]
    texts = [str(rows.to_pylist()) for rows in decoded] + [body.decode(errors="replace") for body in held.values()]
    assert not [word for word in words if any(word in text for text in texts)]
    assert ids(table) == ["other-0", "other-1", "other-2"]
    assert Table.turns(layout).position("log") == 2
