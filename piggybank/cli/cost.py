"""`piggybank cost`."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.capacity import cost as design
from piggybank.capacity import phases, prices, projection, usage
from piggybank.capacity.prices import Measured, Provider, Spent
from piggybank.capacity.projection import Load, Projection
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_LOOKED_AT = 30
BENCH_WRITE, BENCH_READ = "mixed", "reads"  # scenarios of `piggybank bench`


class _Scenario(Struct):
    cpu_ms: dict[str, float]


class _Bench(Struct):
    scenarios: dict[str, _Scenario]
    machine: dict[str, Any]


@click.command()
@click.option("--phase", "number", type=click.IntRange(0, phases.BUILT_PHASES[-1]), help="Only this phase, with every part of its bill.")
@click.option(
    "--users",
    type=click.IntRange(min=1),
    help="For so many users, instead of the phase's full load; alone: in the lowest phase that carries them.",
)
@click.option("--now", is_flag=True, help="What this installation carries, as its history has it, in the phase that it runs as.")
@click.option("--provider", "name", type=click.Choice(prices.names()), default="railway", show_default=True, help="Whose prices.")
@click.option(
    "--bench",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CPU as measured here: what `piggybank bench --json` printed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def cost(context: click.Context, *, number: int | None, users: int | None, now: bool, name: str, bench: Path | None, as_json: bool) -> None:
    """What a phase costs a month, and a user, at a provider, beside the design's figures and why they differ.

    Made of a dated price table and of the CPU that a transaction was measured to take. Support, backups elsewhere and taxes are not in it.

    \b
    Examples:
      piggybank cost
      piggybank cost --phase 2 --provider aws
      piggybank cost --users 25000
      piggybank cost --now --json | jq '.projections[0].usd_a_user'
      piggybank bench --quick --json > bench.json && piggybank cost --bench bench.json
    """
    if now and (users is not None or number is not None):
        raise click.UsageError("--now says users and phase by itself; leave --users and --phase away")
    provider = prices.of(name)
    measured = prices.table().measured if bench is None else _measured(bench)
    if now:
        settings = settings_file.load((context.find_root().obj or {}).get("data_dir"))
        chosen = [(settings.phase, _load_now(settings))]
    elif users is not None:
        phase = projection.carries(users) if number is None else number
        chosen = [(phase, projection.of_users(phases.of(phase), users))]
    else:
        chosen = [(each, projection.full(phases.of(each))) for each in (phases.BUILT_PHASES if number is None else (number,))]
    made = [projection.project(provider, phases.of(each), load, measured) for each, load in chosen]
    if as_json:
        found = {
            "provider": msgspec.to_builtins(provider),
            "measured": msgspec.to_builtins(measured),
            "projections": msgspec.to_builtins(made),
        }
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo("\n".join(lines(provider, measured, made)))


def lines(provider: Provider, measured: Measured, made: list[Projection]) -> list[str]:
    """For people: a table of phases, or one with its parts."""
    head = [
        f"{provider.title}; prices read on {provider.read_on} from {provider.read_from}",
        f"CPU of a transaction measured {measured.at} on {measured.on}",
        "",
    ]
    if len(made) == 1:
        return head + _one(made[0])
    rows = [("phase", "users", "a month", "a user", "design", "a user", "")]
    for each in made:
        about = design.of(each.phase)
        ours = (f"${each.usd_a_month:,.0f}", f"${each.usd_a_user:.3f}")
        rows.append((str(each.phase), f"{each.users:,}", *ours, about.text, f"${about.usd_a_user:.3f}", each.why[0]))
    for phase in phases.table()[len(made) :]:
        about = design.of(phase.number)
        rows.append((str(phase.number), f"{phase.users:,}+", "", "", about.text, f"${about.usd_a_user:.3f}", "not built"))
    why = [f"phase {each.phase}: {'; '.join(each.why[1:])}" for each in made]
    return [*head, *_columns(rows), "", *why, "The design does not say what its figures are made of."]


def _one(made: Projection) -> list[str]:
    rows = [(part.what, f"${part.usd_a_month:,.2f}", part.of) for part in made.parts]
    rows.append(("a month", f"${made.usd_a_month:,.2f}", f"${made.usd_a_user:.4f} a user"))
    rows.append(("the design", f"${made.design_usd_a_month:,}", f"${made.design_usd_a_user:.4f} a user, at full load"))
    load = f"phase {made.phase}, {made.users:,} users, {made.transactions_a_day:,.0f} transactions a day"
    return [load, "", *_columns(rows), "", *made.why]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _measured(file: Path) -> Measured:
    """The table's, with the CPU of a bench run; raises `errors.CannotProceed` where the file is none."""
    usual = prices.table().measured
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_Bench)
        write, read = (Spent(**found.scenarios[scenario].cpu_ms) for scenario in (BENCH_WRITE, BENCH_READ))
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError) as cause:
        do = f"piggybank bench --json with the scenarios {BENCH_WRITE} and {BENCH_READ}, its stores on the same machine"
        raise errors.CannotProceed(what=f"{file} has no CPU of server, postgres and valkey: {cause}", do=do) from cause
    cores = f"{found.machine.get('cpu', 'unknown CPU')}, {found.machine.get('cores', '?')} cores"
    today = datetime.now(UTC).date()
    return msgspec.structs.replace(usual, at=today, on=f"{cores} ({file.name})", write_ms=write, read_ms=read)


def _load_now(settings: Settings) -> Load:
    if not settings.database_url:
        raise errors.CannotProceed(what=f"no database is known for {settings.data_dir}", do="start it with: piggybank up")
    try:
        found = asyncio.run(_history(settings))
    except errors.DatabaseUnavailable as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
    if found is None:
        raise errors.CannotProceed(what="no data: no whole day was recorded yet", do="say the load yourself: piggybank cost --users N")
    return found


async def _history(settings: Settings) -> Load | None:
    db = Database.of(settings)
    try:
        async with db.read() as read:
            return projection.measured_load(await usage.days(read, datetime.now(UTC), DAYS_LOOKED_AT))
    finally:
        await db.close()
