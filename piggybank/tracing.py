"""Traces, where `otlp_url` says to whom: a span a request and a span a batch. Without it nothing is made, and no library loaded.

A request goes on with the trace of who asked (`traceparent`). A batch serves many requests at once, so it is a span of its own.
"""

import time
from importlib import import_module
from typing import Any

from piggybank import errors
from piggybank.settings import Settings

NS = 1_000_000_000


class Tracing:
    """One process's. `on`: somebody takes spans; else nothing is to be told."""

    def __init__(self) -> None:
        self._spans: Any = None
        self.on = False

    def start(self, settings: Settings) -> None:
        """Begin where there is a receiver; raises `errors.BadSetting` where the extra is missing."""
        if not settings.otlp_url or self.on:
            return
        try:
            self._spans = import_module("piggybank.otlp").Spans(settings.otlp_url)
        except ImportError as cause:
            raise errors.BadSetting(
                setting="PIGGYBANK_OTLP_URL", value="(set)", allowed="set only with the extra: pip install 'piggybank[tracing]'"
            ) from cause
        self.on = True

    def request(self, method: str, route: str, status: int, seconds: float, parent: bytes, request_id: str) -> None:
        """One that was answered just now."""
        now_ns = time.time_ns()
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "piggybank.request_id": request_id,
        }
        began_ns = now_ns - int(seconds * NS)
        self._spans.served(f"{method} {route}", parent.decode("latin-1"), began_ns, now_ns, attributes, failed=status >= 500)

    def batch(self, commands: int, seconds: float) -> None:
        """One that was committed just now."""
        now_ns = time.time_ns()
        self._spans.done("ledger batch", now_ns - int(seconds * NS), now_ns, {"ledger.commands": commands})

    def stop(self) -> None:
        """Send what waits, for a moment."""
        if self.on:
            self.on = False
            self._spans.stop()


tracing = Tracing()
