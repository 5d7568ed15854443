"""`piggybank selftest`: does this installation take a deposit, and do its books balance? What `helm test` runs."""

import asyncio
from typing import Any, NamedTuple
from uuid import uuid4

import click
import httpx
from sqlalchemy import text

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.cache import Cache
from piggybank.db import installation
from piggybank.db.acts import COMMAND_LINE
from piggybank.db.engines import Database
from piggybank.identity import apikeys
from piggybank.identity.tokens import Tokens
from piggybank.settings import Settings

NAME = "selftest"  # of the key, and the external id of the user and of the account
SCOPES = ("users:write", "users:read", "accounts:write", "accounts:read", "ledger:write")
AMOUNT = 100
TIMEOUT_S = 30.0  # a batch that waits for a standby takes its time
CURRENCY = "ZAR"

_TRIAL_BALANCE = text("""
SELECT count(*) AS accounts, count(*) FILTER (WHERE balance + clearing + fees + transfers + adjustments <> 0) AS unbalanced,
       COALESCE(sum(transfers), 0) AS transfers
FROM accounts
""")
_ROWS = text("SELECT COALESCE(sum(amount), 0) FROM transactions WHERE account_id = CAST(:account AS uuid)")


class Result(NamedTuple):
    """What was tried, and what the books say afterwards."""

    account_id: str
    accounts: int


@click.command()
@click.option("--url", help="Where the API is reached; else the installation's own address.")
@click.option("--currency", default=CURRENCY, show_default=True, help="Currency of the account that it uses; it must be enabled.")
@click.pass_context
def selftest(ctx: click.Context, url: str | None, currency: str) -> None:
    """Deposit one unit of money over HTTP, take it back, and check the trial balance over all accounts.

    It uses a user and an account of its own, whose balance is the same before and after, and a key that it revokes. Needs the
    database's address, as every command here. Ends with 1, and says what differs.

    \b
    Examples:
      piggybank selftest
      piggybank selftest --url https://money.example.com
    """
    settings = settings_file.load((ctx.find_root().obj or {}).get("data_dir"))
    done = asyncio.run(_try(settings, (url or settings.own_address).rstrip("/"), currency))
    click.echo(f"a deposit went in and out of account {done.account_id}; {done.accounts} accounts balance")


async def _try(settings: Settings, url: str, currency: str) -> Result:
    if not settings.database_url:
        raise errors.CannotProceed(what=f"no database is known in {settings.data_dir}", do="start it first: piggybank up")
    db, cache = Database.of(settings), Cache.of(settings)
    try:
        async with db.read() as read:
            found = await installation.epoch(read)
        cache.know(found.epoch, closed=found.closed)
        async with db.write() as write:
            key, token = await apikeys.create(write, name=NAME, scopes=SCOPES, actor=COMMAND_LINE)
        try:
            account = await _deposit(url, token, currency)
        finally:
            await apikeys.revoke(db, Tokens(db, cache), key.id, actor=COMMAND_LINE)
        return Result(account, await _balance(db, account))
    finally:
        await cache.close()
        await db.close()


async def _deposit(url: str, token: str, currency: str) -> str:
    """In and out again; the account. Raises `errors.CannotProceed`."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=TIMEOUT_S, trust_env=False) as http:
            user = await _found_or_made(http, "/users", {"external_id": NAME})
            account = await _found_or_made(http, "/accounts", {"external_id": f"{NAME}-{currency}", "user_id": user, "currency": currency})
            before = (await _said(http, "GET", f"/accounts/{account}/balance"))["balance"]
            for path, expected in (("deposits", before + AMOUNT), ("withdrawals", before)):
                body = {"amount": AMOUNT, "method": "direct", "reference": NAME}
                key = {"Idempotency-Key": f"{NAME}-{uuid4()}"}
                moved = (await _said(http, "POST", f"/accounts/{account}/{path}", json=body, headers=key))["balance"]
                seen = await _said(http, "GET", f"/accounts/{account}/balance", params={"min_version": moved["version"]})
                if not moved["balance"] == seen["balance"] == expected:
                    what = f"after {path} the answer says {moved['balance']}, the balance {seen['balance']}; it should be {expected}"
                    raise errors.CannotProceed(what=what, do="run piggybank verify; another selftest at the same time explains it, too")
    except httpx.HTTPError as cause:
        raise errors.CannotProceed(
            what=f"{url} does not answer: {cause or type(cause).__name__}", do="look at piggybank status, or give --url"
        ) from cause
    return account


async def _found_or_made(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    asked = {name: body[name] for name in ("external_id", "user_id") if name in body}
    if found := (await _said(http, "GET", path, params=asked))["items"]:
        return str(found[0]["id"])
    return str((await _said(http, "POST", path, json=body))["id"])


async def _said(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> dict[str, Any]:
    answer = await http.request(method, path, **more)
    if not answer.is_success:
        raise errors.CannotProceed(what=f"{method} {path} answered {answer.status_code}: {answer.text[:500]}", do="piggybank doctor")
    said: dict[str, Any] = answer.json()
    return said


async def _balance(db: Database, account: str) -> int:
    """How many accounts there are, when all of them balance. Raises `errors.CannotProceed`."""
    async with db.read() as read:
        book = (await read.execute(_TRIAL_BALANCE)).one()
        rows = await read.scalar(_ROWS, {"account": account})
    if book.unbalanced or book.transfers or rows:
        what = f"the trial balance is off: {book.unbalanced} accounts, transfers {book.transfers}, rows of the selftest {rows}"
        raise errors.CannotProceed(what=what, do="piggybank verify names the accounts")
    return int(book.accounts)
