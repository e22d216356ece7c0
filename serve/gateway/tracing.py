"""OpenTelemetry, where a run asks for it: one span around a request, with children for its gate, engine and journal.

The client's `traceparent` is honoured (https://www.w3.org/TR/trace-context/), and vLLM's own span `llm_request` hangs
under ours. No attribute holds text of anybody.
"""

from starlette.datastructures import MutableHeaders

from serve.gateway.access_log import line
from serve.gateway.request_record import RequestRecord

_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "response_tokens": "gen_ai.usage.output_tokens",
}
"""OpenTelemetry's own names for what a line of the log says (https://opentelemetry.io/docs/specs/semconv/).

Whatever is not here is `sdpo.*`.
"""


class Tracing:
    """Sends the spans of one replica to `endpoint`, OTLP over gRPC; in the clear unless it begins with https."""

    def __init__(self, endpoint: str, replica: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "sdpo-ray", "service.instance.id": replica})
        # Of our own, and not the process's: that is vLLM's.
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sdpo_ray")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: RequestRecord, headers: MutableHeaders) -> None:
        """Open the span, and name it in `headers` as the parent of whatever comes behind."""
        from opentelemetry import trace

        parent = self._propagator.extract(dict(headers))
        name = f"{record.method} {record.route}"
        record.span = self._tracer.start_span(
            name, context=parent, kind=trace.SpanKind.SERVER, start_time=record.began_ns
        )
        self._propagator.inject(headers, context=trace.set_span_in_context(record.span))

    def end(self, record: RequestRecord) -> None:
        """Close it, with its children."""
        from opentelemetry import trace

        span = record.span
        within = trace.set_span_in_context(span)
        for wait in record.context.spans:
            child = self._tracer.start_span(wait.name, context=within, start_time=wait.began_ns)
            child.end(end_time=wait.ended_ns)
        for name, value in line(record).items():
            span.set_attribute(_ATTRIBUTES.get(name, f"sdpo.{name}"), value)
        if record.outcome in ("error", "timeout"):
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=record.began_ns + int(record.seconds * 1e9))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
