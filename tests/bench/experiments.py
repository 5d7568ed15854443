"""The experiments on 100,000 accounts; each answers rows for the table. Targets are shown, never asserted."""

import asyncio
import secrets
import statistics
from collections.abc import Sequence

import psutil
from msgspec import Struct
from redis import Redis

from piggybank.bench import database, run
from piggybank.bench.database import Filled
from piggybank.bench.load import Job, Result
from piggybank.bench.scenarios import SCENARIOS
from piggybank.bench.serving import Server, serving
from piggybank.settings import Settings
from tests.bench import place, wrk
from tests.bench.results import Row
from tests.bench.wrk import Load

ACCOUNTS = 100_000
CONNECTIONS = 64
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROCESSES = (1, 2, 4, 6)
OVERLOADED = 2_048  # connections that send four times the peak
OVERLOAD = 4
WATCHED_LEAST = 100  # answers of an account, or its p99 is that of too few
STORED = 20_000  # deposits whose bytes are weighed

STANDARD = ("constant", "deposits", "hot", "mixed", "transfers", "row_locking", "row_locking_hot", "constant_reads", "reads", "batch")


class Options(Struct, frozen=True, kw_only=True):
    """How long; and on how many web processes, where the experiment does not say."""

    seconds: int
    rounds: int
    processes: int = 1


async def standard(settings: Settings, options: Options) -> list[Row]:
    """The routes, round by round, by wrk."""
    filled = await database.fill(settings, ACCOUNTS)
    taken: dict[str, list[Load]] = {name: [] for name in STANDARD}
    with serving(settings, jobs=True, processes=options.processes) as server:
        for name in ("deposits", "reads"):  # warm
            await wrk.send(filled, server, name, seconds=options.seconds)
        for _ in range(options.rounds):
            for name in STANDARD:
                taken[name].append(await wrk.send(filled, server, name, seconds=options.seconds))
    await run.verified(filled)
    rate = {name: statistics.median(load.per_second for load in loads) for name, loads in taken.items()}
    late = {name: statistics.median(load.p99_ms for load in loads) for name, loads in taken.items()}
    refused = sum(load.failed for load in taken["hot"])
    failed = {name: sum(load.failed for load in loads) for name, loads in taken.items()}

    def row(name: str, what: str, target: str, *, met: bool | None) -> Row:
        loads = taken[name]
        cpu = {who: statistics.median(load.cpu_ms.get(who, 0) for load in loads) for who in ("server", "postgres", "valkey")}
        spent = ", ".join(f"{who} {value:.3f}" for who, value in cpu.items())
        wal, commits = statistics.median(load.wal_bytes for load in loads), statistics.median(load.commits for load in loads)
        middle = statistics.median(load.p50_ms for load in loads)
        figure = f"{rate[name]:,.0f}/s, p50 {middle:.1f} ms, p99 {late[name]:.1f} ms; CPU ms each: {spent}"
        figure += f"; {failed[name]:,} failed, their times counted" if failed[name] else ""
        return Row(what=what, figure=figure + (f"; WAL {wal:,.0f} B, {commits:.3f} commits each" if wal else ""), target=target, met=met)

    def ratio(name: str, to: str, what: str, least: float) -> Row:
        value = rate[name] / rate[to]
        return Row(what=what, figure=f"{value:.2f}", target=f">= {least}", met=value >= least)

    return [
        row("deposits", "direct deposits", ">= 3,500/s, p99 < 100 ms", met=rate["deposits"] >= 3_500 and late["deposits"] < 100),
        row("constant", "the same route with a constant result", "", met=None),
        ratio("deposits", "constant", "deposits to the constant result (the moonshot)", 0.7),
        row("mixed", "40 % deposits, 20 % withdrawals, 20 % transfers, 20 % reads", ">= 3,500/s", met=rate["mixed"] >= 3_500),
        row("hot", "one hot account", "", met=None),
        ratio("hot", "deposits", f"hot to spread ({refused} failed)", 0.9),
        row("transfers", "transfers from one hot account to 10,000", "", met=None),
        ratio("transfers", "deposits", "transfers from one account to spread deposits", 0.8),
        row("batch", "batch endpoint, 500 commands a request, commands", ">= 10,000/s", met=rate["batch"] >= 10_000),
        row("reads", "balance reads, cached", "", met=None),
        row("constant_reads", "the same route with a constant result", "", met=None),
        ratio("reads", "constant_reads", "balance reads to the constant result", 0.8),
        row("row_locking", "one SERIALIZABLE transaction a request, spread", "not below 880/s", met=rate["row_locking"] >= 880),
        row("row_locking_hot", "the same on one account, successes", "", met=None),
        ratio("deposits", "row_locking", "group commit to SERIALIZABLE, spread", 3),
        ratio("hot", "row_locking_hot", "group commit to SERIALIZABLE, hot", 10),
    ]


