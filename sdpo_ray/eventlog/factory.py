"""Open the event log that a run file configures."""

from sdpo_ray.config.data import CaptureConfig
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout


def open_log(layout: Layout, config: CaptureConfig, *, name: str = "replica") -> EventLog:
    """The Kafka log if `config.kafka.brokers` is set, else the journal under the root.

    `name` becomes part of partition names or Kafka's client id, to show which process wrote what.
    """
    if config.kafka.brokers:
        from sdpo_ray.eventlog.kafka.log import KafkaLog

        return KafkaLog(config.kafka, name=name)
    return JournalLog(
        layout.journal,
        segment_bytes=config.journal.segment_mib << 20,
        segment_s=config.journal.segment_s,
        max_bytes=config.journal.max_mib << 20,
        name=name,
    )
