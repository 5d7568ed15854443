"""`piggybank serve` and `piggybank worker`: one process each, in the foreground.

Granian runs inside our own event loop (its embedded server) instead of under its process manager. One process then is one
process: a kill -9 leaves no orphan that still listens, the pid is the one that answers, and on 2 cores it answered 33,000
instead of 26,000 empty requests a second. What the manager would do, restarting and logs, the supervisor or the container does.
"""

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

import click
import uvloop
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.settings import Settings

BACKLOG = 1_024  # connections that wait to be accepted
CONNECTIONS_MAX = 10_000  # of one process; requests are limited by the app, this only bounds the sockets
HEADER_TIMEOUT_MS = 30_000  # a client that dribbles its headers is cut off
DRAIN_S = 30  # requests under way may finish; less than what the supervisor and container platforms wait
EXIT_FAILED = 1


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), help="Listen there instead of where the settings say.")
@click.pass_context
def serve(ctx: click.Context, port: int | None) -> None:
    """Run one web process. Several may share the port; SIGTERM drains.

    \b
    Examples:
      piggybank serve
      piggybank serve --port 8081
    """
    settings = settings_file.load((ctx.find_root().obj or {}).get("data_dir"))
    _check_stores(settings)
    sys.exit(uvloop.run(_serve(settings, port or settings.port)))


@click.command()
@click.pass_context
def worker(ctx: click.Context) -> None:
    """Run one job worker; SIGTERM lets the running job finish.

    \b
    Example:
      piggybank worker
    """
    from piggybank import worker as jobs_worker

    settings = settings_file.load((ctx.find_root().obj or {}).get("data_dir"))
    _check_stores(settings)
    telemetry.configure(settings.log_level, settings.log_format)
    jobs_worker.run(settings)


def _check_stores(settings: Settings) -> None:
    missing = [name for name in settings_file.STORE_FIELDS if not getattr(settings, name)]
    if missing:
        raise errors.CannotProceed(
            what=f"no {', '.join(missing)} for {settings.data_dir}", do="start the embedded stores with: piggybank up; or set them"
        )


async def _serve(settings: Settings, port: int) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code."""
    from piggybank.app import create_app

    app = create_app(settings)
    logging.getLogger("_granian").setLevel(logging.ERROR)  # its warning is that embedding is experimental; we know
    server = Server(
        app,
        address=_address(settings.listen),
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        websockets=False,
        backlog=BACKLOG,
        backpressure=CONNECTIONS_MAX,
        log_enabled=False,
        ssl_cert=Path(settings.tls_cert) if settings.tls_cert else None,
        ssl_key=Path(settings.tls_key) if settings.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
    )
    log = telemetry.logger("serve")
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(told_to_stop.wait())
    log.info("serving", url=settings.url, port=port, data_dir=str(settings.data_dir))
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not told_to_stop.is_set():  # the app's start failed, or the listener ended: never a quiet half-life
        waiting.cancel()
        log.error("server_ended", error=str(serving.exception() or "the listener ended"))
        return EXIT_FAILED
    log.info("draining")
    server.stop()  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(DRAIN_S):
            await serving
    except TimeoutError:
        log.error("drain_timeout", seconds=DRAIN_S)
        return EXIT_FAILED
    log.info("stopped")
    return 0


def _address(listen: str) -> str:
    """Granian takes addresses, not names."""
    return str(socket.getaddrinfo(listen, None, type=socket.SOCK_STREAM)[0][4][0])
