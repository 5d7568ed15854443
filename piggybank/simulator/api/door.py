"""The only middleware: what goes wrong between a request and its answer.

`timeout_after_commit` is the fault that matters most: the work is done, the connection is held and then cut, and whoever asked
cannot know. It befalls only what changed something, so a refusal always arrives.
"""

import asyncio
from contextlib import suppress

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from piggybank.simulator.simulation import Simulation

HOLD_S = 20.0  # less than a server's drain, which waits for answers under way
_API = ("/api/v1/", "/v2/", "/oauth2/")
_LOSABLE = ("/api/v1/", "/v2/")
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_ERROR = b'{"message":"Internal server error (simulated)."}'


class Door:
    """An ASGI app around the app."""

    def __init__(self, app: ASGIApp, sim: Simulation) -> None:
        self._app = app
        self._sim = sim

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        faults = self._sim.faults
        if faults.slow_s:
            await asyncio.sleep(self._sim.wait_s(faults.slow_s))
        if faults.happens("5xx"):
            await _send_error(send)
        elif scope["method"] in _CHANGES and scope["path"].startswith(_LOSABLE):
            await self._lose(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _lose(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the work be done, then see whether its answer arrives."""
        messages: list[Message] = []

        async def note(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, note)
        is_done = bool(messages) and messages[0]["type"] == "http.response.start" and messages[0]["status"] < 300
        if is_done and self._sim.faults.happens("timeout_after_commit"):
            await self._hold(receive, send)
        elif is_done and self._sim.faults.happens("5xx_after_commit"):
            await _send_error(send)
        else:
            for message in messages:
                await send(message)

    async def _hold(self, receive: Receive, send: Send) -> None:
        """Wait until the client hangs up, but not for ever; then cut the connection in the midst of an answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._sim.wait_s(HOLD_S)):
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
        # a server closes a connection whose promised body never comes; there is no other way to ask it for that
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})


async def _send_error(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ERROR)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": _ERROR, "more_body": False})
