"""A server that webhooks are delivered to: it notes what comes and answers what it is told."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Delivery(NamedTuple):
    """One try, as it came."""

    path: str
    signature: str | None
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def event_type(self) -> str:
        return str(self.body.get("event_type", ""))

    @property
    def object_id(self) -> str:
        return str(self.body["id"])


class Receiver:
    """`answer` says the status of a delivery; by default all are taken."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.answer: Callable[[Delivery], int] = lambda _: 200
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def of(self, object_id: str) -> list[Delivery]:
        """What came about one object, in its order."""
        return [delivery for delivery in list(self.deliveries) if delivery.body.get("id") == object_id]

    def types_of(self, object_id: str) -> list[str]:
        return [delivery.event_type for delivery in self.of(object_id)]

    def related_to(self, object_id: str, event_type: str) -> list[Delivery]:
        """Payments that belong to an object."""
        related = [delivery for delivery in list(self.deliveries) if delivery.event_type == event_type]
        return [delivery for delivery in related if delivery.body["related_to"]["id"] == object_id]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                delivery = Delivery(self.path, self.headers["X-Signature"], raw)
                status = receiver.answer(delivery)
                receiver.deliveries.append(delivery)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
