"""`piggybank verify`."""

import asyncio
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from piggybank import checks, settings

MAX_SHOWN = 50  # findings, on a terminal


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
    data_dir: Path | None = context.find_root().obj["data_dir"]
    owner_url = settings.load(data_dir).owner_database_url
    accounts, transactions, findings = asyncio.run(_run(owner_url, quiet=as_json))
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


async def _run(owner_url: str, *, quiet: bool) -> tuple[int, int, list[checks.Finding]]:
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
