"""`piggybank verify` and `piggybank currencies ..`, with the owner's role."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import click
import msgspec
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from piggybank import checks, errors, settings
from piggybank.db import acts
from piggybank.db.engines import CONNECTION_LOST
from piggybank.wallet import currencies as wallet_currencies

MAX_SHOWN = 50  # findings, on a terminal
_T = TypeVar("_T")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: accounts, transactions, findings.")
@click.pass_context
def verify(context: click.Context, *, as_json: bool) -> None:
    """Derive every balance again from the posted rows and name what differs.

    Safe while the installation runs. Exit code 0: everything fits; 1: it does not.

    \b
    Examples:
      piggybank verify
      piggybank verify --json | jq .findings
    """
    accounts, transactions, findings = _with_owner(context, lambda owner_url: _verify(owner_url, quiet=as_json))
    if as_json:
        found = {"accounts": accounts, "transactions": transactions, "findings": findings}
        click.echo(msgspec.json.encode(found).decode())
    else:
        for one in findings[:MAX_SHOWN]:
            where = f"account {one.account_id}" if one.account_id else "all accounts"
            click.echo(f"{where}: {one.what}: stored {one.stored or '-'}, derived {one.derived}")
        if len(findings) > MAX_SHOWN:
            click.echo(f"... and {len(findings) - MAX_SHOWN} more; --json shows all")
        verdict = f"{len(findings)} differences" if findings else "everything fits"
        click.echo(f"{accounts} accounts, {transactions} transactions: {verdict}")
    context.exit(1 if findings else 0)


async def _verify(owner_url: str, *, quiet: bool) -> tuple[int, int, list[checks.Finding]]:
    accounts, transactions = 0, 0
    findings: list[checks.Finding] = []
    console = Console(stderr=True, quiet=quiet)
    with Bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("verifying")
        async for progress in checks.verify(owner_url):
            accounts += progress.accounts
            transactions += progress.transactions
            findings += progress.findings
            bar.update(task, description=f"{accounts} accounts, {transactions} transactions, {len(findings)} differences")
    return accounts, transactions, findings


@click.group()
def currencies() -> None:
    """List, enable and disable the currencies that accounts can be opened in.

    \b
    Examples:
      piggybank currencies list --all
      piggybank currencies enable KES
    """


@currencies.command("list")
@click.option("--all", "with_disabled", is_flag=True, help="Also those that are not enabled.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def list_currencies(context: click.Context, *, with_disabled: bool, as_json: bool) -> None:
    """Print codes, decimal places and whether they are enabled."""
    known = _with_owner(context, wallet_currencies.known)
    rows = [{"code": code, "minor_unit": minor_unit, "enabled": enabled} for code, minor_unit, enabled in known if enabled or with_disabled]
    if as_json:
        click.echo(msgspec.json.encode({"items": rows}).decode())
    else:
        for row in rows:
            click.echo(f"{row['code']}  {row['minor_unit']} decimals  {'enabled' if row['enabled'] else 'disabled'}")


@currencies.command("enable")
@click.argument("code")
@click.pass_context
def enable(context: click.Context, code: str) -> None:
    """Let accounts be opened in a currency.

    \b
    Example:
      piggybank currencies enable KES
    """
    _switch(context, code.upper(), enabled=True)
    click.echo(f"accounts can be opened in {code.upper()}")


@currencies.command("disable")
@click.argument("code")
@click.pass_context
def disable(context: click.Context, code: str) -> None:
    """Open no more accounts in a currency; those that there are go on.

    \b
    Example:
      piggybank currencies disable USD
    """
    _switch(context, code.upper(), enabled=False)
    click.echo(f"no more accounts in {code.upper()}; those that there are go on")


def _switch(context: click.Context, code: str, *, enabled: bool) -> None:
    async def note(connection: asyncpg.Connection) -> None:
        await acts.record(connection, f"currency.{'enable' if enabled else 'disable'}", f"currency:{code}")

    _with_owner(context, lambda owner_url: wallet_currencies.switch(owner_url, code, note, enabled=enabled))


def _with_owner(context: click.Context, work: Callable[[str], Coroutine[Any, Any, _T]]) -> _T:
    """Run `work` on the owner's address."""
    data_dir: Path | None = (context.find_root().obj or {}).get("data_dir")
    here = settings.load(data_dir)
    if not here.owner_database_url:
        raise errors.CannotProceed(what=f"no database is known for {here.data_dir}", do="start it with: piggybank up")
    try:
        return asyncio.run(work(here.owner_database_url))
    except CONNECTION_LOST as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
