"""`piggybank provider ..`: which provider, how it is reached, the keys of its events, comparing books."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console

from piggybank import errors, money, telemetry
from piggybank import settings as settings_file
from piggybank.cache import Cache
from piggybank.db import installation
from piggybank.db.acts import COMMAND_LINE
from piggybank.db.engines import CONNECTION_LOST, Database
from piggybank.identity import audit
from piggybank.ledger import Ledger
from piggybank.revio import Refused, Unclear, Unsent, signatures
from piggybank.settings import Settings
from piggybank.wallet import clearing, reconciliation
from piggybank.wallet import provider as providers
from piggybank.wallet.provider import Provider

T = TypeVar("T")
MAX_SHOWN = 50  # differences, on a terminal


@click.group()
def provider() -> None:
    """Look after the payment provider: Revio, or its simulator.

    \b
    Examples:
      piggybank provider status
      piggybank provider mode live
      piggybank provider connect
    """


@provider.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def show_status(context: click.Context, *, as_json: bool) -> None:
    """Say which provider it is, whether it answers, and whether its events reach us. Ends with 1 when something is not well.

    \b
    Examples:
      piggybank provider status
      piggybank provider status --json | jq .balance
    """

    async def look(at: Provider) -> dict[str, Any]:
        mode = await at.mode()
        found: dict[str, Any] = {"mode": mode, "answers": False, "webhook": None, "balance": {}, "ours": {}, "why": ""}
        found["ours"] = await clearing.owed(at.db, mode)
        try:
            client = await at.client()
            found["balance"] = {currency: standing.balance for currency, standing in (await client.balance()).items()}
            found["answers"] = True
            ours = [webhook for webhook in await client.webhooks() if webhook.callback == providers.callback_url(at.settings, mode)]
            found["webhook"] = ours[0].id if ours else None
        except errors.ProviderNotConfigured as cause:
            found["why"] = f"missing: {', '.join(cause.details.get('missing', ()))}"
        except (Refused, Unsent, Unclear) as cause:
            found["why"] = str(cause)
        async with at.db.read() as read:
            found["keys"] = [key.fingerprint for key in await providers.keys(read, mode)]
        return found

    found = _with_provider(context, look)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        name = "SIMULATOR: no real money moves" if found["mode"] == "simulator" else "live"
        click.echo(f"provider: {name}")
        click.echo("it answers" if found["answers"] else f"it does not answer: {found['why']}")
        webhook = found["webhook"] or ("not registered for this address; piggybank provider connect" if found["answers"] else "not known")
        click.echo(f"webhook: {webhook}; {len(found['keys'])} key(s) known")
        for currency in sorted(found["balance"].keys() | found["ours"].keys()):
            theirs = money.shown(found["balance"].get(currency, 0), currency) if found["answers"] else "(not known)"
            click.echo(f"it owes us {theirs}; by our book {money.shown(found['ours'].get(currency, 0), currency)}")
    context.exit(0 if found["answers"] and found["webhook"] else 1)


@provider.command("mode")
@click.argument("mode", type=click.Choice(["simulator", "live"]), required=False)
@click.pass_context
def set_mode(context: click.Context, mode: settings_file.ProviderMode | None) -> None:
    """Print the mode, or choose it. Only while there are no payments of the other one: play and real money share no book.

    \b
    Examples:
      piggybank provider mode
      piggybank provider mode live
    """
    settings = _settings(context)
    if mode is None:
        click.echo(_run(installation.stored_mode(settings.database_url)))
    elif _run(_switched(settings, mode)):
        click.echo(f"payments are {mode} now; start it again so that {'the simulator ends' if mode == 'live' else 'the simulator starts'}:")
        click.echo("piggybank down; piggybank up --detach")
    else:
        click.echo(f"payments are {mode} already")


async def _switched(settings: Settings, mode: settings_file.ProviderMode) -> bool:
    if not await installation.switch_mode(settings.owner_database_url, mode):
        return False
    db = Database.of(settings)
    async with db.write() as write:
        audit.record(write, COMMAND_LINE, "provider.mode", "installation", {"mode": mode})
    await db.close()
    return True


@provider.command("connect")
@click.pass_context
def connect(context: click.Context) -> None:
    """Register our webhook at the provider and remember its key. Safe to repeat: one that is there is kept.

    It must be reachable from outside at PIGGYBANK_PUBLIC_URL.

    \b
    Example:
      piggybank provider connect
    """

    async def made(at: Provider) -> str:
        mode = await at.mode()
        if mode == "live" and not at.settings.public_url.startswith("https://"):
            raise errors.CannotProceed(
                what="the provider cannot reach this installation", do="set PIGGYBANK_PUBLIC_URL to its https:// address first"
            )
        try:
            webhook, is_new = await providers.connect(at)
        except (Refused, Unsent, Unclear) as cause:
            raise errors.CannotProceed(
                what=f"the provider did not do it: {cause}", do="look at revio_url, revio_key and the network"
            ) from cause
        async with at.db.write() as write:
            audit.record(write, COMMAND_LINE, "provider.connect", "installation", {"webhook": webhook.id, "new": is_new})
        return f"webhook {webhook.id} {'registered' if is_new else 'is registered already'}: {webhook.callback}"

    click.echo(_with_provider(context, made))


@provider.group()
def keys() -> None:
    """Keys that the provider's events are signed with, for webhooks that were registered by hand.

    \b
    Examples:
      piggybank provider keys list
      piggybank provider keys add webhook.pem
    """


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def list_keys(context: click.Context, *, as_json: bool) -> None:
    """Print the fingerprints of the keys that are known."""

    async def known(at: Provider) -> list[providers.Key]:
        async with at.db.read() as read:
            return await providers.keys(read, await at.mode())

    found = _with_provider(context, known)
    if as_json:
        click.echo(msgspec.json.encode({"items": found}).decode())
    else:
        for key in found:
            click.echo(f"{key.fingerprint}  {key.added_at:%Y-%m-%d %H:%M}  {key.note}  {key.webhook_id or ''}".rstrip())


@keys.command("add")
@click.argument("file", type=click.File("r"))
@click.option("--note", default="", help="For people.")
@click.pass_context
def add_key(context: click.Context, file: Any, note: str) -> None:
    """Add a public key (PEM) from FILE, or from standard input with `-`. Quotes, literal \\n and one long line are understood.

    \b
    Examples:
      piggybank provider keys add webhook.pem
      pbpaste | piggybank provider keys add -
    """
    text = file.read(signatures.PEM_MAX_CHARACTERS + 1)

    async def added(at: Provider) -> bool:
        async with at.db.write() as write:
            audit.record(write, COMMAND_LINE, "provider_key.add", "installation")
            return await providers.add_key(write, await at.mode(), text, note=note)

    try:
        found = [signatures.fingerprint(pem) for pem in signatures.public_keys(text)]
    except ValueError as cause:
        raise errors.CannotProceed(
            what=f"this is no key: {cause}", do="paste the public key that the webhook was registered with"
        ) from cause
    is_new = _with_provider(context, added)
    click.echo(f"{'added' if is_new else 'known already'}: {', '.join(found)}")


@keys.command("remove")
@click.argument("fingerprint")
@click.pass_context
def remove_key(context: click.Context, fingerprint: str) -> None:
    """Forget a key: what it signs is refused from now on.

    \b
    Example:
      piggybank provider keys remove 1a2b3c4d5e6f7a8b
    """

    async def removed(at: Provider) -> bool:
        async with at.db.write() as write:
            audit.record(write, COMMAND_LINE, "provider_key.remove", "installation", {"fingerprint": fingerprint})
            return await providers.remove_key(write, fingerprint, await at.mode())

    if not _with_provider(context, removed):
        raise errors.CannotProceed(what=f"no key {fingerprint} is known", do="piggybank provider keys list")
    click.echo(f"removed: {fingerprint}")


@provider.command("reconcile")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="The day to compare, in UTC; yesterday by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def reconcile(context: click.Context, *, day: datetime | None, as_json: bool) -> None:
    """Compare a day with the provider's statement and its balance. Ends with 1 when something differs.

    \b
    Examples:
      piggybank provider reconcile
      piggybank provider reconcile --day 2026-11-23 --json | jq .items
    """
    chosen: date = day.date() if day is not None else datetime.now(UTC).date() - timedelta(days=1)
    since = datetime.combine(chosen, time(0), tzinfo=UTC)
    if since > datetime.now(UTC):
        raise click.BadParameter(f"{chosen} has not begun yet", param_hint="--day")
    console = Console(stderr=True, quiet=as_json)

    async def compared(at: Provider) -> reconciliation.ReconciliationWithItems:
        with console.status("beginning") as status:
            async with _ledger(at) as ledger:
                run = await reconciliation.reconcile(at.db, ledger, at, since, since + timedelta(days=1), status.update)
        async with at.db.read() as read:
            return await reconciliation.one(read, run.id)

    found = _with_provider(context, compared)
    run = found.reconciliation
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        for item in found.items[:MAX_SHOWN]:
            click.echo(f"{item.kind}: {item.what} ({item.currency}: ours {item.ours}, theirs {item.theirs})\n    {item.what_to_do}")
        if len(found.items) > MAX_SHOWN:
            click.echo(f"... and {len(found.items) - MAX_SHOWN} more; --json shows all")
        click.echo(f"{chosen}: {run.rows} rows, {run.matched} matched, {run.mended} mended, {run.items_count} differences ({run.id})")
    context.exit(1 if found.items else 0)


@asynccontextmanager
async def _ledger(at: Provider) -> AsyncIterator[Ledger]:
    """A lane of our own: what the statement has and we do not is posted."""
    cache = Cache.of(at.settings)
    async with at.db.read() as read:
        epoch, closed, at.db.recovering = await installation.epoch(read)
        cache.know(epoch, closed=closed)
    ledger = Ledger(at.db, cache)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()
        await cache.close()


def _settings(context: click.Context) -> Settings:
    data_dir: Path | None = (context.find_root().obj or {}).get("data_dir")
    settings = settings_file.load(data_dir)
    if not settings.database_url or not settings.owner_database_url:
        raise errors.CannotProceed(what=f"no database is known for {settings.data_dir}", do="start it with: piggybank up")
    telemetry.configure("error", "console")  # to standard error: what a machine reads is on the other
    return settings


def _with_provider(context: click.Context, work: Callable[[Provider], Coroutine[Any, Any, T]]) -> T:
    settings = _settings(context)

    async def at_work() -> T:
        db = Database.of(settings)
        at = Provider(settings, db)
        try:
            return await work(at)
        finally:
            await at.close()
            await db.close()

    return _run(at_work())


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except errors.ProviderNotConfigured as cause:
        missing = ", ".join(name.removeprefix("PIGGYBANK_").lower() for name in cause.details.get("missing", ()))
        do = "put it into piggybank.toml, then: piggybank down; piggybank up --detach"
        raise errors.CannotProceed(what=f"the provider needs {missing or 'its settings'}", do=do) from cause
    except errors.ProviderUnavailable as cause:
        what = f"the provider did not give its statement: {cause.details.get('reason', 'it does not answer')}"
        raise errors.CannotProceed(what=what, do="look with: piggybank provider status; then try again") from cause
    except (*CONNECTION_LOST, errors.DatabaseUnavailable) as cause:
        raise errors.CannotProceed(what="the database does not answer", do="look with: piggybank status") from cause
