"""OpenTelemetry traces: one span a request, with children for its waits at the gate, the engine and the journal.

The client's `traceparent` is its parent (https://www.w3.org/TR/trace-context/), and vLLM's own span `llm_request` its
child. No attribute holds user text.
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
"""OpenTelemetry's names for fields of the access log (https://opentelemetry.io/docs/specs/semconv/).

Other fields are named `sdpo.*`.
"""


class Tracing:
    """Sends the spans of one replica to `endpoint`, OTLP over gRPC; without TLS unless it begins with https."""

    def __init__(self, endpoint: str, replica: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "sdpo-ray", "service.instance.id": replica})
        # Not the process's global provider, which is vLLM's.
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sdpo_ray")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: RequestRecord, headers: MutableHeaders) -> None:
        """Start the span, and make it the parent of later spans through `headers`."""
        from opentelemetry import trace

        parent = self._propagator.extract(dict(headers))
        name = f"{record.method} {record.route}"
        record.span = self._tracer.start_span(
            name, context=parent, kind=trace.SpanKind.SERVER, start_time=record.began_ns
        )
        self._propagator.inject(headers, context=trace.set_span_in_context(record.span))

    def end(self, record: RequestRecord) -> None:
        """End the span, with its children."""
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
        """Send the remaining spans."""
        self._provider.shutdown()
