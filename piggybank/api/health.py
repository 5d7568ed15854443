"""Is this process well? Asked by supervisors, proxies and load balancers.

`live`: the process answers. `ready`: it may be sent work; a lost database does not make it unready, since every request then says
503 by itself, and taking all processes out at once would only hide that. Neither asks the database: `Readiness` does, beside.
"""

import asyncio
import time
from typing import Annotated, Literal

from litestar import Response, get
from msgspec import Meta, Struct
from sqlalchemy import text

from piggybank import errors, telemetry
from piggybank.cache import Cache
from piggybank.db import installation, recovery, revisions
from piggybank.db.engines import Database
from piggybank.ledger import Ledger

CLOCK_TOLERANCE_S = 1.0  # ids carry the time of the process that made them
LOOK_EVERY_S = 1.0  # so soon everybody knows another epoch (`db/installation.py`)
LOOK_AGAIN_S = 0.5  # while the database is away or behind

_INSTALLATION = text(
    f"SELECT epoch, {recovery.RECOVERING} AS recovering, (SELECT version_num FROM alembic_version) AS revision,"
    " extract(epoch FROM clock_timestamp()) AS now FROM installation"
)

_log = telemetry.logger("health")


class Readiness:
    """What the process knows of its database without asking at each request."""

    def __init__(self, db: Database, cache: Cache, ledger: Ledger) -> None:
        self._db = db
        self._cache = cache
        self._ledger = ledger
        self._head = revisions.head()
        self._watching: asyncio.Task[None] | None = None
        self.draining = False
        self.revision = ""
        self.clock_off_s = 0.0
        self.reachable = False

    @property
    def reasons(self) -> list[str]:
        """Why no work should be sent here; empty: ready."""
        found = {
            "draining": self.draining or self._ledger.draining,
            "ledger_dead": not self._ledger.alive,
            "schema_behind": not self.revision or self.revision < self._head,
            "clock_off": self.clock_off_s > CLOCK_TOLERANCE_S,
        }
        return [name for name, is_so in found.items() if is_so]

    def start(self) -> None:
        """Begin to look, now and then; the database may be away."""
        self._watching = asyncio.create_task(self._watch(), name="readiness")

    async def stop(self) -> None:
        """No more looking."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def look(self) -> None:
        """Ask the database once: its epoch goes to the cache, which is of no use before."""
        before = time.time()
        try:
            async with self._db.read() as read:
                row = (await read.execute(_INSTALLATION)).one()
        except errors.DatabaseUnavailable:
            self.reachable = False
            return
        after = time.time()
        self.reachable = True
        self.revision = row.revision
        self.clock_off_s = max(0.0, before - float(row.now), float(row.now) - after)  # what the round trip cannot explain
        epoch, closed, self._db.recovering = installation.epoch_of(row.epoch, recovering=row.recovering)
        self._cache.know(epoch, closed=closed)

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as cause:  # a schema without tables, a role without rights: said once a look, and looked at again
                self.reachable = False
                _log.warning("database_not_ready", because=type(cause).__name__)
            await asyncio.sleep(LOOK_EVERY_S if self.reachable else LOOK_AGAIN_S)


class Health(Struct, frozen=True):
    """`ok`, or `unready` with the reasons."""

    status: Literal["ok", "unready"]
    reasons: Annotated[list[str], Meta(description="Any of draining, ledger_dead, schema_behind, clock_off.")] = []


@get("/health/live", tags=["health"], summary="The process answers", sync_to_thread=False)
def live() -> Health:
    """Asks nothing of the stores."""
    return Health("ok")


@get("/health/ready", tags=["health"], summary="The process may be sent work", sync_to_thread=False)
def ready(readiness: Readiness) -> Response[Health]:
    """503 while the schema is older than this version, the clock is more than 1 s off, the ledger is dead, or the server stops."""
    reasons = readiness.reasons
    return Response(Health("unready", reasons) if reasons else Health("ok"), status_code=503 if reasons else 200)


routes = [live, ready]
