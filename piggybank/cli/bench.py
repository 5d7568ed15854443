"""`piggybank bench`: what this machine carries, measured with the shipped server on a database to throw away."""

import asyncio
import signal
from collections.abc import Sequence

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.bench import database, report, run
from piggybank.bench.report import Report
from piggybank.bench.scenarios import SCENARIOS, Scenario
from piggybank.bench.serving import serving
from piggybank.cache import Cache
from piggybank.db.engines import CONNECTION_LOST
from piggybank.settings import Settings

WARM_UP_S = 1.0
MAX_CONNECTIONS = 1_024
MAX_ACCOUNTS = 1_000_000


class Sizes(Struct, frozen=True, kw_only=True):
    """How long, how often, and over how much."""

    seconds: float = 8.0
    rounds: int = 3
    accounts: int = 100_000


_NAME_WIDTH = max(len(name) for name in SCENARIOS)
_LISTED = "\n".join(f"  {name:{_NAME_WIDTH}}  {one.what}" for name, one in SCENARIOS.items())
QUICK = Sizes(seconds=2.0, rounds=1, accounts=10_000)


@click.command(epilog=f"\b\nScenarios:\n{_LISTED}")
@click.option("--quick", is_flag=True, help="A minute in all: 2 seconds a scenario, 1 round, 10,000 accounts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: scenarios, phase, machine.")
@click.option(
    "--scenario",
    "chosen",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(SCENARIOS)),
    help="Only this one of those below; may be repeated.  [default: all]",
)
@click.option("--seconds", type=click.FloatRange(0.5, 600), help=f"Seconds a scenario and round.  [default: {Sizes().seconds:.0f}]")
@click.option("--rounds", type=click.IntRange(1, 20), help=f"The median of so many.  [default: {Sizes().rounds}]")
@click.option("--accounts", type=click.IntRange(2, MAX_ACCOUNTS), help=f"Accounts in the database.  [default: {Sizes().accounts:,}]")
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
    are sums) and dropped. Yours is not touched, but the load takes its share of the machine and of the cache: do it in a quiet hour.
    "Of no database" is the share of what the same route does with nothing behind it; "of row locking" how many times as much as one
    SERIALIZABLE transaction a request.

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
    given = {name: value for name, value in (("seconds", seconds), ("rounds", rounds), ("accounts", accounts)) if value is not None}
    work = _bench(
        settings,
        [SCENARIOS[name] for name in chosen] or list(SCENARIOS.values()),
        msgspec.structs.replace(QUICK if quick else Sizes(), **given),
        connections=connections,
        processes=processes or settings.web_processes,
        quiet=as_json,
    )
    try:
        found = asyncio.run(work)
    except asyncio.CancelledError as cause:
        raise errors.CannotProceed(what="told to stop before the end", do="what was made is gone again: run it once more") from cause
    except CONNECTION_LOST as cause:
        raise errors.CannotProceed(what="the database went away under load", do="look with: piggybank status") from cause
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        Console().print(_table(found))
        click.echo("\n" + "\n".join(f"{name:{_NAME_WIDTH}}  {SCENARIOS[name].what}" for name in found.scenarios))
        click.echo("\n" + ", ".join(f"{name} {value}" for name, value in found.machine.items()))
        click.echo(f"{found.connections} connections, {found.accounts:,} accounts; every 2xx is a row, and every balance fits")
        click.echo(found.says)


async def _bench(
    settings: Settings, scenarios: Sequence[Scenario], sizes: Sizes, *, connections: int, processes: int, quiet: bool
) -> Report:
    _stop_when_told()
    await _check_cache(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=quiet), transient=True) as bar:
        task = bar.add_task(f"filling a database with {sizes.accounts:,} accounts", total=sizes.rounds * len(scenarios) + 2)
        async with database.throw_away(settings, sizes.accounts) as filled:
            bar.update(task, advance=1, description="starting the server")
            with serving(filled.settings, processes=processes) as server:
                bar.update(task, advance=1, description="warming up")
                figures = await run.measure(
                    filled,
                    server,
                    scenarios,
                    rounds=sizes.rounds,
                    seconds=sizes.seconds,
                    warm_up_s=min(WARM_UP_S, sizes.seconds / 2),
                    connections=connections,
                    begins=lambda scenario: bar.update(task, description=scenario.what),
                    ends=lambda _: bar.update(task, advance=1),
                )
    scenarios_shown = report.shown(figures)
    phase, says = report.phase(scenarios_shown)
    return Report(
        scenarios=scenarios_shown,
        phase=phase,
        says=says,
        machine=await report.machine(settings) | {"web_processes": processes},
        connections=connections,
        accounts=sizes.accounts,
        verified=True,  # else `measure` would have raised
    )


def _stop_when_told() -> None:
    """SIGTERM ends it as Ctrl-C does: with the database dropped. Also where whoever started us has Ctrl-C ignored."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _check_cache(settings: Settings) -> None:
    """Without it everything works and is slower: not what anybody wants to measure."""
    cache = Cache(settings.cache_url)
    try:
        if not await cache.ping():
            raise errors.CannotProceed(what="the cache does not answer", do="start it with: piggybank up")
    finally:
        await cache.close()


def _table(found: Report) -> Table:
    table = Table(
        Column("scenario", no_wrap=True), *("a second", "p50 ms", "p99 ms", "refused", "of no database", "of row locking"), box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, one in found.scenarios.items():
        ratios = (
            "" if one.to_no_database is None else f"{one.to_no_database:.0%}",
            "" if one.to_row_locking is None else f"{one.to_row_locking:.1f} x",
        )
        table.add_row(name, f"{one.per_second:,.0f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.refused:,}", *ratios)
    return table
