"""Rate limits, metrics, access log and traces of one replica."""

from prometheus_client import REGISTRY, CollectorRegistry
from starlette.datastructures import MutableHeaders

from sdpo_ray.config import ServeConfig
from sdpo_ray.telemetry import Counters
from serve.asgi import Scope
from serve.gateway.access_log import AccessLog
from serve.gateway.rate_limit import LocalRateLimiter, RateLimiter
from serve.gateway.request_metrics import RequestMetrics
from serve.gateway.request_record import RequestRecord
from serve.gateway.shared_rate_limit import SharedRateLimiter
from serve.gateway.tracing import Tracing

REQUEST_ID = "x-request-id"
_TICKET_GRACE_S = 60.0


class Observability:
    """Made by `serve.deployment`; used by `serve.gateway.middleware` for every request.

    `application` and `replica` are Ray Serve's names; metrics are registered in `registry`.
    """

    def __init__(
        self, config: ServeConfig, *, application: str = "", replica: str = "", registry: CollectorRegistry = REGISTRY
    ) -> None:
        self.config = config
        # No request lasts longer, so a ticket that is out for longer was lost with its replica.
        ticket_s = config.request_timeout_s + _TICKET_GRACE_S
        self.rate_limiter: RateLimiter = LocalRateLimiter(ticket_s)
        self._shared = SharedRateLimiter(application, ticket_s)
        self.counters: dict[str, Counters] = {"sdpo_limits": self._shared.counters}
        """Counters besides those of requests, by the name of their metric."""
        self.request_metrics = RequestMetrics(registry)
        self.log = AccessLog(replica)
        self.tracing = Tracing(config.otlp_endpoint, replica) if config.otlp_endpoint else None

    def share_limits(self) -> None:
        """Count together with all replicas from now on: this one is, or may be, one of several."""
        self.rate_limiter = self._shared

    def begin(self, record: RequestRecord, scope: Scope) -> Scope:
        """Return the request's scope with our request id, which vLLM puts into its own, and within our trace."""
        self.request_metrics.begin(record)
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers[REQUEST_ID] = record.context.request_id
        if self.tracing is not None:
            self.tracing.begin(record, headers)
        return {**scope, "headers": headers.raw}

    def end(self, record: RequestRecord) -> None:
        """Count it, log it, and send its span."""
        self.request_metrics.end(record)
        self.log.write(record)
        if self.tracing is not None:
            self.tracing.end(record)

    def close(self) -> None:
        """Flush the log and send the last spans."""
        self.log.flush()
        if self.tracing is not None:
            self.tracing.close()
