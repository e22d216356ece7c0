"""Read the event log on Kafka.

`poll` looks up where each partition begins and ends, reads from the given positions towards those ends, and unassigns
the partitions afterwards, so that its result depends on the positions alone. Events that retention dropped unread are
an error; `ray.data.read_kafka` would continue with a warning.
"""

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from sdpo_ray.config.data import KafkaConfig
from sdpo_ray.errors import ConfigError, CorruptLog, LostEvents
from sdpo_ray.eventlog.codec import decode
from sdpo_ray.eventlog.protocol import Batch
from sdpo_ray.records import Event

logger = logging.getLogger(__name__)
_DEFAULTS = {
    # Prefetched messages are thrown away at the end of a poll: keep them few, and waits short.
    "queued.max.messages.kbytes": 2048,
    "fetch.queue.backoff.ms": 10,
    "fetch.wait.max.ms": 50,
}
_REQUIRED = {
    # librdkafka requires a group id; the consumer joins no group.
    "group.id": "sdpo-ray",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
}
_TIMEOUT_S = 30.0
_MESSAGES = 500
_LIKELY_BYTES = 4096


class KafkaReader:
    """Reads the topic from positions that the caller keeps. Not thread-safe."""

    def __init__(self, config: KafkaConfig, *, name: str) -> None:
        self._topic = config.topic
        self._brokers = {"bootstrap.servers": config.brokers, "client.id": name}
        self._options = config.resolved_options
        self._truncates = True
        self._num_read = self._bytes_read = 0

    def partitions(self) -> list[str]:
        with _connection():
            topic = self._metadata.list_topics(self._topic, timeout=_TIMEOUT_S).topics[self._topic]
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise ConfigError(
                f"Kafka has no topic {self._topic}: make it, for example with "
                f"kafka-topics.sh --create --topic {self._topic} --partitions 6 --replication-factor 3 "
                "--config min.insync.replicas=2 --config retention.ms=2592000000"
            )
        if topic.error is not None:
            raise ConnectionError(f"Kafka: {topic.error.str()}")
        return [f"{self._topic}/{number}" for number in sorted(topic.partitions)]

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        bounds = self._bounds()
        ends = {name: end for name, (_, end) in bounds.items()}
        positions = {name: after.get(name, 0) for name in ends}
        for name, position in positions.items():
            _require_held(name, position, *bounds[name])
        reading = {name for name in ends if positions[name] < ends[name]}
        at_end = ends.keys() - reading
        events: list[Event] = []
        moved: dict[str, int] = {}
        num_bytes = 0
        with closing(self._messages({name: positions[name] for name in reading})) as messages:
            for message in messages:
                name = f"{self._topic}/{message.partition()}"
                if message.error() is None:
                    payload = message.value() or b""
                    if events and (len(events) >= max_events or num_bytes + len(payload) > max_bytes):
                        break
                    events.append(_decoded(payload, name, message.offset()))
                    num_bytes += len(payload)
                    moved[name] = message.offset() + 1
                elif message.offset() > positions[name]:
                    # End of the partition. Offsets before it may hold no message, such as transaction markers.
                    moved[name] = message.offset()
                if moved.get(name, 0) >= ends[name]:
                    at_end.add(name)
                if reading <= at_end:
                    break
        self._num_read += len(events)
        self._bytes_read += num_bytes
        return Batch(events=tuple(events), positions=moved, at_end=frozenset(at_end))

    def truncate(self, upto: Mapping[str, int]) -> None:
        positions = [_partition(name, position) for name, position in upto.items() if position > 0]
        if not self._truncates or not positions:
            return
        try:
            for done in self._admin.delete_records(positions, request_timeout=_TIMEOUT_S).values():
                done.result()
        except KafkaException as error:
            self._truncates = False
            logger.warning("Kafka deletes no records, its retention does: %s", error.args[0].str())

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        behind = sum(max(0, end - max(begin, after.get(name, 0))) for name, (begin, end) in self._bounds().items())
        return behind * (self._bytes_read // self._num_read if self._num_read else _LIKELY_BYTES)

    def close(self) -> None:
        for each in ("_consumer", "_metadata"):
            if each in self.__dict__:
                self.__dict__[each].close()

    @cached_property
    def _consumer(self) -> Any:
        with _options():
            return Consumer(self._brokers | _DEFAULTS | self._options | _REQUIRED)

    @cached_property
    def _metadata(self) -> Any:
        """A client for metadata, with its own connections: replies do not queue behind a fetch that waits for data."""
        with _options():
            return Consumer(self._brokers | self._options | _REQUIRED)

    @cached_property
    def _admin(self) -> Any:
        with _options():
            return AdminClient({**self._brokers, **self._options})

    def _bounds(self) -> dict[str, tuple[int, int]]:
        """First and end offset of each partition as of now."""
        with _connection():
            return {
                name: self._metadata.get_watermark_offsets(_partition(name), timeout=_TIMEOUT_S)
                for name in self.partitions()
            }

    def _messages(self, positions: Mapping[str, int]) -> Generator[Any, None, None]:
        """Yield messages and end-of-partition events until the caller stops. Raises ConnectionError, LostEvents."""
        if not positions:
            return
        with _connection():
            self._consumer.assign([_partition(*each) for each in positions.items()])
            try:
                last_message = time.monotonic()
                while time.monotonic() < last_message + _TIMEOUT_S:
                    for message in self._consumer.consume(_MESSAGES, timeout=0.05):
                        last_message = time.monotonic()
                        if message.error() is not None and message.error().code() != KafkaError._PARTITION_EOF:
                            _raise_error(message)
                        yield message
                raise ConnectionError(f"Kafka sent nothing of {', '.join(sorted(positions))} for {_TIMEOUT_S:.0f} s")
            finally:
                self._consumer.unassign()


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise ConnectionError(f"Kafka: {error.args[0].str()}") from error


@contextmanager
def _options() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise ConfigError(f"capture.kafka: {error.args[0].str()}") from error


def _partition(name: str, position: int = -1) -> Any:
    topic, _, number = name.rpartition("/")
    return TopicPartition(topic, int(number), position)


def _require_held(name: str, position: int, begin: int, end: int) -> None:
    if position < begin:
        raise LostEvents(
            f"{name} begins at {begin}, and was read up to {position}: {begin - position} events were dropped unread"
        )
    if position > end:
        raise LostEvents(f"{name} ends at {end}, and was read up to {position}: the topic was recreated")


def _raise_error(message: Any) -> None:
    name, error = f"{message.topic()}/{message.partition()}", message.error()
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        raise LostEvents(f"{name} no longer holds offset {message.offset()}: {error.str()}")
    raise ConnectionError(f"Kafka, {name}: {error.str()}")


def _decoded(payload: bytes, name: str, offset: int) -> Event:
    try:
        return decode(payload)
    except CorruptLog as error:
        raise CorruptLog(f"{name}: the message at offset {offset} is {error}") from error
