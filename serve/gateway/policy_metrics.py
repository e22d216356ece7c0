"""Metrics of recording and of the served policy, on the same `/metrics` page as vLLM's own."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.errors import SdpoError, SwapError
from sdpo_ray.telemetry import Counters
from serve.weights.release_watcher import WeightSwapper

_SWAP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class PolicyMetrics(Collector):
    """Reads the recorder's counters and the swapper's state at each scrape.

    `alarm_bytes` is the size of the journal that raises the alarm; None where the event log is Kafka, which has metrics
    of its own. `journal` is the journal's directory. `more` are counters of other parts, by the name of their metric.
    """

    def __init__(
        self,
        recorder: Recorder,
        swapper: WeightSwapper,
        refused: Callable[[], bool],
        alarm_bytes: int | None,
        *,
        journal: Path | None = None,
        more: Mapping[str, Counters] | None = None,
    ) -> None:
        self._recorder = recorder
        self._alarm_bytes = alarm_bytes
        self._swapper = swapper
        self._refused = refused
        self._journal_path = journal
        self._more = more or {}

    def collect(self) -> Iterator[Metric]:
        recorder = self._recorder
        for name, text, label, counters in (
            ("sdpo_turns", "Turns by what became of them.", "outcome", recorder.counters),
            ("sdpo_feedback", "Feedback by what became of it.", "outcome", recorder.feedback),
            ("sdpo_redactions", "Pieces taken out of what is recorded.", "kind", recorder.redactions),
            *((name, f"What `{name}` counts.", "outcome", counters) for name, counters in self._more.items()),
        ):
            counted = CounterMetricFamily(name, text, labels=[label])
            for value, n in counters.values.copy().items():
                counted.add_metric([value], n)
            yield counted
        yield from self._journal()
        version = self._swapper.serving.policy_version
        yield GaugeMetricFamily(
            "sdpo_log_healthy",
            "0 while turns cannot be stored; answers go out without receipts.",
            value=recorder.healthy,
        )
        yield GaugeMetricFamily("sdpo_policy_version", "Policy version that answers now.", value=version)
        yield GaugeMetricFamily(
            "sdpo_swap_stall_seconds", "How long the last swap held new requests.", value=self._swapper.stall.total_s
        )
        phases = GaugeMetricFamily(
            "sdpo_swap_stall_phase_seconds", "The same, by what it was spent on.", labels=["phase"]
        )
        stall = self._swapper.stall
        for phase, seconds in (("drain", stall.drain_s), ("load", stall.load_s), ("verify", stall.verify_s)):
            phases.add_metric([phase], seconds)
        yield phases
        yield GaugeMetricFamily("sdpo_swap_refused", "1 while the named release is refused.", value=self._refused())

    def _journal(self) -> Iterator[Metric]:
        """Yield the journal's metrics; none while it cannot be measured, which does not affect the others."""
        if self._alarm_bytes is None:
            return
        try:
            size = self._recorder.backlog_bytes
        except (OSError, SdpoError):
            return
        yield GaugeMetricFamily("sdpo_log_bytes", "What the journal holds.", value=size)
        alarm = size > self._alarm_bytes
        yield GaugeMetricFamily("sdpo_log_alarm", "1 while the journal holds too much.", value=alarm)
        if self._journal_path is not None:
            yield GaugeMetricFamily(
                "sdpo_log_oldest_seconds",
                "Since the last write to the oldest part of the journal that is still there.",
                value=_oldest_s(self._journal_path),
            )


class SwapMetrics:
    """Duration of swaps, reading the weights included, and how they ended."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._swaps = Counter("sdpo_swaps", "Swaps by how they ended.", ["outcome"], registry=registry)
        self._seconds = Histogram("sdpo_swap_seconds", "Whole swaps.", registry=registry, buckets=_SWAP_BUCKETS)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Count one swap: `served`, or `refused` when the block raises SwapError."""
        began = time.perf_counter()
        try:
            yield
        except SwapError:
            self._swaps.labels("refused").inc()
            raise
        self._swaps.labels("served").inc()
        self._seconds.observe(time.perf_counter() - began)


def publish(
    recorder: Recorder,
    swapper: WeightSwapper,
    refused: Callable[[], bool],
    alarm_bytes: int | None,
    *,
    journal: Path | None = None,
    more: Mapping[str, Counters] | None = None,
) -> None:
    """Register `PolicyMetrics` for the page of this process."""
    REGISTRY.register(PolicyMetrics(recorder, swapper, refused, alarm_bytes, journal=journal, more=more))


def _oldest_s(journal: Path) -> float:
    """Return seconds since the oldest segment was written; 0 for an empty or missing journal. Raises OSError."""
    if not journal.is_dir():
        return 0.0
    written = [segment.stat().st_mtime for segment in journal.glob("*.log")]
    return max(0.0, time.time() - min(written)) if written else 0.0
