"""One load by wrk, and what it cost: the requests are those of `piggybank.bench.scenarios`, written to a file first."""

import asyncio
import secrets
import shutil
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import asyncpg
import msgspec
from msgspec import Struct

from piggybank.bench import run
from piggybank.bench.database import Filled
from piggybank.bench.scenarios import BATCH_COMMANDS, SCENARIOS, requests
from piggybank.bench.serving import Server

THREADS = 2
SCRIPT = Path(__file__).with_name("requests.lua")
MAX_PER_SECOND = 12_000  # requests are made for no more than that
READS = 20_000  # requests that may be sent again and again
BATCHES_PER_SECOND = 60
SETTLE_S = 0.5  # what was under way when wrk hung up is finished and logged
_ROWS = {"deposits": 1, "row-locking": 1, "withdrawals": 1, "transfers": 2, "transactions:batch": BATCH_COMMANDS}  # by the route's end


class Load(Struct, frozen=True, kw_only=True):
    """`per_second` counts successes; `cpu_ms`, `wal_bytes` and `commits` are of one transaction (or read)."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_ms: dict[str, float]
    wal_bytes: float
    commits: float


async def send(filled: Filled, server: Server, name: str, *, seconds: int, connections: int = 64) -> Load:
    """Raises AssertionError where the answers with 2xx and the new rows do not agree."""
    scenario = SCENARIOS[name]
    connections = min(connections, scenario.max_connections or connections)
    log = server.settings.data_dir / "server.log"
    with tempfile.TemporaryDirectory(prefix="piggybank-bench-") as folder:
        file = Path(folder) / "requests"
        await asyncio.to_thread(_write, file, filled, name, seconds)
        owner = await asyncpg.connect(filled.settings.owner_database_url)
        try:
            before, logged, cpu = await _counters(owner), log.stat().st_size, run.cpu_s(server)
            said = await _wrk(f"http://127.0.0.1:{server.settings.port}", file, seconds, connections)
            await asyncio.sleep(SETTLE_S)
            spent = {who: value - cpu.get(who, 0) for who, value in run.cpu_s(server).items()}
            after = await _counters(owner)
        finally:
            await owner.close()
    count, failed, took_us = (int(part) for part in said[:3])
    assert said[5] == "0", f"{name}: {said[5]} connections or answers were lost"
    answered = _answered(log, logged)
    rows = sum(_ROWS.get(route.rpartition("/")[2], 0) * number for route, number in answered.items())
    assert after["rows"] - before["rows"] == rows, f"{name}: {rows} rows were answered, {after['rows'] - before['rows']} are there"
    succeeded = count - failed
    assert succeeded <= sum(answered.values()) <= succeeded + connections, (
        f"{name}: wrk saw {succeeded}, we answered {sum(answered.values())}"
    )
    transactions = max(1, sum(answered.values()) * scenario.commands)
    return Load(
        per_second=round(succeeded * scenario.commands / took_us * 1_000_000),
        p50_ms=float(said[3]),
        p99_ms=float(said[4]),
        failed=failed,
        cpu_ms={who: round(value * 1_000 / transactions, 3) for who, value in sorted(spent.items())},
        wal_bytes=round((after["wal"] - before["wal"]) / transactions),
        commits=round((after["commits"] - before["commits"]) / transactions, 3),
    )


def _write(file: Path, filled: Filled, name: str, seconds: int) -> None:
    mix = SCENARIOS[name].mix
    count = (
        READS
        if {"read", "constant", "constant_read"} >= mix.keys()
        else seconds * (BATCHES_PER_SECOND if "batch" in mix else MAX_PER_SECOND)
    )
    made = requests(SCENARIOS[name], filled.accounts, filled.token, secrets.token_hex(4) + "-", seed=1)
    with file.open("wb") as out:
        for request in islice(made, count):
            out.write(b"%08d%b" % (len(request.data), request.data))


async def _wrk(url: str, file: Path, seconds: int, connections: int) -> list[str]:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("NOT RUN: wrk is missing on this machine (apt-get install wrk)")
    threads = min(THREADS, connections)
    arguments = (
        f"-t{threads}",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-s",
        str(SCRIPT),
        url,
        "--",
        str(file),
        str(threads),
    )
    process = await asyncio.create_subprocess_exec(wrk, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return next(line for line in output.decode().splitlines() if line.startswith("RESULT")).split()[1:]


async def _counters(owner: asyncpg.Connection) -> dict[str, int]:
    wal, commits = await owner.fetchrow(
        "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, xact_commit FROM pg_stat_database WHERE datname = current_database()"
    )
    return {"wal": int(wal), "commits": int(commits), "rows": await owner.fetchval("SELECT count(*) FROM transactions")}


def _answered(log: Path, offset: int) -> Counter[str]:
    """2xx by route, as the server's own log has them since `offset`."""
    answered: Counter[str] = Counter()
    with log.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if b'"room":"access"' in line and b'"status":2' in line:
                answered[msgspec.json.decode(line)["route"]] += 1
    return answered
