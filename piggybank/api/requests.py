"""One request, from its first byte to its line in the log.

`Door` is the only middleware: it names the request, dresses every answer (also those made before routing) and writes the one
access line. `TypedRequest` decodes a body once, straight into the handler's type: the framework would decode it loosely first
("5" for 5, 1.0 for 1), and money takes no such thing.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any
from uuid import uuid4

import msgspec
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from piggybank import errors, telemetry
from piggybank.api import problems

BODY_MAX_BYTES = 1_048_576
DRAIN_MAX_BYTES = 67_108_864  # of a body that is too large, before its answer
DRAIN_MAX_S = 5
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
HEALTH = "/health/"

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
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

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._log = telemetry.logger("access").bind()  # bound once, not at each line
        self._headers = (*_HEADERS, _HSTS) if https else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.WEBSOCKET:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        request_id = _request_id(scope["headers"])
        scope["state"]["request_id"] = request_id.decode()
        if method == "HEAD":
            scope["method"] = "GET"  # the same answer, without its body
        status = 0

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
            await self._app(scope, receive, dressed)
        finally:
            write = self._log.debug if scope["path"].startswith(HEALTH) else self._log.info
            principal = scope.get("user")
            write(
                "request",
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


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's `Request-Id` where it is 1 to 128 visible ASCII characters, else a new one."""
    for name, value in headers:
        if name == b"request-id" and REQUEST_ID.fullmatch(value):
            return value
    return uuid4().hex.encode()


class TypedRequest(Request[Any, Any, Any]):
    """A request whose JSON body is what the handler's `data` says, or an `errors.InvalidRequest`."""

    __slots__ = ()

    async def json(self) -> Any:
        body = await self.body()
        if not _is_json(self.headers.get("content-type", "")):
            raise errors.UnsupportedMediaType
        try:
            decoded = _decoder(self.route_handler.parsed_data_field.annotation).decode(body)  # type: ignore[union-attr]
            _refuse_doubled_keys(body)
        except (ValueError, RecursionError) as cause:
            raise problems.invalid_body(cause) from cause
        if _ESCAPED_NUL.search(body):
            raise problems.invalid("body", "has a NUL character, which cannot be stored", "malformed")
        return decoded


def _is_json(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))


@lru_cache
def _decoder(annotation: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(annotation)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        doubled = next(name for position, (name, _) in enumerate(pairs) if name in {earlier for earlier, _ in pairs[:position]})
        raise problems.invalid(doubled, "occurs twice in one object", "doubled")
    return fields


_strict = json.JSONDecoder(object_pairs_hook=_object)


def _refuse_doubled_keys(body: bytes) -> None:
    """msgspec takes the last of two equal keys and a proxy may take the first: nobody may mean both. About 5 us a deposit."""
    _strict.decode(body.decode())
