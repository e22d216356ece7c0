"""Write the event log on Kafka.

The key of a message is its conversation's digest. So an answer and its follow-up are in one partition, in order, while
the conversations of a busy user spread over all partitions. Pairing does not depend on this; it only pairs sooner.
"""

import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from sdpo_ray.config.data import KafkaConfig
from sdpo_ray.errors import ConfigError, DataError, LogFull
from sdpo_ray.eventlog.codec import encode, event_id
from sdpo_ray.records import Event, Turn

_DEFAULTS = {
    "compression.type": "lz4",
    # The end of an answer is held back until its receipt, so failures must not take long.
    "delivery.timeout.ms": 10_000,
    "queue.buffering.max.kbytes": 65_536,
}
_REQUIRED = {"acks": "all", "enable.idempotence": True}
_POLL_S = 0.1


class KafkaWriter:
    """Sends events to the topic, and resolves their futures in its own thread. Thread-safe."""

    def __init__(self, config: KafkaConfig, *, name: str) -> None:
        self._topic = config.topic
        self._options = {"client.id": name} | _DEFAULTS | config.resolved_options | _REQUIRED
        self._options["bootstrap.servers"] = config.brokers
        self._lock = threading.Lock()
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._broken = False
        self._closed = threading.Event()

    def append(self, event: Event) -> "Future[None]":
        payload = encode(event)
        durable: Future[None] = Future()
        # As in the journal, it cannot be cancelled: a client that disconnects must not break the delivery report.
        durable.set_running_or_notify_cancel()
        with self._lock:
            if self._closed.is_set():
                raise ValueError("the log is closed")
            if self._thread is None:
                self._producer = self._connect()
                self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
                self._thread.start()
            try:
                self._producer.produce(self._topic, payload, key=_key(event), on_delivery=partial(_settle, durable))
            except BufferError:
                durable.set_exception(LogFull("the producer's queue is full: the brokers do not keep up"))
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise DataError(_too_large(event_id(event), len(payload))) from error
                self._broken = self._broken or reason.fatal() or reason.code() == KafkaError._FATAL
                durable.set_exception(_connection_error(reason))
        return durable

    def close(self) -> None:
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _connect(self) -> Any:
        try:
            return Producer(self._options)
        except KafkaException as error:
            raise ConfigError(f"capture.kafka: {error.args[0].str()}") from error

    def _run(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(_POLL_S)
            if self._broken:
                with self._lock:
                    # A producer cannot be used after a fatal error; the events it still held have failed.
                    self._drain()
                    self._producer = self._connect()
                    self._broken = False
        self._producer.flush()
        self._drain()

    def _drain(self) -> None:
        self._producer.purge()
        self._producer.flush()


def _key(event: Event) -> bytes | None:
    """None, any partition, for feedback: it names no conversation."""
    return event.keys.conversation.encode() or None if isinstance(event, Turn) else None


def _settle(durable: "Future[None]", error: Any, message: Any) -> None:
    if error is None:
        durable.set_result(None)
    elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        durable.set_exception(DataError(_too_large("the event", len(message.value() or b""))))
    else:
        durable.set_exception(_connection_error(error))


def _too_large(what: str, num_bytes: int) -> str:
    return f"{what} has {num_bytes} bytes: raise message.max.bytes in capture.kafka.options and of the topic"


def _connection_error(error: Any) -> ConnectionError:
    return ConnectionError(f"Kafka did not take the event: {error.str()}")
