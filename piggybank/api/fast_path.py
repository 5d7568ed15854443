"""The fast path: movements and balance reads without the framework's detours.

Litestar declares, checks and describes every handler. To call one it also builds, at each request, a connection, the dictionaries of
its kwargs model, a scope for dependencies and two response objects: two thirds of what a deposit cost. A handler that says
`fast_path=True` is called here with what its signature asks for, and nothing else.

Only a plain request comes this way: each header once, JSON of a known length, no query, an id as we write them. Whatever else comes
is Litestar's, so there is one place that says what is wrong with a request. The same requests, sent both ways, get the same answers
byte for byte: `tests/api/test_fast_path.py`.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_type_hints
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter
from litestar.types import HTTPScope, Receive

from piggybank import errors
from piggybank.api import bodies, problems

OPTION = "fast_path"  # of a handler's decorator
LENGTH_DIGITS = len(str(bodies.BODY_MAX_BYTES))
QUEUED = "queued"  # the same: it waits in the ledger's queue, and is refused while that is full

# /v1/accounts/<id>/deposits: what stands before, the id, what stands behind; or a path without an id
_WITH_ID = re.compile(r"(/[a-z\d]+/[a-z]+/)([\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12})((?:/[a-z-]+)?)")
_TEMPLATE = re.compile(r"\{(\w+):uuid\}")
_HOST = re.compile(rb"[\w.:\[\]-]*")  # narrower than what Litestar takes
_NO_BODY = frozenset({204, 304})

Headers = list[tuple[bytes, bytes]]
Enter = Callable[[HTTPScope], Awaitable[None]]

_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """A finished answer, before it is dressed."""

    status: int
    headers: Headers
    body: bytes


class Call:
    """One handler, and how to call it."""

    def __init__(self, handler: HTTPRouteHandler, enter: Enter, parts: Mapping[str, Any]) -> None:
        self.template = re.sub(r":uuid\}", "}", next(iter(handler.paths)))
        self.status = handler.status_code
        self._enter = enter
        self._function = handler.fn
        self.id_name = next(iter(_TEMPLATE.findall(next(iter(handler.paths)))), "")
        self._body: Any = None
        self._headers: list[tuple[str, bytes]] = []
        self._parts: dict[str, Any] = {}
        hints = get_type_hints(self._function, include_extras=True)
        for name, parameter in inspect.signature(self._function).parameters.items():
            header = _header_of(hints[name])
            if name == "data":
                self._body = hints[name]
            elif header:
                self._headers.append((name, header))
            elif name in parts:
                self._parts[name] = parts[name]
            elif name not in ("principal", "request_id", self.id_name) and parameter.default is parameter.empty:
                raise errors.CannotProceed(what=f"{handler.handler_name} asks for {name}, which the fast path does not have")
        self.queued = bool(handler.opt.get(QUEUED))
        self._wants_principal = "principal" in hints
        self._wants_request_id = "request_id" in hints

    async def answer(self, scope: HTTPScope, receive: Receive, headers: Mapping[bytes, bytes], row_id: str) -> Answer:
        """Admit, call, encode; what goes wrong becomes the problem that Litestar would answer."""
        scope["path_template"] = self.template
        try:
            await self._enter(scope)
            arguments = self._parts.copy()
            if self.id_name:
                arguments[self.id_name] = UUID(row_id)
            if self._wants_principal:
                arguments["principal"] = scope["user"]
            if self._wants_request_id:
                arguments["request_id"] = scope["state"]["request_id"]
            for name, header in self._headers:
                value = headers.get(header)
                arguments[name] = None if value is None else value.decode("latin-1")
            if self._body is not None:
                arguments["data"] = bodies.decode(headers[b"content-type"].decode("latin-1"), await _body(receive), self._body)
            return self._encoded(await self._function(**arguments))
        except Exception as error:  # the same as Litestar's handler of exceptions gets
            return self._encoded(problems.answer(Request(scope), error))

    def _encoded(self, result: Any) -> Answer:
        if not isinstance(result, Response):
            return sized(self.status, [], b"application/json", _encode(result))
        status = result.status_code or self.status
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in result.headers.items()]
        if status in _NO_BODY:
            return Answer(status, headers, b"")
        media_type = str(result.media_type or "application/json").encode("latin-1")
        content = result.content
        return sized(status, headers, media_type, content if isinstance(content, bytes) else _encode(content))


class FastPath:
    """The calls of every handler that asks for it."""

    def __init__(self, handlers: Iterable[HTTPRouteHandler], enter: Enter, parts: Mapping[str, Any]) -> None:
        self._calls: dict[tuple[str, str], Call] = {}
        for handler in handlers:
            if handler.opt.get(OPTION):
                path = _TEMPLATE.sub("", next(iter(handler.paths)))
                self._calls.update(((method, path), Call(handler, enter, parts)) for method in handler.http_methods)

    def find(self, scope: HTTPScope, headers: Mapping[bytes, bytes]) -> tuple[Call, str] | None:
        """The call for a plain request, with the id of its path; None: Litestar answers it."""
        path, method = scope["path"], scope["method"]
        with_id = _WITH_ID.fullmatch(path)
        call = self._calls.get((method, path) if with_id is None else (method, with_id[1] + with_id[3]))
        if call is None or bool(call.id_name) != (with_id is not None):
            return None
        if scope["query_string"] or len(headers) != len(scope["headers"]):  # type: ignore[arg-type] # a list
            return None
        if not _HOST.fullmatch(headers.get(b"host", b"")):
            return None
        if method != "GET" and not _has_plain_body(headers):
            return None
        return call, "" if with_id is None else with_id[2]


def _has_plain_body(headers: Mapping[bytes, bytes]) -> bool:
    length = headers.get(b"content-length", b"")
    if (
        not length.isdigit()
        or len(length) > LENGTH_DIGITS
        or b"transfer-encoding" in headers
        or not 0 < int(length) <= bodies.BODY_MAX_BYTES
    ):
        return False
    return b"content-type" in headers


def _header_of(hint: Any) -> bytes:
    """The header that a parameter is annotated to come from."""
    marks = (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, HeaderParameter))
    return next((mark.name.lower().encode() for mark in marks if mark.name), b"")


async def _body(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message["body"]
    parts = []
    while message["type"] == "http.request":
        parts.append(message["body"])
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise problems.invalid("body", "ended too early", "malformed")  # nobody reads this


def sized(status: int, headers: Headers, media_type: bytes, body: bytes) -> Answer:
    """An answer with a body."""
    headers += ((b"content-type", media_type), (b"content-length", b"%d" % len(body)))
    return Answer(status, headers, body)
