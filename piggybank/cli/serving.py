"""`piggybank serve`, `worker` and `simulator`: one process each, in the foreground.

Granian runs inside our own event loop (its embedded server) instead of under its process manager. One process then is one
process: a kill -9 leaves no orphan that still listens, the pid is the one that answers, and on 2 cores it answered 33,000
instead of 26,000 empty requests a second. What the manager would do, restarting and logs, the supervisor or the container does.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import uvloop
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server
from litestar import Litestar

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import web
from piggybank.db import installation
from piggybank.settings import Settings

BACKLOG = 1_024  # connections that wait to be accepted
CONNECTIONS_MAX = 10_000  # of one process; requests are limited by the app, this only bounds the sockets
HEADER_TIMEOUT_MS = 30_000  # a client that dribbles its headers is cut off
DRAIN_S = 30  # requests under way may finish; less than what the supervisor and container platforms wait
EXIT_FAILED = 1
NEEDED = tuple(name for name in settings_file.STORE_FIELDS if name != settings_file.OWNER)


class Address(NamedTuple):
    """Where to listen; `url` is for the log."""

    listen: str
    port: int
    tls_cert: str = ""
    tls_key: str = ""
    url: str = ""


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


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), help="Listen there instead of where the settings say.")
@click.option("--faults", help="How it misbehaves, instead of what the settings say.")
@click.pass_context
def simulator(ctx: click.Context, port: int | None, faults: str | None) -> None:
    """Run the simulator of the payment provider: its API, a checkout page to click through, signed events. No real money.

    `piggybank up` starts it in simulator mode. Its book is in `simulator/` of the data folder. Faults are names with a fraction of the
    calls, as in timeout_after_commit:0.01,dup_event:0.05:

    \b
      timeout_after_commit   the work is done, the answer never comes
      5xx, 5xx_after_commit  an error before, or after the work is done
      slow_ms                every answer takes so many milliseconds
      dup_event, late_event, reorder, bad_signature    of its events
      wrong_amount, wrong_currency    people pay something else than was asked
      chargeback, chargeback_reversed, refund_failure, sync_refund
      payout_pending, payout_error, payout_return, statement_mismatch

    \b
    Examples:
      piggybank simulator
      piggybank simulator --faults timeout_after_commit:0.05,dup_event:0.2
    """
    settings = settings_file.load((ctx.find_root().obj or {}).get("data_dir"))
    sys.exit(uvloop.run(_simulate(settings, port, settings.simulator_faults if faults is None else faults)))


async def _simulate(settings: Settings, port: int | None, faults: str) -> int:
    from piggybank.simulator import Config, create_app
    from piggybank.wallet.provider import SIMULATOR_BRAND, SIMULATOR_EFT_CLIENT

    if not settings.simulator_key:
        raise errors.CannotProceed(
            what="the simulator has no key", do="piggybank up makes one; with stores of your own set PIGGYBANK_SIMULATOR_KEY"
        )
    mode = await installation.stored_mode(settings.database_url) if settings.database_url else "simulator"
    if mode != "simulator":
        what = "this installation is live: it has no simulator" if mode else "the database does not say which provider it has"
        raise errors.CannotProceed(what=what, do="piggybank provider mode")
    telemetry.configure(settings.log_level, settings.log_format)
    own = settings if port is None else msgspec.structs.replace(settings, simulator_port=port)
    config = Config(
        folder=settings.data_dir / web.SIMULATOR,
        url=own.simulator_address,
        page_url=own.simulator_page,
        key=settings.simulator_key,
        brand_id=SIMULATOR_BRAND,
        faults=faults,
        time_scale=settings.simulator_time_scale,
        eft_client_id=SIMULATOR_EFT_CLIENT,
        eft_client_secret=settings.simulator_key,
    )
    try:
        app = create_app(config)
    except ValueError as cause:
        raise errors.BadSetting(setting="PIGGYBANK_SIMULATOR_FAULTS", value=faults, allowed=str(cause)) from cause
    address = Address(settings.simulator_listen, own.simulator_port or own.port + 1, url=config.url)
    return await _serve_app(app, address, settings)


def _check_stores(settings: Settings) -> None:
    missing = [name for name in NEEDED if not getattr(settings, name)]
    if missing:
        raise errors.CannotProceed(
            what=f"no {', '.join(missing)} for {settings.data_dir}", do="start the embedded stores with: piggybank up; or set them"
        )


async def _serve(settings: Settings, port: int) -> int:
    """Serve until SIGTERM or SIGINT, then drain; the exit code."""
    gc.disable()  # until `_serve_app` has looked through all that importing made, once
    from piggybank.app import create_app

    address = Address(settings.listen, port, settings.tls_cert, settings.tls_key)
    return await _serve_app(create_app(settings), address, settings)


async def _serve_app(app: Litestar, where: Address, settings: Settings) -> int:
    logging.getLogger("_granian").setLevel(logging.ERROR)  # its warning is that embedding is experimental; we know
    server = Server(
        app,
        address=_address(where.listen),
        port=where.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        websockets=False,
        backlog=BACKLOG,
        backpressure=CONNECTIONS_MAX,
        log_enabled=False,
        ssl_cert=Path(where.tls_cert) if where.tls_cert else None,
        ssl_key=Path(where.tls_key) if where.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
    )
    log = telemetry.logger("serve")
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    telemetry.gather()
    # What is there for good is looked at once: a full collection over it took 90 ms each second under load, and every request waited.
    gc.collect()
    gc.freeze()
    gc.enable()
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(told_to_stop.wait())
    log.info("serving", url=where.url or settings.url, port=where.port, data_dir=str(settings.data_dir))
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
