"""Statements that took longer than SLOW_S: all are counted, some are told with the plan that PostgreSQL makes for them.

The plan is a plain EXPLAIN of the statement as it was prepared (GENERIC_PLAN): it runs nothing and knows no value, so none can be in the
log. One is asked for each EXPLAIN_EVERY_S, and for the same statement not again for a while: a slow database is not to be asked more.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from piggybank import metrics, telemetry

SLOW_S = 0.1
EXPLAIN_EVERY_S = 10.0
EXPLAIN_TIMEOUT_S = 2.0
SAME_AGAIN_S = 600.0
REMEMBERED = 256  # statements that were explained
SHOWN_CHARACTERS = 2_000
PLAN_LINES = 40
_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")  # EXPLAIN takes no other
_NOT_STATEMENTS = ("COMMIT", "BEGIN", "ROLLBACK", "EXPLAIN")  # a commit has figures of its own

_PARAMETER = re.compile(r"\$(\d+)")

Explain = Callable[[str], Awaitable[list[str]]]

_log = telemetry.logger("slow queries")
_explained: OrderedDict[str, float] = OrderedDict()
_telling: set[asyncio.Task[None]] = set()


def listen(engine: AsyncEngine) -> None:
    """Time every statement of this pool."""

    async def explain(statement: str) -> list[str]:
        async with engine.connect() as connection:
            return [row[0] for row in await connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN) {statement}", _nothing_for(statement))]

    # who asked waits inside the handler, so what follows the statement is another event
    def begins(_: Any, __: Any, ___: str, ____: Any, context: Any, _____: bool) -> None:
        context.began_at = time.perf_counter()

    def ended(_: Any, __: Any, statement: str, ___: Any, context: Any, ____: bool) -> None:
        took(statement, time.perf_counter() - context.began_at, explain)

    def failed(context: ExceptionContext) -> None:
        began_at = getattr(context.execution_context, "began_at", None)
        if began_at is not None and context.statement:
            took(context.statement, time.perf_counter() - began_at, explain)

    event.listen(engine.sync_engine, "before_cursor_execute", begins)
    event.listen(engine.sync_engine, "after_cursor_execute", ended)
    event.listen(engine.sync_engine, "handle_error", failed)


def listen_to(connection: asyncpg.Connection, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
    """The same for a connection of one's own; plans are asked for on another one."""

    async def explain(statement: str) -> list[str]:
        asking = await connect()
        try:
            return [row[0] for row in await asking.fetch(f"EXPLAIN (GENERIC_PLAN) {statement}", *_nothing_for(statement))]
        finally:
            asking.terminate()

    def seen(record: Any) -> None:
        if record.elapsed > SLOW_S:  # most are not
            took(record.query, record.elapsed, explain)

    connection.add_query_logger(seen)


def took(statement: str, seconds: float, explain: Explain) -> None:
    """Count it if it was slow, and see that it is told."""
    if seconds <= SLOW_S:
        return
    shown = " ".join(statement.split())
    if shown.upper().startswith(_NOT_STATEMENTS):
        return
    metrics.SLOW_QUERIES.inc()
    if _may_tell(shown):
        _in_background(_tell(shown, seconds, explain if shown.upper().startswith(_EXPLAINED) else None, statement))


def _may_tell(shown: str) -> bool:
    now = time.monotonic()
    newest = next(reversed(_explained.values()), float("-inf"))
    if now - newest < EXPLAIN_EVERY_S or now - _explained.get(shown, float("-inf")) < SAME_AGAIN_S:
        return False
    _explained.pop(shown, None)
    _explained[shown] = now
    if len(_explained) > REMEMBERED:
        _explained.popitem(last=False)
    return True


async def _tell(shown: str, seconds: float, explain: Explain | None, statement: str) -> None:
    plan: list[str] = []
    if explain is not None:
        try:
            async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                plan = (await explain(statement))[:PLAN_LINES]
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as cause:
            plan = [f"not known: {type(cause).__name__}"]
    _log.warning("slow_query", ms=round(seconds * 1_000), statement=shown[:SHOWN_CHARACTERS], plan=plan)


def _nothing_for(statement: str) -> tuple[None, ...]:
    """NULL for each parameter: the driver wants one, and the plan does not look at it."""
    return (None,) * max((int(number) for number in _PARAMETER.findall(statement)), default=0)


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    try:
        task = asyncio.get_running_loop().create_task(work, name="slow query")
    except RuntimeError:  # nobody runs here: a command line that has ended
        work.close()
        return
    _telling.add(task)
    task.add_done_callback(_telling.discard)


async def all_told() -> None:
    """Wait until what is being told has been: it asks for plans, and a pool that is closed meanwhile would leave that connection open."""
    here = asyncio.get_running_loop()
    await asyncio.gather(*(task for task in _telling if task.get_loop() is here), return_exceptions=True)
