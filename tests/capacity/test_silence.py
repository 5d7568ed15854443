"""A worker whose web processes are killed and whose database goes away: it tells, and the dead man's switch is left alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import msgspec
import pytest

from piggybank.settings import Settings
from tests.conftest import start_process, start_server

pytestmark = pytest.mark.deep

PATIENCE_S = 170.0  # a look a minute, of what was told in the minute before
TWO_LOOKS_S = 125.0


class Relay:
    """A way to a server that can be closed: what it carried is cut off, and nobody else gets through."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._open = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._open.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._open is not None
        self._open.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        ways = [asyncio.create_task(self._pass_on(reader, there_writer)), asyncio.create_task(self._pass_on(there_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # asyncio's server would tell of it
            pass
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            there_writer.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


class Ear:
    """Where alerts are posted to, and the dead man's switch."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.pings: list[float] = []
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")), 0)
        body = await reader.readexactly(length)
        if head.startswith("GET /ping"):
            self.pings.append(time.monotonic())
        else:
            said = msgspec.json.decode(body)
            self.heard.append((said["name"], said["status"]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, (self.heard, self.pings)
            await asyncio.sleep(0.2)


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    made = Ear()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


async def test_who_serves_nobody_and_who_sees_nothing_tells(fresh_settings: Settings, ear: Ear) -> None:
    address = urlsplit(fresh_settings.database_url)
    assert address.hostname
    relay = Relay(address.hostname, address.port or 5432)
    await relay.open()
    credentials = address.netloc.rpartition("@")[0]
    settings = msgspec.structs.replace(
        fresh_settings,
        alert_pace=60.0,  # a minute is enough
        worker_processes=1,
        alert_webhook_url=f"http://127.0.0.1:{ear.port}/alerts",
        alert_ping_url=f"http://127.0.0.1:{ear.port}/ping",
    )
    through = msgspec.structs.replace(settings, database_url=address._replace(netloc=f"{credentials}@127.0.0.1:{relay.port}").geturl())
    web = await asyncio.to_thread(start_server, settings)
    worker = start_process(through, "worker", settings.data_dir / "worker.log")
    try:
        await ear.until(lambda: bool(ear.pings))
        ear.heard.clear()  # at this pace the minute before the first process counts
        web.kill()
        await ear.until(lambda: ("WebGone", "firing") in ear.heard)
        told_at, pings = time.monotonic(), len(ear.pings)
        await relay.close()
        await ear.until(lambda: ("NothingRecorded", "firing") in ear.heard)
        assert len(ear.pings) == pings
        await relay.open()
        await ear.until(lambda: ("NothingRecorded", "resolved") in ear.heard)
        await asyncio.sleep(max(0.0, TWO_LOOKS_S - (time.monotonic() - told_at)))
        assert len(ear.pings) == pings  # the database is back, and still nobody serves
        assert ("WebGone", "resolved") not in ear.heard
        web = await asyncio.to_thread(start_server, settings)
        await ear.until(lambda: ("WebGone", "resolved") in ear.heard and len(ear.pings) > pings)
        assert len(ear.heard) == len(set(ear.heard))  # each once
    finally:
        web.kill()
        worker.kill()
        worker.wait()
        await relay.close()
