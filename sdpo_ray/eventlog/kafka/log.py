"""The event log on Kafka, for replicas that share no disk. A partition is `topic/number`; a position is its offset.

The topic is the operator's to make, with `cleanup.policy=delete`, `min.insync.replicas` of at least 2, and a retention
longer than the jobs may ever stand still. Neither a consumer group nor a committed offset is used: the table keeps the
positions. The options are librdkafka's: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md.
"""

from collections.abc import Mapping
from concurrent.futures import Future

from sdpo_ray.config.data import KafkaConfig
from sdpo_ray.eventlog.kafka.consumer import KafkaReader
from sdpo_ray.eventlog.kafka.producer import KafkaWriter
from sdpo_ray.eventlog.protocol import Batch
from sdpo_ray.records import Event


class KafkaLog:
    """An `EventLog` on one topic; durable is what all in-sync replicas have. Connects when it is first used.

    All calls that reach no broker in time raise ConnectionError. Raises ConfigError for an option nobody knows.
    """

    def __init__(self, config: KafkaConfig, *, name: str = "replica") -> None:
        self._reader = KafkaReader(config, name=name)
        self._writer = KafkaWriter(config, name=name)

    def append(self, event: Event) -> "Future[None]":
        """As `EventLog.append`. The future may hold LogFull, or the ConnectionError of a broker.

        What is not acknowledged in `delivery.timeout.ms` has failed, though it may have been written nevertheless.
        """
        return self._writer.append(event)

    def partitions(self) -> list[str]:
        """By number. Raises ConfigError where the topic does not exist."""
        return self._reader.partitions()

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """Raises LostEvents, too, where the log ends before a position: the topic was made anew."""
        return self._reader.poll(after, max_events=max_events, max_bytes=max_bytes)

    def truncate(self, upto: Mapping[str, int]) -> None:
        """Delete the records where the broker knows DeleteRecords and allows it; else its retention does, in time."""
        self._reader.truncate(upto)

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        """The number of events behind the positions, times the mean size of those that were read."""
        return self._reader.backlog_bytes(after)

    def close(self) -> None:
        """Wait for what is queued to be acknowledged, or to fail."""
        self._writer.close()
        self._reader.close()
