"""What became of the turns, and what is served, on the same `/metrics` page as vLLM's own numbers."""

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sdpo_ray.capture.recorder import Recorder
from serve.swap import Swapper


class PolicyMetrics(Collector):
    """Reads the recorder's counters and the swapper's state whenever somebody asks."""

    def __init__(self, recorder: Recorder, swapper: Swapper, refused: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._swapper = swapper
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        turns = CounterMetricFamily("sdpo_turns", "Turns by what became of them.", labels=["outcome"])
        for outcome, n in self._recorder.counters.values.items():
            turns.add_metric([outcome], n)
        yield turns
        version = self._swapper.serving.policy_version
        yield GaugeMetricFamily("sdpo_policy_version", "Policy version that answers now.", value=version)
        yield GaugeMetricFamily(
            "sdpo_swap_stall_seconds", "How long the last swap held new requests.", value=self._swapper.stall_s
        )
        yield GaugeMetricFamily("sdpo_swap_refused", "1 while the named release is refused.", value=self._refused())


def publish(recorder: Recorder, swapper: Swapper, refused: Callable[[], bool]) -> None:
    """Add them to the page of this process."""
    REGISTRY.register(PolicyMetrics(recorder, swapper, refused))