async def processes(settings: Settings, options: Options) -> list[Row]:
    """1, 2, 4 and 6 web processes on one PostgreSQL; of the accounts outside the hottest ten the worst counts."""
    filled = await database.fill(settings, ACCOUNTS)
    rows: list[Row] = []
    for count in PROCESSES:
        with serving(settings, processes=count) as server:
            taken = await _rounds(filled, server, ("deposits", "zipf", "hot", "transfers"), options)
        rate = {name: statistics.median(one.per_second for one in results) for name, results in taken.items()}
        cool = statistics.median(one.cool_p99_ms for one in taken["zipf"])
        spread = statistics.median(one.p99_ms for one in taken["deposits"])
        worst, watched = _worst_p99_ms(taken["zipf"])
        figures = ", ".join(f"{name} {value:,.0f}/s" for name, value in rate.items())
        shares = [rate[name] / rate["deposits"] for name in ("zipf", "hot", "transfers")]
        last = count == PROCESSES[-1]
        rows.append(
            Row(
                what=f"{count} web processes",
                figure=f"{figures}; to spread: zipf {shares[0]:.2f}, hot {shares[1]:.2f}, transfers {shares[2]:.2f}; "
                f"p99 outside the hottest ten {cool:.1f} ms, of the worst of {watched} there {worst:.1f} ms, spread {spread:.1f} ms",
                target="worst p99 <= 2x spread" + ("; zipf and hot >= 0.8 of spread" if last else ""),
                met=(worst <= 2 * spread and (not last or min(shares[:2]) >= 0.8)) if watched else None,
            )
        )
    deadlocks = (await place.sql(filled, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))[0][0]
    rows.append(Row(what="deadlocks", figure=str(deadlocks), target="0", met=deadlocks == 0))
    await run.verified(filled)
    return rows


