"""The simulator on a real socket: in this process, or in one of its own that can be killed.

python -m tests.simulator.serving '<config as JSON>' <port>
"""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from piggybank.simulator import Config, create_app

STOP_S = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server(config: Config, port: int) -> Server:
    logging.getLogger("_granian").setLevel(logging.ERROR)  # its warning is that embedding is experimental
    return Server(
        create_app(config),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )


@asynccontextmanager
async def served(config: Config, port: int) -> AsyncIterator[None]:
    """Serve in this process."""
    made = server(config, port)
    serving = asyncio.create_task(made.serve())
    while True:
        assert not serving.done(), serving.exception()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            await writer.wait_closed()
            break
    try:
        yield
    finally:
        made.stop()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(STOP_S):
            await serving


if __name__ == "__main__":
    asyncio.run(server(msgspec.json.decode(sys.argv[1], type=Config, dec_hook=lambda made, given: made(given)), int(sys.argv[2])).serve())
