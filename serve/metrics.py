"""What became of the turns, and what is served, on the same `/metrics` page as vLLM's own numbers."""

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.errors import SdpoError
from serve.swap import Swapper


class PolicyMetrics(Collector):
    """Reads the recorder's counters and the swapper's state whenever somebody asks.

    `alarm_bytes`: size of the journal above which somebody should look; None where the log is elsewhere, in Kafka,
    which has a page of its own.
    """

    def __init__(
        self, recorder: Recorder, swapper: Swapper, refused: Callable[[], bool], alarm_bytes: int | None
    ) -> None:
        self._recorder = recorder
        self._alarm_bytes = alarm_bytes
        self._swapper = swapper
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        recorder = self._recorder
        for name, text, label, counters in (
            ("sdpo_turns", "Turns by what became of them.", "outcome", recorder.counters),
            ("sdpo_feedback", "Feedback by what became of it.", "outcome", recorder.feedback),
            ("sdpo_redactions", "Pieces taken out of what is recorded.", "kind", recorder.redactions),
        ):
            counted = CounterMetricFamily(name, text, labels=[label])
            for value, n in counters.values.copy().items():
                counted.add_metric([value], n)
            yield counted
        yield from self._journal()
        version = self._swapper.serving.policy_version
        yield GaugeMetricFamily("sdpo_policy_version", "Policy version that answers now.", value=version)
        yield GaugeMetricFamily(
            "sdpo_swap_stall_seconds", "How long the last swap held new requests.", value=self._swapper.stall_s
        )
        yield GaugeMetricFamily("sdpo_swap_refused", "1 while the named release is refused.", value=self._refused())

    def _journal(self) -> Iterator[Metric]:
        """Nothing while it cannot be measured, which is no reason to go without the other numbers."""
        if self._alarm_bytes is None:
            return
        try:
            size = self._recorder.backlog_bytes
        except (OSError, SdpoError):
            return
        yield GaugeMetricFamily("sdpo_log_bytes", "What the journal holds.", value=size)
        alarm = size > self._alarm_bytes
        yield GaugeMetricFamily("sdpo_log_alarm", "1 while the journal holds too much.", value=alarm)


def publish(recorder: Recorder, swapper: Swapper, refused: Callable[[], bool], alarm_bytes: int | None) -> None:
    """Add them to the page of this process."""
    REGISTRY.register(PolicyMetrics(recorder, swapper, refused, alarm_bytes))
