"""Spans to an OTLP/HTTP receiver: the one place that needs the extra `tracing`, loaded only where a receiver is set."""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import piggybank

SEND_TIMEOUT_S = 5
STOP_TIMEOUT_MS = 3_000

_PROPAGATOR = TraceContextTextMapPropagator()


class Spans:
    """Gathered, and sent by a thread; who does not take them loses them, and nobody waits."""

    def __init__(self, url: str) -> None:
        resource = Resource.create({"service.name": "piggybank", "service.version": piggybank.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=SEND_TIMEOUT_S)))
        self._tracer = self._provider.get_tracer("piggybank")

    def served(self, name: str, parent: str, began_ns: int, ended_ns: int, attributes: dict[str, AttributeValue], *, failed: bool) -> None:
        """A request; `parent` is its header `traceparent`, empty: it begins a trace."""
        context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=began_ns)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)

    def done(self, name: str, began_ns: int, ended_ns: int, attributes: dict[str, AttributeValue]) -> None:
        """Something of our own."""
        self._tracer.start_span(name, attributes=attributes, start_time=began_ns).end(ended_ns)

    def stop(self) -> None:
        """Send what waits, for a moment."""
        self._provider.force_flush(STOP_TIMEOUT_MS)
        self._provider.shutdown()