async def hit_rate(settings: Settings, options: Options) -> list[Row]:
    """Zipf 1.0, 20 % writes, memory for half of the accounts."""
    filled = await database.fill(settings, ACCOUNTS)
    cache = Redis.from_url(settings.cache_url)
    with serving(settings, jobs=True) as server, place.client(filled, server) as client:
        half = Filled(settings=settings, token=filled.token, accounts=filled.accounts[: ACCOUNTS // 2])
        cache.flushall()
        while int(cache.info("keyspace").get("db0", {"keys": 0})["keys"]) < ACCOUNTS // 2:
            await load(half, server, "reads", seconds=options.seconds, connections=CONNECTIONS)
        memory = int(cache.info("memory")["used_memory_dataset"])
        full = int(cache.info("memory")["used_memory"])
        cache.config_set("maxmemory", full)
        await load(filled, server, "reads_while_writing", seconds=options.seconds * 2, connections=CONNECTIONS)
        before = client.get("/v1/ops/status").raise_for_status().json()["cache"]["balance"]
        result = await load(filled, server, "reads_while_writing", seconds=options.seconds * 3, connections=CONNECTIONS)
        after = client.get("/v1/ops/status").raise_for_status().json()["cache"]["balance"]
    await run.verified(filled)
    hits, misses = (after[what] - before[what] for what in ("hits", "misses"))
    share = hits / (hits + misses)
    said = f"{share:.3f} of {hits + misses:,} reads at {result.per_second:,.0f} requests/s; {memory / 2**20:.0f} MiB for 50,000 accounts"
    return [Row(what="hit rate, Zipf 1.0, 20 % writes, memory for half of the accounts", figure=said, target=">= 0.95", met=share >= 0.95)]


async def overload(settings: Settings, options: Options) -> list[Row]:
    """Four times the peak; and interactive deposits beside batches."""
    filled = await database.fill(settings, ACCOUNTS)
    peaks, kept, bulk, beside = [], [], [], []
    with serving(settings, jobs=True, processes=options.processes) as server:
        for _ in range(options.rounds):
            peaks.append(await load(filled, server, "deposits", seconds=options.seconds, connections=CONNECTIONS))
            rate = OVERLOAD * peaks[-1].per_second
            kept.append(await load(filled, server, "deposits", seconds=options.seconds, connections=OVERLOADED, per_second=rate))
            pair = await _together(filled, server, ("batch", "deposits"), seconds=options.seconds, connections=8)
            bulk.append(pair[0])
            beside.append(pair[1])
    await run.verified(filled)
    peak, good = (statistics.median(one.per_second for one in results) for results in (peaks, kept))
    late = statistics.median(one.p99_ms for one in kept)
    refused = statistics.median(one.refused / one.seconds for one in kept)
    commands = statistics.median(one.per_second for one in bulk)
    alone = statistics.median(one.p99_ms for one in beside)
    single = statistics.median(one.per_second for one in beside)
    return [
        Row(what=f"peak, {CONNECTIONS} connections", figure=f"{peak:,.0f}/s"),
        Row(
            what=f"goodput at {OVERLOAD}x the peak, {OVERLOADED:,} connections that rest for Retry-After",
            figure=f"{good:,.0f}/s ({good / peak:.2f} of the peak), {refused:,.0f} refused a second",
            target=">= 0.9 of the peak",
            met=good >= 0.9 * peak,
        ),
        Row(what="p99 of accepted requests then", figure=f"{late:.0f} ms", target="< 500 ms", met=late < 500),
        Row(
            what="8 clients deposit while 8 send batches of 500",
            figure=f"deposits p99 {alone:.0f} ms, {single:,.0f}/s; batches {commands:,.0f} commands/s",
            target="not starved",
            met=alone < 500,
        ),
    ]


async def at_rest(settings: Settings, _: Options) -> list[Row]:
    """Bytes of one direct deposit."""
    filled = await database.fill(settings, ACCOUNTS)
    before = await _sizes(filled)
    with serving(settings, jobs=True) as server:
        sent, wal, rounds = 0, 0, 0
        while sent < STORED:
            started = (await place.sql(filled, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))[0][0]
            result = await load(filled, server, "deposits", seconds=2, connections=CONNECTIONS)
            wal += int((await place.sql(filled, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))[0][0] - started)
            sent += sum(result.answers.values())
            rounds += 1
    await run.verified(filled)
    after = await _sizes(filled)
    parts = {name: (after[name] - before[name]) / sent for name in after}
    total = sum(parts.values())
    said = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
    return [
        Row(what="bytes of one direct deposit at rest", figure=f"{total:.0f} B ({said})", target="<= 700 B", met=total <= 700),
        Row(what="WAL of one direct deposit", figure=f"{wal / sent:.0f} B, full pages after a checkpoint included"),
    ]


async def sweep(settings: Settings, options: Options) -> tuple[list[Row], list[tuple[int, float, float]]]:
    """Deposits at 1 to 512 connections."""
    filled = await database.fill(settings, ACCOUNTS)
    taken: dict[int, list[Load]] = {count: [] for count in SWEEP}
    with serving(settings, jobs=True, processes=options.processes) as server:
        await wrk.send(filled, server, "deposits", seconds=options.seconds)
        for _ in range(options.rounds):
            for count in SWEEP:
                taken[count].append(await wrk.send(filled, server, "deposits", seconds=options.seconds, connections=count))
    await run.verified(filled)
    points = [
        (count, statistics.median(load.per_second for load in loads), statistics.median(load.p99_ms for load in loads))
        for count, loads in taken.items()
    ]
    rows = [Row(what=f"{count} connections", figure=f"{rate:,.0f}/s, p99 {late:.1f} ms") for count, rate, late in points]
    return rows, points


async def _rounds(filled: Filled, server: Server, names: Sequence[str], options: Options) -> dict[str, list[Result]]:
    taken: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            taken[name].append(await load(filled, server, name, seconds=options.seconds, connections=CONNECTIONS))
    return taken


async def load(filled: Filled, server: Server, name: str, *, seconds: float, connections: int, per_second: float = 0) -> Result:
    """One load by our own generator, its answers against the rows."""
    job = _job(filled, server, name, seconds=seconds, connections=connections, per_second=per_second)
    return (await run.checked(filled, server, job))[0]


async def _together(filled: Filled, server: Server, names: Sequence[str], *, seconds: float, connections: int) -> list[Result]:
    """Loads at the same time; their answers against the rows that they made between them."""
    before = await database.rows(filled.settings)
    jobs = [_job(filled, server, name, seconds=seconds, connections=connections) for name in names]
    results = await asyncio.gather(*(run.send(job) for job in jobs))
    told, made = sum(result.rows for result in results), await database.rows(filled.settings) - before
    assert made == told, f"{' and '.join(names)}: {told} rows were answered, {made} are there"
    return results


def _job(filled: Filled, server: Server, name: str, *, seconds: float, connections: int, per_second: float = 0) -> Job:
    most = SCENARIOS[name].max_connections or connections
    return Job(
        scenario=name,
        port=server.settings.port,
        token=filled.token,
        accounts=filled.accounts,
        connections=min(connections, most),
        warm_up_s=1,
        seconds=seconds,
        mark=secrets.token_hex(4) + "-",
        per_second=per_second,
    )


def _worst_p99_ms(results: Sequence[Result]) -> tuple[float, int]:
    """The greatest p99 of the accounts after the hottest that were answered often enough, all rounds together, and how many those are."""
    times: dict[int, list[float]] = {}
    for result in results:
        for rank, took_ms in result.watched_ms.items():
            times.setdefault(rank, []).extend(took_ms)
    p99s = [statistics.quantiles(took_ms, n=100)[98] for took_ms in times.values() if len(took_ms) >= WATCHED_LEAST]
    return max(p99s, default=0.0), len(p99s)


async def _sizes(filled: Filled) -> dict[str, int]:
    tables = {"transactions": "transactions_all", "idempotency_keys": "idempotency_keys", "effects": "effects"}
    await place.sql(filled, *(f"VACUUM {table}" for table in tables))
    sizes = {name: await place.sql(filled, f"SELECT pg_total_relation_size('{table}')") for name, table in tables.items()}
    return {name: int(rows[0][0]) for name, rows in sizes.items()}


def resident_mb(server: Server) -> float:
    """Memory of the server's processes, of the greatest."""
    return max(psutil.Process(pid).memory_info().rss for pid in server.pids) / 1e6
