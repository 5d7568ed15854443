"""The simulator's process: its routes, its start and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.di import Provide

from piggybank import telemetry
from piggybank.simulator import checkout, clockwork, deliveries
from piggybank.simulator.api import bodies, company, control, eft, payouts, problems, purchases, webhooks
from piggybank.simulator.api.door import Door
from piggybank.simulator.api.guard import Guard
from piggybank.simulator.config import Config
from piggybank.simulator.simulation import Simulation

TASK_PAUSE_S = 5.0  # a task that fails is started again after this

ROUTES = [
    *purchases.routes,
    *payouts.routes,
    *webhooks.routes,
    *company.routes,
    *eft.routes,
    *control.routes,
    *checkout.routes,
]

_log = telemetry.logger("simulator")


def create_app(config: Config) -> Litestar:
    """The ASGI app; its book is opened when the server starts it."""
    sim = Simulation(config)
    guard = Guard(sim)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with _running(sim):
            yield

    app = Litestar(
        route_handlers=ROUTES,
        dependencies={
            "sim": Provide(lambda: sim, sync_to_thread=False),
            "guard": Provide(lambda: guard, sync_to_thread=False),
        },
        before_request=guard.admit,
        exception_handlers={Exception: problems.handle},
        request_max_body_size=bodies.BODY_MAX_BYTES,
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=None,
    )
    app.asgi_handler = Door(app.asgi_handler, sim)
    return app


@asynccontextmanager
async def _running(sim: Simulation) -> AsyncIterator[None]:
    tasks: list[asyncio.Task[None]] = []
    try:
        await sim.open()
        clockwork.wind_up(sim)
        for name, run in (("clockwork", clockwork.run), ("deliveries", deliveries.run)):
            tasks.append(asyncio.create_task(_keep_running(name, run, sim)))
        _log.info("started", url=sim.config.url, folder=str(sim.config.folder))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sim.close()
        _log.info("stopped")


async def _keep_running(name: str, run: Callable[[Simulation], Awaitable[None]], sim: Simulation) -> None:
    """A full disk must not end the events for good."""
    while True:
        try:
            await run(sim)
        except Exception as cause:
            _log.error("task_failed", task=name, exc_info=cause)
            await asyncio.sleep(TASK_PAUSE_S)
