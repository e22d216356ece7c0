"""The event log on Kafka, for replicas that share no disk. A partition is `topic/number`; a position is its offset.

The operator creates the topic, with `cleanup.policy=delete`, `min.insync.replicas` of at least 2, and a retention
longer than the jobs may ever be down. Neither a consumer group nor a committed offset is used: the table keeps the
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
    """An `EventLog` on one topic. An event is durable when all in-sync replicas have it. Connects on first use.

    Calls that reach no broker in time raise ConnectionError; an unknown option raises ConfigError.
    """

    def __init__(self, config: KafkaConfig, *, name: str = "replica") -> None:
        self._reader = KafkaReader(config, name=name)
        self._writer = KafkaWriter(config, name=name)

    def append(self, event: Event) -> "Future[None]":
        """See `EventLog.append`. The future may hold LogFull, or a ConnectionError.

        An event that is not acknowledged within `delivery.timeout.ms` counts as failed, but may have been written.
        """
        return self._writer.append(event)

    def partitions(self) -> list[str]:
        """Names of the partitions, by number. Raises ConfigError when the topic does not exist."""
        return self._reader.partitions()

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """See `EventLog.poll`. Raises LostEvents also when a partition ends before a position: a recreated topic."""
        return self._reader.poll(after, max_events=max_events, max_bytes=max_bytes)

    def truncate(self, upto: Mapping[str, int]) -> None:
        """Delete the records if the broker allows DeleteRecords; else the topic's retention deletes them later."""
        self._reader.truncate(upto)

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        """Number of events after the positions, times the mean size of the events read so far."""
        return self._reader.backlog_bytes(after)

    def close(self) -> None:
        """Wait until the queued events are acknowledged or have failed, then disconnect."""
        self._writer.close()
        self._reader.close()
