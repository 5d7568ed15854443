"""The doors to PostgreSQL.

`Read`, `Current` and `Write` are three types, so that a type checker refuses a write, or a read that must see every commit, where a
replica may answer; which reads those are stands in `db/routing.py`. `commit` happens here, at the end of `Database.write()`, and in
`ledger/posting.py` for a batch, nowhere else. Everything goes through SQLAlchemy sessions but the ledger's hot path: a lane owns one
asyncpg connection.

Behind a pooler in transaction mode a transaction may meet any server connection, so nothing is kept on one: no named statement (what is
prepared is prepared anew, unnamed, in the round trip that runs it), no SET but SET LOCAL, no session lock, no LISTEN. Timeouts live on
the role. What needs more (migrations, `verify`, the bench) goes direct with the owner's role.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar, Generic, NamedTuple, TypeVar

import asyncpg
import msgspec
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from piggybank import errors
from piggybank.db import commits, slow
from piggybank.db.storage import Storage
from piggybank.settings import Durability, Pooling, Settings

POOL_KEPT = 5  # connections of a process for everything but the ledger's hot path; more under load
POOL_MOST = 10  # where nobody says how many (setting `pool_connections`)
POOL_WAIT_S = 5
CONNECT_TIMEOUT_S = 5
CONNECTION_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.InternalClientError,  # asyncpg's word when an error came unasked: a pooler's, or the server's last, between two statements
)

DRIVER = "postgresql+asyncpg://"  # no more than that: asyncpg reads the URL itself, SQLAlchemy would know no sslmode

# PgBouncer below 1.21 knows no named statements: asyncpg's cache and SQLAlchemy's are off, and what SQLAlchemy prepares has no name.
UNPREPARED = {"statement_cache_size": 0}
UNPREPARED_SESSIONS = {**UNPREPARED, "prepared_statement_cache_size": 0, "prepared_statement_name_func": str}

WAITING = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid::text = $1 AND wait_event = 'SyncRep')"


class Read(AsyncSession):
    """A session that only selects: a replica may answer it."""


class Current(Read):
    """A session on the primary that only selects: it sees every commit."""


class Write(Current):
    """A session on the primary that may change rows; it commits when its block ends well."""


T = TypeVar("T")


class Seen(NamedTuple, Generic[T]):
    """What a read found, and at which version of its account; both of one snapshot, or the version of an older one."""

    version: int
    what: T


# None: it is not there, or not yet
Question = Callable[[Read], Awaitable[Seen[T] | None]]


class Database:
    """One process's connections, made from `postgresql://user:password@host:port/name`.

    `pooling`: what that URL leads to; `waits_for`: what its commits wait for (`db/commits.py`).
    """

    has_replicas: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        *,
        pooling: Pooling = "none",
        pool: int = POOL_MOST,
        waits_for: Durability = "disk",
        storage: Storage | None = None,
    ) -> None:
        self.url = url
        self.waits_for = waits_for
        self.storage = storage or Storage()
        self.recovering = False  # restored, and not finished: whoever looks at the installation's row says so
        self._statements = UNPREPARED if pooling == "transaction" else {}
        self.engine = open_engine(url, pooling, pool)

    @classmethod
    def of(cls, settings: Settings) -> "Database":
        """Those of an installation: through its pooler where it has one."""
        return cls(
            cls.address(settings),
            pooling=settings.pooling,
            pool=settings.pool_connections,
            waits_for=settings.waits_for,
            storage=Storage.of(settings),
        )

    @staticmethod
    def address(settings: Settings) -> str:
        """Where the primary is reached: through the pooler where there is one."""
        return settings.pooler_url if settings.pooling != "none" and settings.pooler_url else settings.database_url

    async def connect(self) -> asyncpg.Connection:
        """A connection of its own, for the ledger's lane."""
        return await asyncpg.connect(self.url, timeout=CONNECT_TIMEOUT_S, **self._statements)

    async def start(self) -> None:
        """Begin to look after replicas; there are none here."""

    async def ask(self, question: Question[T], floor: int | None = 0) -> T | None:  # noqa: ARG002 - it matters where replicas are
        """What `question` finds; None: it is not there. Raises `errors.DatabaseUnavailable`.

        `floor`: the version that the answer must have at least, 0 for what never changes once it is there; None: nobody can tell.
        """
        async with self.read() as session:
            seen = await question(session)
        return None if seen is None else seen.what

    async def waits(self, transaction: str) -> bool:
        """Whether the primary can be asked and knows of that transaction, whose commit waits for a standby."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self.connect()
                try:
                    return bool(await connection.fetchval(WAITING, transaction))
                finally:
                    connection.terminate()
        except (TimeoutError, asyncpg.PostgresError, *CONNECTION_LOST):
            return False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Current]:
        """A session for selects on the primary; raises `errors.DatabaseUnavailable`."""
        with said_plainly():
            async with Current(self.engine, expire_on_commit=False, autoflush=False) as session:
                yield session

    @asynccontextmanager
    async def write(self, *, replays: bool = False, lasting: bool = True) -> AsyncIterator[Write]:
        """A session that commits at the end of the block and rolls back on an exception.

        `replays`: it may write nothing and answer that all was done before, which then must be as sure as a commit. Not `lasting`: it
        waits for no standby, for what is of the hour only and must be written down also while there is none.
        Raises `errors.InRecovery`, `errors.DatabaseUnavailable` and StorageFull; where commits wait for a standby NoSynchronousStandby,
        too; when nobody can tell whether it was committed OutcomeUnknown.
        """
        if self.recovering:
            raise errors.InRecovery
        self.storage.check()
        with said_plainly():
            async with Write(self.engine, expire_on_commit=False) as session:
                yield session
                await commits.commit_session(session, self.waits_for if lasting or self.waits_for == "disk" else "local", replays=replays)

    async def close(self) -> None:
        """Close every pooled connection."""
        await slow.all_told()
        await self.engine.dispose()


def open_engine(
    url: str,
    pooling: Pooling = "none",
    pool: int = POOL_MOST,
    *,
    wait_s: int = POOL_WAIT_S,
    connect_s: float = CONNECT_TIMEOUT_S,
    pre_ping: bool = True,
) -> AsyncEngine:
    """A pool of connections to one server, or to its pooler; nothing is connected yet."""
    engine = create_async_engine(
        DRIVER,
        pool_size=min(POOL_KEPT, pool),
        max_overflow=max(0, pool - POOL_KEPT),
        pool_timeout=wait_s,
        pool_pre_ping=pre_ping,
        hide_parameters=True,  # an error that is logged says which statement, not whose address
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        connect_args={"dsn": url, "timeout": connect_s, **(UNPREPARED_SESSIONS if pooling == "transaction" else {})},
    )
    slow.listen(engine)
    return engine


@contextmanager
def said_plainly() -> Iterator[None]:
    """A lost or absent database becomes `DatabaseUnavailable`, whichever library notices."""
    try:
        yield
    except (sqlalchemy_errors.TimeoutError, *CONNECTION_LOST) as cause:
        raise errors.DatabaseUnavailable from cause
    except sqlalchemy_errors.DBAPIError as cause:
        # a database that takes no writes (it moves, or is no primary any more) is as good as away to who writes
        away = (*CONNECTION_LOST, asyncpg.ReadOnlySQLTransactionError)
        if cause.connection_invalidated or isinstance(getattr(cause.orig, "__cause__", None), away):
            raise errors.DatabaseUnavailable from cause
        if isinstance(getattr(cause.orig, "__cause__", None), asyncpg.DiskFullError):
            raise errors.StorageFull from cause
        raise
