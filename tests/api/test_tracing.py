"""Traces: a real OTLP receiver gets a span a request, in the trace of who asked, and one a batch."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from uuid import uuid4

import msgspec
import pytest
from litestar.testing import AsyncTestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from piggybank import errors
from piggybank.app import create_app
from piggybank.settings import Settings
from piggybank.tracing import Tracing
from tests.api.conftest import People

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Receiver(BaseHTTPRequestHandler):
    """What OTLP/HTTP sends."""

    protocol_version = "HTTP/1.1"
    spans: ClassVar[list[Span]] = []
    services: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for each in told.resource_spans:
            self.services.update(found.value.string_value for found in each.resource.attributes if found.key == "service.name")
            self.spans.extend(span for scope in each.scope_spans for span in scope.spans)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


async def test_a_receiver_gets_a_span_a_request_and_a_span_a_batch(settings: Settings, people: People) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)  # of its own thread: the client holds up this one while the app stops
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    async with AsyncTestClient(create_app(msgspec.structs.replace(settings, otlp_url=url))) as client:
        parent = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        made = await client.post("/v1/users", json={"external_id": uuid4().hex}, headers=people.service | parent)
        opened = await client.post("/v1/accounts", json={"user_id": made.json()["id"], "currency": "USD"}, headers=people.service)
        path = f"/v1/accounts/{opened.json()['id']}/deposits"
        keyed = people.service | {"Idempotency-Key": uuid4().hex}
        assert (await client.post(path, json={"amount": 5, "method": "direct"}, headers=keyed)).status_code == 201
    server.shutdown()
    server.server_close()
    spans = {span.name: span for span in Receiver.spans}
    assert Receiver.services == {"piggybank"}
    assert spans["POST /v1/users"].trace_id.hex() == TRACE
    deposit = spans["POST /v1/accounts/{account_id}/deposits"]
    assert {found.key: found.value.int_value for found in deposit.attributes}["http.response.status_code"] == 201
    assert 0 < deposit.end_time_unix_nano - deposit.start_time_unix_nano < 60 * 10**9
    assert {found.key: found.value.int_value for found in spans["ledger batch"].attributes} == {"ledger.commands": 1}
    assert all(opened.json()["id"] not in span.name for span in Receiver.spans)


def test_without_the_extra_it_says_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piggybank.otlp", None)
    with pytest.raises(errors.BadSetting, match="tracing"):
        Tracing().start(msgspec.structs.replace(settings, otlp_url="http://127.0.0.1:1/v1/traces"))
    tracing = Tracing()
    tracing.start(settings)
    assert not tracing.on
