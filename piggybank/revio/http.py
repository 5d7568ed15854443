"""One call of a provider's API, and the three ways in which it can fail.

    Refused     it answered, and said no: nothing was done
    Unsent      it was not reached: nothing was done
    Unclear     it may have been done: nobody knows yet

What may be done twice is `repeatable` and tried again a few times at once; what moves money never is. Nothing here logs a header,
a body or an address: they hold keys and people's data.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import httpx
import msgspec
import structlog

CONNECT_TIMEOUT_S = 3.0
CONNECTIONS_MAX = 20  # of one process
KEPT_ALIVE_MAX = 10
TRIES = 3  # of what may be repeated
PAUSE_FIRST_S = 0.2  # doubled with every try
ANSWER_MAX_BYTES = 64 * 1024 * 1024  # a month's statement is a few MB
CAUSE_MAX_CHARACTERS = 200
TOO_MANY, SERVER_ERROR = 429, 500
UNPROVEN = (408, 409, 425)  # to what moves money: a timeout, a conflict or "too early" does not prove that nothing was done
UNAUTHORISED = (401, 403)

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)
_log = structlog.get_logger()


class CallFailed(Exception):
    """A call that did not end well."""


class Refused(CallFailed):
    """It said no. `code` is its own, or `http_<status>`; `passing` when the same may be asked later (a limit, a wrong key)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.passing = status == TOO_MANY or status in UNAUTHORISED


class Unsent(CallFailed):
    """It was not reached, so it did nothing."""


class Unclear(CallFailed):
    """It was asked, and its answer is not known."""


class Connections:
    """The connections of one account. What is sent once gets a new one: an idle one may be closed while we write into it, and then
    nobody knows whether it was heard.
    """

    def __init__(self, timeout_s: float, proxy: str | None = None) -> None:
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._kept = httpx.AsyncClient(
            timeout=timeout,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=KEPT_ALIVE_MAX),
            follow_redirects=False,
            trust_env=False,
            proxy=proxy,
        )
        self._new = httpx.AsyncClient(
            timeout=timeout,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
            proxy=proxy,
        )

    async def close(self) -> None:
        """Close them all."""
        await self._kept.aclose()
        await self._new.aclose()

    async def call(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        repeatable: bool = False,
    ) -> bytes:
        """The answer's body. Raises Refused, Unsent, Unclear."""
        content = None if body is None else msgspec.json.encode(body)
        sent_headers = dict(headers or {}) | ({"Content-Type": "application/json"} if content is not None else {})
        client = self._kept if repeatable else self._new
        pause_s = PAUSE_FIRST_S
        for tries_left in range(TRIES - 1 if repeatable else 0, -1, -1):
            try:
                request = client.build_request(method, url, headers=sent_headers, content=content, data=form)
                return await _once(client, request, auth, UNPROVEN if not repeatable else ())
            except (Unsent, Unclear) as failed:
                _log.info("provider_call_failed", method=method, because=str(failed), tries_left=tries_left)
                if not tries_left:
                    raise
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError


async def _once(client: httpx.AsyncClient, request: httpx.Request, auth: tuple[str, str] | None, unproven: Collection[int]) -> bytes:
    try:
        response = await client.send(request, auth=httpx.BasicAuth(*auth) if auth else None, stream=True)
        try:
            answer = await _read(response)
        finally:
            await response.aclose()
    except _NEVER_SENT as cause:
        raise Unsent(type(cause).__name__) from cause
    except (httpx.TransportError, httpx.DecodingError, OSError) as cause:
        raise Unclear(type(cause).__name__) from cause
    if response.is_success:
        return answer
    if response.status_code >= SERVER_ERROR or response.status_code in unproven or response.is_redirect:
        raise Unclear(f"status {response.status_code}")
    raise Refused(response.status_code, *_reason(answer, response.status_code))


async def _read(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > ANSWER_MAX_BYTES:
            raise Unclear(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _reason(answer: bytes, status: int) -> tuple[str, str]:
    """(code, message) of `{"field": [{"message", "code"}]}`, or of `{"error" | "detail" | "message"}`."""
    try:
        found = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"http_{status}", ""
    if isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                place = "" if name == "__all__" else f"{name}: "
                return str(value[0].get("code") or f"http_{status}"), (place + str(value[0].get("message", "")))[:CAUSE_MAX_CHARACTERS]
        for name in ("error", "detail", "message"):
            if isinstance(found.get(name), str):
                return f"http_{status}", found[name][:CAUSE_MAX_CHARACTERS]
    return f"http_{status}", ""
