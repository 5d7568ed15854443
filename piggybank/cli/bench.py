"""`piggybank bench`: what this machine carries, measured with the shipped server on a database to throw away."""

import asyncio
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import click
import msgspec
import psutil
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.bench import database, run
from piggybank.bench.run import Figure
from piggybank.bench.scenarios import SCENARIOS, Scenario
from piggybank.bench.serving import serving
from piggybank.settings import Settings

QUICK = {"seconds": 2.0, "rounds": 1, "accounts": 10_000}
WARM_UP_S = 1.0
MAX_CONNECTIONS = 1_024
MAX_ACCOUNTS = 1_000_000

# Transactions a second at the peak: the seed's table "Cost Projection". The next is not a phase of this program.
PHASES = ((0, 30), (1, 300), (2, 1_500), (3, 3_000))
ANSWERS_FOR_PHASE = "mixed", "deposits"  # the first that was measured


class Shown(Struct, frozen=True, kw_only=True):
    """A scenario as JSON; a ratio is null where there is nothing to divide by."""

    per_second: float
    p50_ms: float
    p99_ms: float
    to_no_database: float | None
    to_row_locking: float | None
    refused: int
    cpu_ms: dict[str, float]


class Report(Struct, frozen=True, kw_only=True):
    scenarios: dict[str, Shown]
    phase: int | None
    says: str
    machine: dict[str, Any]
    connections: int
    accounts: int
    verified: bool


def _scenarios() -> str:
    return "\b\nScenarios:\n" + "\n".join(f"  {name:20} {one.what}" for name, one in SCENARIOS.items())


@click.command(epilog=_scenarios())
@click.option("--quick", is_flag=True, help="Two seconds a scenario, one round, 10,000 accounts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: scenarios, phase, machine.")
@click.option("--scenario", "chosen", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only this one; may be repeated.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), help="Seconds a scenario and round.  [default: 8]")
@click.option("--rounds", type=click.IntRange(1, 20), help="The median of so many.  [default: 3]")
@click.option("--accounts", type=click.IntRange(2, MAX_ACCOUNTS), help="Accounts in the database to throw away.  [default: 100,000]")
@click.option(
    "--connections", type=click.IntRange(1, MAX_CONNECTIONS), default=64, show_default=True, help="Clients that wait for answers."
)
@click.option("--processes", type=click.IntRange(1, 64), help="Web processes.  [default: as the installation has]")
@click.pass_context
def bench(
    context: click.Context,
    *,
    quick: bool,
    as_json: bool,
    chosen: tuple[str, ...],
    seconds: float | None,
    rounds: int | None,
    accounts: int | None,
    connections: int,
    processes: int | None,
) -> None:
    """Measure what this machine carries, and say which phase that is.

    A database is made beside yours, filled, loaded by the shipped server on a port of its own, checked (answers are rows, balances
    are sums) and dropped. Yours is not touched, but the load takes its share of the machine: do it in a quiet hour.

    \b
    Examples:
      piggybank bench --quick
      piggybank bench --quick --json | jq .scenarios.deposits
      piggybank bench --scenario deposits --scenario row_locking --seconds 20
    """
    settings = settings_file.load((context.find_root().obj or {}).get("data_dir"))
    missing = [name for name in settings_file.STORE_FIELDS if not getattr(settings, name)]
    if missing:
        raise errors.CannotProceed(what=f"no stores are known for {settings.data_dir}", do="start them with: piggybank up")
    scenarios = [SCENARIOS[name] for name in chosen] or list(SCENARIOS.values())
    sizes = {"seconds": 8.0, "rounds": 3, "accounts": 100_000} | (QUICK if quick else {})
    sizes |= {name: value for name, value in (("seconds", seconds), ("rounds", rounds), ("accounts", accounts)) if value is not None}
    report = asyncio.run(
        _bench(
            settings,
            scenarios,
            seconds=float(sizes["seconds"]),
            rounds=int(sizes["rounds"]),
            accounts=int(sizes["accounts"]),
            connections=connections,
            processes=processes or settings.web_processes,
            quiet=as_json,
        )
    )
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        Console().print(_table(report))
        click.echo(", ".join(f"{name} {value}" for name, value in report.machine.items()))
        click.echo(f"{report.connections} connections, {report.accounts:,} accounts; answers are rows, and every balance fits")
        click.echo(report.says)


async def _bench(
    settings: Settings,
    scenarios: Sequence[Scenario],
    *,
    seconds: float,
    rounds: int,
    accounts: int,
    connections: int,
    processes: int,
    quiet: bool,
) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=quiet), transient=True) as bar:
        task = bar.add_task(f"filling a database with {accounts:,} accounts", total=rounds * len(scenarios) + 2)
        async with database.throw_away(settings, accounts) as filled:
            bar.update(task, advance=1, description="starting the server")
            with serving(filled.settings, processes=processes) as server:
                bar.update(task, advance=1, description=scenarios[0].what)
                figures = await run.measure(
                    filled,
                    server,
                    scenarios,
                    rounds=rounds,
                    seconds=seconds,
                    warm_up_s=min(WARM_UP_S, seconds / 2),
                    connections=connections,
                    done=lambda scenario: bar.update(task, advance=1, description=scenario.what),
                )
    phase, says = _phase({figure.name: figure for figure in figures})
    return Report(
        scenarios=_shown(figures),
        phase=phase,
        says=says,
        machine=(await machine(settings)) | {"web_processes": processes},
        connections=connections,
        accounts=accounts,
        verified=True,  # else `measure` would have raised
    )


def _shown(figures: Sequence[Figure]) -> dict[str, Shown]:
    by_name = {figure.name: figure for figure in figures}

    def ratio(figure: Figure, to: str | None) -> float | None:
        other = by_name.get(to or "")
        return round(figure.per_second / other.per_second, 2) if other is not None and other.per_second else None

    return {
        figure.name: Shown(
            per_second=figure.per_second,
            p50_ms=figure.p50_ms,
            p99_ms=figure.p99_ms,
            to_no_database=ratio(figure, SCENARIOS[figure.name].no_database),
            to_row_locking=ratio(figure, SCENARIOS[figure.name].row_locking),
            refused=figure.refused,
            cpu_ms=figure.cpu_ms,
        )
        for figure in figures
    }


def _phase(figures: dict[str, Figure]) -> tuple[int | None, str]:
    name = next((name for name in ANSWERS_FOR_PHASE if name in figures), None)
    if name is None:
        return None, f"measure {' or '.join(ANSWERS_FOR_PHASE)} to see which phase this machine carries"
    per_second = figures[name].per_second
    carried = [(phase, needed) for phase, needed in PHASES if per_second >= needed]
    if not carried:
        return None, f"this machine carries no phase: {per_second:,.0f} a second ({name}), and phase 0 has a peak of {PHASES[0][1]}"
    phase, needed = carried[-1]
    return phase, f"this machine carries phase {phase}: {per_second:,.0f} a second ({name}), and the peak of phase {phase} is {needed:,}"


def _table(report: Report) -> Table:
    table = Table(Column("scenario", no_wrap=True), *("per s", "p50 ms", "p99 ms", "refused", "/ no database", "/ row locks"), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in report.scenarios.items():
        ratios = ("" if ratio is None else f"{ratio:.2f}" for ratio in (one.to_no_database, one.to_row_locking))
        table.add_row(name, f"{one.per_second:,.0f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.refused:,}", *ratios)
    return table


async def machine(settings: Settings) -> dict[str, Any]:
    """What this machine is."""
    connection = await asyncpg.connect(settings.owner_database_url)
    try:
        postgres = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": str(postgres),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
