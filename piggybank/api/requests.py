"""One request, from its first byte to its line in the log.

`Door` is the only middleware: it names the request, has it answered by the fast path or by Litestar, dresses every answer (also
those made before routing) and writes the one access line.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from piggybank import ids, metrics, telemetry
from piggybank.api import bodies
from piggybank.api.admission import Admission
from piggybank.api.fast_path import FastPath
from piggybank.tracing import tracing

DRAIN_MAX_BYTES = 67_108_864  # of a body that is too large, before its answer
DRAIN_MAX_S = 5
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
HEALTH = "/health/"

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_DEFAULTS = (
    (b"cache-control", b"private, no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class Door:
    """The ASGI app around the whole of Litestar."""

    def __init__(self, app: ASGIApp, fast_path: FastPath, admission: Admission, *, https: bool) -> None:
        self._app = app
        self._admission = admission
        self._fast_path = fast_path
        self._headers = (*_HEADERS, _HSTS) if https else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope["state"]["request_id"] = request_id.decode()
        if method == "HEAD":
            scope["method"] = "GET"  # the same answer, without its body
        status, refused = 0, False

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 413:
                    await _drain(receive)
                message["headers"] = self._dressed(message["headers"], scope, request_id)
            elif method == "HEAD" and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        try:
            found = self._fast_path.find(scope, headers) if method != "HEAD" else None
            if found is None:
                await self._app(scope, receive, dressed)
            else:
                call, row_id = found
                if call.queued and self._admission.is_full:
                    refused = True
                    scope["path_template"] = call.template
                    status, given, body = self._admission.refusal(scope["state"]["request_id"])
                else:
                    status, given, body = await call.answer(scope, receive, headers, row_id)
                await send({"type": "http.response.start", "status": status, "headers": self._dressed(given, scope, request_id)})
                await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("path_template", "")
            metrics.request(method, route, status, seconds)
            if tracing.on:
                tracing.request(method, route, status, seconds, headers.get(b"traceparent", b""), scope["state"]["request_id"])
            if not refused:  # those are counted, and told of once a second
                self._tell(scope, method, status, started)

    @staticmethod
    def _tell(scope: HTTPScope, method: str, status: int, started: float) -> None:
        principal = scope.get("user")
        telemetry.record(
            "debug" if scope["path"].startswith(HEALTH) else "info",
            "request",
            room="access",
            request_id=scope["state"]["request_id"],
            method=method,
            route=scope.get("path_template", ""),
            status=status,
            ms=round((time.perf_counter() - started) * 1_000, 1),
            by="" if principal is None else principal.actor,
        )

    def _dressed(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope, request_id: bytes) -> list[tuple[bytes, bytes]]:
        answer = [*headers, *self._headers, (b"request-id", request_id)]
        given = {name for name, _ in headers}
        answer += [header for header in _DEFAULTS if header[0] not in given]
        if rate := scope["state"].get("rate"):
            limit, left, reset_s = rate
            answer += [(b"ratelimit-limit", b"%d" % limit), (b"ratelimit-remaining", b"%d" % left), (b"ratelimit-reset", b"%d" % reset_s)]
        return answer


async def _drain(receive: Receive) -> None:
    """Take in a body that nobody reads: a client that still sends when the connection ends does not see the answer."""
    taken = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_MAX_S):
            while taken < DRAIN_MAX_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))  # type: ignore[arg-type]
                if not message.get("more_body"):
                    return


def _request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's `Request-Id` where it is 1 to 128 visible ASCII characters, else a new one."""
    given = headers.get(b"request-id")
    return given if given is not None and REQUEST_ID.fullmatch(given) else b"%016x%016x" % (ids.random_64(), ids.random_64())


class TypedRequest(Request[Any, Any, Any]):
    """A request whose JSON body is what the handler's `data` says, or an `errors.InvalidRequest`."""

    __slots__ = ()

    async def json(self) -> Any:
        annotation = self.route_handler.parsed_data_field.annotation  # type: ignore[union-attr]
        return bodies.decode(self.headers.get("content-type", ""), await self.body(), annotation)
