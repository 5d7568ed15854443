"""20 million rows: history pages, posting for minutes with checkpoints inside, memory. The rows are made in the database, as if posted."""

import asyncio
import http.client
import statistics
import time
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from piggybank import ids
from piggybank.bench import database, run
from piggybank.bench.database import FIRST_BALANCE, Filled
from piggybank.bench.load import Result
from piggybank.bench.serving import Server, serving
from piggybank.settings import Settings
from piggybank.wallet import pages
from piggybank.wallet.history import NO_FILTER
from tests.bench import place
from tests.bench.experiments import CONNECTIONS, Options, load, resident_mb
from tests.bench.results import Row

ROWS_EACH = 10_000  # of an account
MANY, FEW = 2_000, 2  # accounts: 20 million rows and 20 thousand
SLICE = 250  # rows of each account that one statement makes
PAGE_SIZE = 10  # not the default, so that the page cache has no part in it
DEEP_PAGE = 1_000
ASKED = 600  # pages of each kind
TURNS = 8  # that the small and the large table take, after one that is not counted
MEMORY_EVERY_S = 10
MEMORY_AFTER = 1_000_000  # transactions
MEMORY_MB, FLAT_MB = 200, 20  # the most then, and the most that it may grow from there on
POSTING_S, CHECKPOINTS = 600, 2  # the least that says something about posting
CPU_WAIT_S = 5

# Times go on by a millisecond a row; the last byte of an id is the account's bucket, as `ids.new_id` makes it.
_FILL = """
INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)
SELECT (lpad(to_hex($1::bigint + number), 12, '0') || '7' || lpad(to_hex(position % 4096), 3, '0') || '8'
        || lpad(to_hex(position / 4096), 3, '0') || lpad(to_hex(number), 10, '0') || lpad(to_hex(bucket::int), 2, '0'))::uuid,
       id, 100, $2::bigint + number * 100, number + 1, bucket, 'deposit', 'clearing'
FROM generate_series($3::bigint, $4::bigint) AS number
CROSS JOIN unnest($5::uuid[], $6::smallint[]) WITH ORDINALITY AS a (id, bucket, position)
"""
_SET = """
UPDATE accounts
SET balance = balance + $2::bigint * 100, clearing = clearing - $2::bigint * 100, sequence = sequence + $2::bigint,
    version = version + $2::bigint, transactions_count = transactions_count + $2::bigint,
    last_transaction_id = (SELECT id FROM transactions t WHERE t.account_id = accounts.id ORDER BY id DESC LIMIT 1)
WHERE id = ANY($1::uuid[])
"""
_DEEP = "SELECT id FROM transactions WHERE account_id = $1 ORDER BY id DESC OFFSET $2 LIMIT 1"
_CHECKPOINTS = "SELECT num_done FROM pg_stat_checkpointer"  # those that were skipped, since nothing was written, not counted


