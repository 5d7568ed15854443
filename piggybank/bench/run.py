"""A run: a server on a filled database, scenarios round by round, figures, and the books checked after each.

Rounds interleave (A B C A B C), since a machine is not the same from one minute to the next; a figure is the median of its rounds.
"""

import asyncio
import os
import secrets
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from piggybank import checks, errors
from piggybank.appliance import web
from piggybank.bench import database
from piggybank.bench.database import Filled
from piggybank.bench.load import Job, Result
from piggybank.bench.scenarios import SCENARIOS, Scenario
from piggybank.bench.serving import Server


class Figure(Struct, frozen=True, kw_only=True):
    """A scenario, measured. `per_second` counts successes (commands, in a batch); `cpu_ms` is of one request, by who spent it."""

    name: str
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cool_p99_ms: float
    refused: int
    cpu_ms: dict[str, float]


async def measure(
    filled: Filled,
    server: Server,
    scenarios: Sequence[Scenario],
    *,
    rounds: int,
    seconds: float,
    warm_up_s: float,
    connections: int,
    begins: Callable[[Scenario], None] = lambda _: None,
    ends: Callable[[Scenario], None] = lambda _: None,
) -> list[Figure]:
    """Every scenario in each round. Raises `errors.CannotProceed` where answers and rows do not agree, or the books do not."""
    taken: dict[str, list[tuple[Result, dict[str, float]]]] = {one.name: [] for one in scenarios}
    for _ in range(rounds):
        for scenario in scenarios:
            begins(scenario)
            accounts = filled.accounts[: scenario.max_accounts]
            job = Job(
                scenario=scenario.name,
                port=server.settings.port,
                token=filled.token,
                accounts=accounts,
                connections=min(connections, scenario.max_connections or connections),
                warm_up_s=warm_up_s,
                warm_up_requests=len(accounts) if scenario.each_first else 0,
                seconds=seconds,
                mark=secrets.token_hex(4) + "-",
            )
            taken[scenario.name].append(await checked(filled, server, job))
            ends(scenario)
    await verified(filled)
    return [_figure(SCENARIOS[name], results) for name, results in taken.items()]


async def checked(filled: Filled, server: Server, job: Job) -> tuple[Result, dict[str, float]]:
    """Send one load; the result and the CPU seconds, by who spent them. Its answers must be the rows that it made."""
    before, cpu_before = await database.rows(filled.settings), cpu_s(server)
    result = await send(job)
    server.forget_log()
    cpu = {who: spent - cpu_before.get(who, 0) for who, spent in cpu_s(server).items()}
    made = await database.rows(filled.settings) - before
    if made != result.rows:
        what = f"{job.scenario}: {result.rows} rows were answered with 2xx and {made} are there"
        raise errors.CannotProceed(what=what, do="this is a fault of piggybank: tell us")
    return result, cpu


async def send(job: Job) -> Result:
    """The load in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "piggybank.bench.load",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | web.environment(Path.home()),
        start_new_session=True,  # Ctrl-C is for us, and we end it
    )
    try:
        output, said = await process.communicate(msgspec.json.encode(job))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise errors.CannotProceed(what=f"the load of {job.scenario} ended: {said.decode().strip()[-500:]}", do="look at the server's log")
    return msgspec.json.decode(output, type=Result)


async def verified(filled: Filled) -> None:
    """Raises `errors.CannotProceed` where a balance is not what its rows say."""
    async for progress in checks.verify(filled.settings.owner_database_url):
        for finding in progress.findings:
            what = f"account {finding.account_id}: {finding.what}: stored {finding.stored}, derived {finding.derived}"
            raise errors.CannotProceed(what=f"the books do not fit after the load: {what}", do="this is a fault of piggybank: tell us")


def cpu_s(server: Server) -> dict[str, float]:
    """CPU seconds so far of our server, and of its PostgreSQL and Valkey where they run on this machine, with what they started."""
    spent = {"server": sum(_cpu_of(psutil.Process(pid)) for pid in server.pids)}
    for name, pid in server.stores.items():
        main = psutil.Process(pid)
        spent[name] = sum(_cpu_of(process) for process in (main, *main.children(recursive=True)))
    return spent


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # it has ended since, and is counted as a child of who started it
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def _figure(scenario: Scenario, results: list[tuple[Result, dict[str, float]]]) -> Figure:
    def median(value: Callable[[Result], float]) -> float:
        return round(statistics.median(value(result) for result, _ in results), 2)

    requests = sum(sum(result.answers.values()) for result, _ in results) or 1
    spent = {who for _, cpu in results for who in cpu}
    return Figure(
        name=scenario.name,
        per_second=median(lambda result: result.per_second),
        p50_ms=median(lambda result: result.p50_ms),
        p99_ms=median(lambda result: result.p99_ms),
        max_ms=median(lambda result: result.max_ms),
        cool_p99_ms=median(lambda result: result.cool_p99_ms),
        refused=sum(result.refused for result, _ in results),
        cpu_ms={who: round(sum(cpu.get(who, 0) for _, cpu in results) * 1_000 / requests, 3) for who in sorted(spent)},
    )
