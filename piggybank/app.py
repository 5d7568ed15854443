"""The web process: its parts, its routes, its start and its end.

Everything starts while the stores are away and finds them later: connections open at their first need, the epoch and the schema
are asked for in the background. The end is a drain: no longer ready, then nothing new, then what was taken is finished.
"""

# ruff: noqa: ARG001 - the chain in `dependencies`
import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from litestar import Litestar, Request
from litestar.di import Provide
from litestar.exceptions import LitestarDeprecationWarning
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from piggybank import queues, telemetry
from piggybank import settings as settings_file
from piggybank.api import (
    accounts,
    apikeys,
    audit,
    auth,
    backups,
    bodies,
    capacity,
    console,
    cost,
    currencies,
    doctor,
    guards,
    health,
    history,
    journal,
    metrics,
    openapi,
    ops,
    partitions,
    payments,
    phases,
    problems,
    provider,
    queue,
    reports,
    requests,
    revio,
    transactions,
    users,
    watching,
    welcome,
)
from piggybank.api.admission import Admission
from piggybank.api.doctor import Doctor
from piggybank.api.fast_path import FastPath
from piggybank.api.health import Readiness
from piggybank.api.limits import Limiter
from piggybank.appliance import doctor as examinations
from piggybank.cache import Cache
from piggybank.capacity.shares import Sharing
from piggybank.db import routing
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal, Tokens
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.queues import Queue
from piggybank.settings import Settings
from piggybank.tracing import tracing
from piggybank.wallet.provider import Provider
from piggybank.worker import running_worker

ROUTES: list[HTTPRouteHandler] = [
    *health.routes,
    *auth.routes,
    *users.routes,
    *apikeys.routes,
    *currencies.routes,
    *accounts.routes,
    *transactions.routes,
    *history.routes,
    *payments.routes,
    *reports.routes,
    *ops.routes,
    *partitions.routes,
    *capacity.routes,
    *cost.routes,
    *watching.routes,
    *metrics.routes,
    *provider.routes,
    *phases.routes,
    *journal.routes,
    *queue.routes,
    *doctor.routes,
    *backups.routes,
    *audit.routes,
    *revio.routes,
]

_log = telemetry.logger("app")


class Parts(Struct, frozen=True, kw_only=True):
    """What one web process is made of."""

    settings: Settings
    db: Database
    cache: Cache
    ledger: Ledger
    provider: Provider
    tokens: Tokens
    queue: Queue
    readiness: Readiness
    limiter: Limiter
    doctor: Doctor


def open_parts(settings: Settings) -> Parts:
    """The parts, put together; nothing is connected yet."""
    db, cache = routing.open_database(settings), Cache.of(settings)
    ledger = Ledger(db, cache)
    return Parts(
        settings=settings,
        db=db,
        cache=cache,
        ledger=ledger,
        provider=Provider(settings, db),
        tokens=Tokens(db, cache),
        queue=queues.open_queue(settings.queue_url),
        readiness=Readiness(db, cache, ledger),
        limiter=Limiter(settings),
        doctor=Doctor(partial(examinations.examine_stores, settings)),
    )


def create_app(settings: Settings | None = None) -> Litestar:
    """The ASGI app; without settings (a server's factory) those of the environment."""
    settings = settings_file.load() if settings is None else settings
    telemetry.configure(settings.log_level, settings.log_format)
    parts = open_parts(settings)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with _running(parts):
            yield

    provided = dependencies(parts)
    guard = guards.Guard(parts.tokens, parts.limiter, near=settings.metrics_networks)

    # an app of its own for the document: the framework would serve it beside ours, without ETag and on routes of its choice
    described = _litestar(route_handlers=ROUTES, dependencies=provided, openapi_config=openapi.CONFIG, logging_config=None)
    app = _litestar(
        route_handlers=[*ROUTES, *welcome.routes, *console.routes, *openapi.routes(lambda: described.openapi_schema)],
        dependencies=provided,
        before_request=guard.admit,
        exception_handlers={Exception: problems.answer},
        request_class=requests.TypedRequest,
        request_max_body_size=bodies.BODY_MAX_BYTES,
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=None,
    )
    guard.check(app.routes)
    fast_path = FastPath(ROUTES, guard.enter, {name: getattr(parts, name) for name in Parts.__struct_fields__})
    app.asgi_handler = requests.Door(app.asgi_handler, fast_path, Admission(parts.ledger), https=settings.url.startswith("https:"))
    return app


def _litestar(**arguments: Any) -> Litestar:
    with warnings.catch_warnings():
        # 2.25 wants `db: NamedDependency[Database]` for `db: Database`, for 3.0; the pin is below 3, and the handlers read better so
        warnings.simplefilter("ignore", LitestarDeprecationWarning)
        return Litestar(**arguments)


def dependencies(parts: Parts) -> dict[str, Provide]:
    """What handlers may ask for, by name.

    Each takes the one before it, which none needs: what is independent the framework resolves in a task group, a quarter of what a
    request cost. (The fast path asks nobody.)
    """

    def principal(request: Request[Any, Any, Any]) -> Principal | None:
        found: Principal | None = request.scope["user"]
        return found

    def ledger(principal: Any) -> Ledger:
        return parts.ledger

    def provider(ledger: Any) -> Provider:
        return parts.provider

    def db(ledger: Any) -> Database:
        return parts.db

    def cache(db: Any) -> Cache:
        return parts.cache

    def settings(cache: Any) -> Settings:
        return parts.settings

    def tokens(settings: Any) -> Tokens:
        return parts.tokens

    def queue(tokens: Any) -> Queue:
        return parts.queue

    def doctor(queue: Any) -> Doctor:
        return parts.doctor

    def readiness(doctor: Any) -> Readiness:
        return parts.readiness

    def request_id(readiness: Any, request: Request[Any, Any, Any]) -> str:
        return str(request.scope["state"]["request_id"])

    provided = (principal, ledger, provider, db, cache, settings, tokens, queue, doctor, readiness, request_id)
    return {function.__name__: Provide(function, sync_to_thread=False) for function in provided}


@asynccontextmanager
async def _running(parts: Parts) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for part in (parts.db, parts.cache, parts.queue, parts.limiter, parts.provider):
            stack.push_async_callback(part.close)
        tracing.start(parts.settings)
        stack.push_async_callback(asyncio.to_thread, tracing.stop)
        await parts.db.start()
        await parts.ledger.start()
        stack.push_async_callback(parts.ledger.stop)
        parts.readiness.start()
        stack.push_async_callback(parts.readiness.stop)
        sharing = Sharing(parts.db, web=True)
        sharing.start()
        stack.push_async_callback(sharing.stop)
        if parts.settings.worker_processes == 0 and parts.settings.web_processes == 1:
            await stack.enter_async_context(
                running_worker(Work(parts.settings, parts.db, parts.cache, parts.ledger, parts.provider), parts.queue)
            )
        _log.info("started")
        try:
            yield
        finally:
            parts.readiness.draining = True
            _log.info("stopping")