async def large(settings: Settings, options: Options) -> list[Row]:
    """Posting into an empty table, then into a large one, `options.seconds` each; pages of that and of a small one beside it."""
    empty = await database.fill(settings, MANY)
    before, memory, first = await _posting(empty, options)
    started = time.monotonic()
    many = await _with_rows(await database.fill(settings, MANY))
    filled_s = time.monotonic() - started
    async with database.throw_away(settings, FEW) as few:
        small, big = await _pages(await _with_rows(few), many)
    after, more, then = await _posting(many, options)
    await run.verified(many)
    rows = [
        Row(
            what=f"history, {name}, p50 at 20 M rows to 20 K rows",
            figure=f"{big[name] / small[name]:.2f} ({big[name]:.2f} ms, {small[name]:.2f} ms)",
            target="<= 1.2",
            met=big[name] <= 1.2 * small[name],
        )
        for name in small
    ]
    ratio = after.per_second / before.per_second
    rows.append(
        Row(
            what=f"posting for {options.seconds} s into 20 M rows, to the same into an empty table",
            figure=f"{ratio:.2f} ({after.per_second:,.0f}/s, p99 {after.p99_ms:.0f} ms; {before.per_second:,.0f}/s, "
            f"p99 {before.p99_ms:.0f} ms; {then} and {first} checkpoints inside)",
            target=f">= 0.85, {POSTING_S} s and {CHECKPOINTS} checkpoints at least",
            met=ratio >= 0.85 if options.seconds >= POSTING_S and min(first, then) >= CHECKPOINTS else None,
        )
    )
    for said, samples in (("into an empty table", memory), ("into 20 M rows", more)):
        late = [mb for sent, mb in samples if sent >= MEMORY_AFTER]
        figure = ", ".join(f"{sent / 1e6:.1f} M {mb:.0f} MB" for sent, mb in samples[:: max(1, len(samples) // 6)])
        target = f"<= {MEMORY_MB} MB after 1 M, and no more than {FLAT_MB} MB above that later"
        met = max(late) <= MEMORY_MB and max(late) - late[0] <= FLAT_MB if late else None
        rows.append(Row(what=f"memory of the server, posting {said}", figure=figure, target=target, met=met))
    rows.append(Row(what="making the 20 M rows", figure=f"{filled_s:.0f} s"))
    return rows


async def _with_rows(filled: Filled) -> Filled:
    """ROWS_EACH more rows for each account."""
    chosen = [UUID(account) for account in filled.accounts]
    buckets = [ids.bucket_of(account) for account in chosen]
    owner = await asyncpg.connect(filled.settings.owner_database_url)
    try:
        await owner.execute("DROP INDEX transactions_history")
        base_ms = time.time_ns() // 1_000_000
        for first in range(1, ROWS_EACH + 1, SLICE):
            await owner.execute(_FILL, base_ms, FIRST_BALANCE, first, min(first + SLICE - 1, ROWS_EACH), chosen, buckets)
        await owner.execute("SET maintenance_work_mem = '512MB'")
        await owner.execute("CREATE INDEX transactions_history ON transactions (account_id, id DESC)")
        await owner.execute(_SET, chosen, ROWS_EACH)
        await owner.execute("VACUUM ANALYZE")
    finally:
        await owner.close()
    return filled


async def _posting(filled: Filled, options: Options) -> tuple[Result, list[tuple[int, float]], int]:
    """Deposits, the server's memory over time, and the checkpoints that came."""
    checkpoints = (await place.sql(filled, _CHECKPOINTS))[0][0]
    with serving(filled.settings, jobs=True) as server:
        before = await database.rows(filled.settings)
        samples: list[tuple[int, float]] = []

        async def sample() -> None:
            while True:
                await asyncio.sleep(MEMORY_EVERY_S)
                posted = (await place.sql(filled, "SELECT sum(transactions_count) FROM accounts"))[0][0]
                samples.append((int(posted) - before, resident_mb(server)))

        sampling = asyncio.create_task(sample())
        result = await load(filled, server, "deposits", seconds=options.seconds, connections=CONNECTIONS)
        sampling.cancel()
    return result, samples, (await place.sql(filled, _CHECKPOINTS))[0][0] - checkpoints


async def _pages(few: Filled, many: Filled) -> tuple[dict[str, float], dict[str, float]]:
    """p50 in ms of page 1 and page 1,000 of each. They take turns: a machine is not the same from one minute to the next."""
    took_ms: dict[tuple[int, str], list[float]] = {}
    asked = [await _paths(few), await _paths(many)]
    with serving(few.settings) as small, serving(many.settings) as big:
        await asyncio.sleep(CPU_WAIT_S)  # what the filling left behind
        for turn in range(TURNS + 1):
            for number, filled, server in ((0, few, small), (1, many, big))[:: 1 if turn % 2 else -1]:
                for name, paths in asked[number].items():
                    took = await asyncio.to_thread(_took_ms, filled, server, paths[turn :: TURNS + 1])
                    if turn:  # the first warms
                        took_ms.setdefault((number, name), []).extend(took)
    p50s = [{name: statistics.median(took_ms[number, name]) for name in asked[number]} for number in range(2)]
    return p50s[0], p50s[1]


async def _paths(filled: Filled) -> dict[str, list[str]]:
    """ASKED pages of each kind, of accounts all over the table."""
    chosen = filled.accounts[:: max(1, len(filled.accounts) // ASKED)]
    owner = await asyncpg.connect(filled.settings.owner_database_url)
    try:
        last = [await owner.fetchval(_DEEP, UUID(account), (DEEP_PAGE - 1) * PAGE_SIZE - 1) for account in chosen]
    finally:
        await owner.close()
    first = [f"/v1/accounts/{account}/transactions?limit={PAGE_SIZE}" for account in chosen]
    cursors = [pages.cursor_after(row, "transactions", UUID(account), NO_FILTER) for row, account in zip(last, chosen, strict=True)]
    deep = [f"{path}&cursor={cursor}" for path, cursor in zip(first, cursors, strict=True)]
    times = -(-ASKED // len(chosen))
    return {"page 1": first * times, f"page {DEEP_PAGE:,}": deep * times}


def _took_ms(filled: Filled, server: Server, paths: Sequence[str]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.settings.port)
    took = []
    for path in paths:
        started = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {filled.token}"})
        answer = connection.getresponse()
        body = answer.read()
        took.append((time.perf_counter() - started) * 1_000)
        assert answer.status == 200, body
    connection.close()
    return took
