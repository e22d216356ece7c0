"""The event log on Kafka, against librdkafka's mock cluster: its protocol over TCP, its data in memory.

The mock makes a topic of 4 partitions when it is first written to, and drops the oldest messages of a partition at
5 MB. It does not support DeleteRecords, so truncation is tested up to the request.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from sdpo_ray.config.data import CaptureConfig, KafkaConfig
from sdpo_ray.errors import ConfigError, CorruptLog, DataError, LogFull, LostEvents
from sdpo_ray.eventlog.codec import event_id
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.eventlog.kafka.log import KafkaLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Event
from tests.faults.repetitions import SLOW
from tests.support.conversations import turn
from tests.support.journals import append_all
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.integration
TOPIC = "sdpo-events"
QUIET = {"log_level": "0"}
MIB = 1 << 20
KILLS = 40 if SLOW else 4


@dataclass(frozen=True)
class Cluster:
    brokers: str
    host: Producer

    def log(self, **options: str) -> KafkaLog:
        return KafkaLog(KafkaConfig(brokers=self.brokers, options=QUIET | options))

    def put(self, payload: bytes | None, partition: int = 0) -> None:
        """Produce a message that is no event."""
        producer = Producer({"bootstrap.servers": self.brokers, "log_level": 0})
        producer.produce(TOPIC, payload, partition=partition)
        assert producer.flush(10) == 0


@pytest.fixture
def cluster() -> Cluster:
    host = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 3, "log_level": 0})
    brokers = host.list_topics(timeout=10).brokers.values()
    return Cluster(",".join(f"{each.host}:{each.port}" for each in brokers), host)


@pytest.fixture
def log(cluster: Cluster) -> Iterator[KafkaLog]:
    log = cluster.log()
    yield log
    log.close()


def write(log: EventLog, *events: Event) -> None:
    append_all(log, events)


def read(log: EventLog, after: dict[str, int] | None = None) -> tuple[list[str], dict[str, int]]:
    """Read to the end of every partition. Returns the ids, and the positions to continue from."""
    ids, after = [], dict(after or {})
    waiting = set(log.partitions())
    while waiting:
        batch = log.poll(after, max_events=2000, max_bytes=4 * MIB)
        assert all(position > after.get(name, 0) for name, position in batch.positions.items())
        ids += [event_id(each) for each in batch.events]
        after |= batch.positions
        waiting -= batch.at_end
    return ids, after


def test_what_is_acknowledged_is_read_back_and_only_what_is_new_the_next_time(log):
    events = [turn(f"t{n}", f"question {n} é") for n in range(300)]
    write(log, *events)
    batch = log.poll({}, max_events=1000, max_bytes=10 * MIB)
    assert sorted(batch.events, key=lambda each: int(each.turn_id[1:])) == events
    assert batch.at_end == {f"{TOPIC}/{n}" for n in range(4)} == set(log.partitions())
    write(log, turn("new"))
    ids, after = read(log, batch.positions)
    assert ids == ["new"]
    assert read(log, after) == ([], after)


def test_a_conversation_keeps_its_order_in_one_partition(log):
    turns = [turn(f"{who}-{n}", f"I am {who}") for n in range(20) for who in "abcdef"]
    write(log, *turns)
    ids, _ = read(log)
    assert sorted(ids) == sorted(each.turn_id for each in turns)
    for who in "abcdef":
        assert [each for each in ids if each.startswith(who)] == [f"{who}-{n}" for n in range(20)]
    assert all(log.poll({}, max_events=1000, max_bytes=MIB).positions.values())


def test_a_poll_keeps_to_its_limits_but_gives_one_event_at_least(log):
    write(log, *(turn(f"t{n}", "x" * 1000) for n in range(20)))
    assert len(log.poll({}, max_events=7, max_bytes=MIB).events) == 7
    assert 1 < len(log.poll({}, max_events=99, max_bytes=5000).events) < 5
    assert len(log.poll({}, max_events=99, max_bytes=1).events) == 1
    batch = log.poll({}, max_events=20, max_bytes=MIB)
    assert (len(batch.events), batch.at_end) == (20, set(log.partitions()))


def test_what_retention_dropped_unread_stops_the_reader_loudly(cluster, log):
    write(log, *(turn(f"t{n}", os.urandom(50_000).hex()) for n in range(5)))
    _, after = read(log)
    for _ in range(70):
        cluster.put(os.urandom(100_000))
    name = f"{TOPIC}/0"
    with pytest.raises(LostEvents, match=rf"{name} begins at \d+, and was read up to \d+: \d+ events were dropped"):
        log.poll(after, max_events=10, max_bytes=MIB)
    with pytest.raises(LostEvents, match=f"{name} begins at .* read up to 0:"):
        log.poll({}, max_events=10, max_bytes=MIB)


def test_what_is_dropped_between_looking_and_reading_is_lost_too(cluster, log, monkeypatch):
    write(log, turn("t0"))
    for _ in range(70):
        cluster.put(os.urandom(100_000))
    bounds = log._reader._bounds()
    monkeypatch.setattr(log._reader, "_bounds", lambda: {name: (0, end) for name, (_, end) in bounds.items()})
    with pytest.raises(LostEvents, match=f"{TOPIC}/0 no longer holds offset 0"):
        log.poll({}, max_events=10, max_bytes=MIB)


def test_a_topic_that_was_made_anew_is_not_taken_for_one_without_news(log):
    write(log, turn("t0"))
    with pytest.raises(LostEvents, match=r"ends at \d, and was read up to 70: the topic was recreated"):
        log.poll(dict.fromkeys(log.partitions(), 70), max_events=10, max_bytes=MIB)


def test_a_message_that_is_no_event_is_corruption(cluster, log):
    for payload in (b"hello", None):
        cluster.put(payload)
    with pytest.raises(CorruptLog, match=f"{TOPIC}/0: the message at offset 0 is b'h' is no kind of event"):
        log.poll({}, max_events=10, max_bytes=MIB)
    with pytest.raises(CorruptLog, match="offset 1"):
        log.poll({f"{TOPIC}/0": 1}, max_events=10, max_bytes=MIB)


def test_the_error_for_a_missing_topic_says_how_to_create_it(log):
    with pytest.raises(ConfigError, match=f"kafka-topics.sh --create --topic {TOPIC}"):
        log.poll({}, max_events=1, max_bytes=1)


def test_an_unknown_option_says_so(cluster):
    for use in (lambda log: log.append(turn("t0")), lambda log: log.partitions()):
        with pytest.raises(ConfigError, match="nonsense"):
            use(cluster.log(nonsense="1"))


def test_no_broker_fails_the_append_in_time_and_the_read(monkeypatch):
    monkeypatch.setattr("sdpo_ray.eventlog.kafka.consumer._TIMEOUT_S", 1.0)
    log = KafkaLog(KafkaConfig(brokers="127.0.0.1:1", options=QUIET | {"delivery.timeout.ms": "500"}))
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="did not take the event"):
        log.append(turn("t0")).result(timeout=20)
    assert time.monotonic() - began < 10
    with pytest.raises(ConnectionError, match="Kafka"):
        log.poll({}, max_events=1, max_bytes=1)
    log.close()


def test_a_queue_that_is_full_refuses_at_once_and_takes_events_again(cluster):
    log = KafkaLog(
        KafkaConfig(
            brokers="127.0.0.1:1",
            options=QUIET | {"queue.buffering.max.messages": "2", "delivery.timeout.ms": "500"},
        )
    )
    waiting: list[Future[None]] = [log.append(turn(f"t{n}")) for n in range(3)]
    assert isinstance(waiting[2].exception(timeout=0), LogFull)
    assert isinstance(waiting[0].exception(timeout=20), ConnectionError)
    assert isinstance(waiting[1].exception(timeout=20), ConnectionError)
    assert not log.append(turn("t3")).done()
    log.close()


def test_an_event_too_large_is_refused_and_the_next_one_written(log):
    with pytest.raises(DataError, match=r"large has 40\d\d\d\d\d bytes: raise message.max.bytes"):
        log.append(turn("large", "x" * 4_000_000))
    write(log, turn("t0"))
    assert read(log)[0] == ["t0"]


def test_a_producer_that_failed_for_good_is_replaced(cluster, monkeypatch):
    made: list[Producer] = []

    class Fatal:
        """A producer as librdkafka leaves it after a fatal error. The mock cluster can cause none."""

        def produce(self, *arguments: object, **options: object) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "out of order", fatal=True))

        def poll(self, timeout_s: float) -> None:
            time.sleep(timeout_s)

        def purge(self) -> None: ...

        def flush(self) -> None: ...

    def make(options: dict[str, object]) -> object:
        made.append(Producer(options))
        return made[-1] if len(made) > 1 else Fatal()

    monkeypatch.setattr("sdpo_ray.eventlog.kafka.producer.Producer", make)
    log = cluster.log()
    with pytest.raises(ConnectionError, match="out of order"):
        log.append(turn("lost")).result(timeout=10)
    deadline = time.monotonic() + 20
    while len(made) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    write(log, turn("t0"))
    assert read(log)[0] == ["t0"]
    log.close()


def test_closing_waits_for_what_is_queued_and_refuses_what_comes_after(cluster, log):
    other = cluster.log()
    waiting = [other.append(turn(f"t{n}")) for n in range(200)]
    other.close()
    other.close()
    assert all(each.done() and each.exception() is None for each in waiting)
    assert len(read(log)[0]) == 200
    with pytest.raises(ValueError, match="closed"):
        other.append(turn("late"))


def test_truncation_is_left_to_retention_where_the_broker_deletes_nothing(log, caplog):
    write(log, turn("t0"))
    _, after = read(log)
    log.truncate({})
    log.truncate(after)
    log.truncate(after)
    assert [each.message.split(":")[0] for each in caplog.records] == ["Kafka deletes no records, its retention does"]
    assert read(log, after) == ([], after)


def test_truncation_asks_to_delete_what_lies_before_the_positions(log, monkeypatch):
    asked: list[object] = []

    class Admin:
        def delete_records(self, positions: list[object], *, request_timeout: float) -> dict[object, Future[None]]:
            asked.extend(positions)
            done: Future[None] = Future()
            done.set_result(None)
            return dict.fromkeys(positions, done)

    monkeypatch.setattr("sdpo_ray.eventlog.kafka.consumer.AdminClient", lambda options: Admin())
    log.truncate({f"{TOPIC}/0": 7, f"{TOPIC}/3": 0})
    assert [(each.topic, each.partition, each.offset) for each in asked] == [(TOPIC, 0, 7)]


def test_the_backlog_is_the_events_behind_the_positions_at_the_mean_size_of_those_read(log):
    size = 2000
    write(log, *(turn(f"t{n}", "x" * size) for n in range(10)))
    assert log.backlog_bytes({}) == 10 * 4096
    ids, after = read(log)
    assert len(ids) == 10
    assert 10 * size < log.backlog_bytes({}) < 15 * size
    assert log.backlog_bytes(after) == 0


def test_the_run_file_selects_the_event_log(cluster, tmp_path):
    log = open_log(
        Layout(tmp_path), CaptureConfig(kafka=KafkaConfig(brokers=cluster.brokers, topic="other", options=QUIET))
    )
    assert isinstance(log, KafkaLog)
    write(log, turn("t0"))
    assert log.partitions()[0] == "other/0"
    log.close()
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, threading, time
from sdpo_ray.eventlog.kafka.log import KafkaLog
from sdpo_ray.config.data import KafkaConfig
from sdpo_ray.records import Consent, Feedback, Thumb
log = KafkaLog(KafkaConfig(brokers=sys.argv[1], options={"log_level": "0"}))
acknowledged = open(sys.argv[2], "ab", buffering=0)
slots = threading.Semaphore(16)
def note(name, durable):
    if durable.exception() is None:
        acknowledged.write(name.encode() + b"\\n")
    slots.release()
n = 0
while True:
    slots.acquire()
    name = f"{sys.argv[3]}-{n}"
    event = Feedback(feedback_id=name, turn_id="t", tenant="", user="", consent=Consent.TRAIN, thumb=Thumb.UP,
                     given_at_s=0.0)
    log.append(event).add_done_callback(lambda durable, name=name: note(name, durable))
    n += 1
    time.sleep(0.001)
"""


def test_a_producer_killed_at_random_loses_nothing_acknowledged(cluster, log, tmp_path):
    """A message that was sent and not acknowledged may be stored; sending it again may store it twice."""
    acknowledged, when = tmp_path / "acknowledged", random.Random(5)
    after: dict[str, int] = {}
    ids: list[str] = []
    for attempt in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, cluster.brokers, str(acknowledged), str(attempt)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        try:
            deadline = time.monotonic() + 60
            while f"\n{attempt}-" not in "\n" + (acknowledged.read_text() if acknowledged.exists() else ""):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(when.uniform(0, 0.2))
        finally:
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(timeout=10) == -signal.SIGKILL
        found, after = read(log, after)
        ids += found
    names = acknowledged.read_text().split("\n")[:-1]
    assert len(names) > 10 * KILLS
    assert set(names) <= set(ids)
    write(log, turn(names[0], names[0]))
    assert read(log, after)[0] == [names[0]]
