"""A Valkey behind TLS, as a cloud has it: its CA is named in the address, and without it nobody is believed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from piggybank import queues
from piggybank.cache import Cache
from piggybank.settings import Settings

from .conftest import until


@pytest.fixture
async def encrypted(settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """The run's cache by TLS: (address without a CA, the CA)."""
    authority, parts = trustme.CA(), urlsplit(settings.cache_url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(parts.hostname, parts.port)
        for one, other in ((reader, inner_writer), (inner_reader, writer)):
            carrying.add(asyncio.create_task(carry(one, other)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield settings.cache_url.replace("redis://", "rediss://").replace(f":{parts.port}/", f":{port}/"), tmp_path / "ca.pem"
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


async def test_cache_and_queue_speak_tls_to_whom_they_trust(encrypted: tuple[str, Path]) -> None:
    url, authority = encrypted
    address = f"{url}?ssl_ca_certs={authority}"
    cache, queue = Cache(address), queues.open_queue(address)
    try:
        await until(cache.ping)
        await until(queue.ping)
    finally:
        await cache.close()
        await queue.close()
    async with Redis.from_url(url) as stranger:
        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.ping()
