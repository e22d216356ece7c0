"""Prometheus metrics of requests, on the same page as vLLM's: whole requests, waits outside the engine, refusals.

vLLM's metrics of tokens, queues and times begin where its engine takes over; the waits before and after it, at a swap's
gate and for the journal's fsync, are here. Labels have few values: any unknown route is `other`.
"""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from serve.gateway.auth import OPEN
from serve.gateway.request_record import RequestRecord

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestMetrics:
    """Metrics of one replica; at most one a registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "sdpo_requests", "Requests by how they ended.", ["route", "status", "outcome"], registry=registry
        )
        self._refused = Counter("sdpo_refused", "Requests that were refused, by why.", ["reason"], registry=registry)
        self._under_way = Gauge("sdpo_requests_under_way", "Requests that are being answered.", registry=registry)
        self._seconds, self._ttft, self._gate, self._journal = (
            Histogram(name, text, labels, registry=registry, buckets=_BUCKETS)
            for name, text, labels in (
                ("sdpo_request_seconds", "Whole requests, every wait included.", ["route"]),
                ("sdpo_ttft_seconds", "From the request to the first event of its stream.", []),
                ("sdpo_gate_wait_seconds", "What a request waited for a swap to end.", []),
                ("sdpo_journal_wait_seconds", "What an answer waited for its turn to be on disk.", []),
            )
        )
        self.under_way = 0
        """Requests that are being answered, without health probes and scrapes."""

    def begin(self, record: RequestRecord) -> None:
        self.under_way += record.route not in OPEN
        self._under_way.set(self.under_way)

    def end(self, record: RequestRecord) -> None:
        self.under_way -= record.route not in OPEN
        self._under_way.set(self.under_way)
        self._requests.labels(record.route, str(record.status), record.outcome).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if record.reason:
            self._refused.labels(record.reason).inc()
        if record.ttft_s is not None:
            self._ttft.observe(record.ttft_s)
        names = {span.name for span in record.context.spans}
        if "gate" in names:
            self._gate.observe(record.seconds_in("gate"))
        if "journal" in names:
            self._journal.observe(record.seconds_in("journal"))
