"""Which event log a run file asks for."""

from sdpo_ray.config.data import CaptureConfig
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout


def open_log(layout: Layout, config: CaptureConfig, *, name: str = "replica") -> EventLog:
    """Kafka where brokers are named, else the journal under the root. `name` tells people who wrote what."""
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
