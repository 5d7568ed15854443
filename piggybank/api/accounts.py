"""Accounts: open, find, rename; the balance; freeze, unfreeze, close."""

from typing import Annotated
from uuid import UUID

from litestar import Response, get, patch, post
from litestar.params import HeaderParameter, Parameter
from msgspec import UNSET, Struct, UnsetType

from piggybank import errors, ids
from piggybank.api import problems
from piggybank.api.fields import EXTERNAL_ID_MAX_CHARACTERS, SEARCH_MAX_CHARACTERS, CurrencyCode, ExternalId, Metadata, Name
from piggybank.api.moments import At, moment
from piggybank.api.submissions import actor, answered, balance_of, only_user
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity import audit
from piggybank.identity.tokens import Principal
from piggybank.ledger import Ledger, Submission, balances, commands
from piggybank.ledger.balances import Balance, BalanceAt
from piggybank.wallet import accounts, pages
from piggybank.wallet.accounts import Account

Limit = Annotated[int, Parameter(ge=1, le=pages.LIMIT_MAX, description="Items a page.")]
ExternalIdFilter = Annotated[
    str | None, Parameter(min_length=1, max_length=EXTERNAL_ID_MAX_CHARACTERS, description="The account that you know by this id.")
]
Search = Annotated[
    str | None,
    Parameter(
        min_length=1,
        max_length=SEARCH_MAX_CHARACTERS,
        description="How the account's `external_id` or a word of its name begins, or its owner's, or the owner's e-mail address; or the"
        " whole id of either.",
    ),
]
MinVersion = Annotated[int, Parameter(ge=0, description="Never answer from an older version of the account than this.")]


IfNoneMatch = Annotated[
    str | None, HeaderParameter(name="If-None-Match", description="The `ETag` that you have: 304 while it is still the balance.")
]


class OpenAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`user_id` is for operators and services; a user opens their own."""

    currency: CurrencyCode
    user_id: UUID | None = None
    name: Name | None = None
    external_id: ExternalId | None = None
    metadata: Metadata | None = None


class ChangeAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not sent stays as it was."""

    name: Name | UnsetType | None = UNSET
    metadata: Metadata | UnsetType = UNSET


class AccountPage(Struct, frozen=True, kw_only=True):
    items: list[Account]
    next_cursor: str | None


class AccountStatus(Struct, frozen=True, kw_only=True):
    account_id: UUID
    status: str
    balance: Balance


@post("/v1/accounts", summary="Open an account", tags=["accounts"])
async def open_account(data: OpenAccount, principal: Principal, db: Database) -> Account:
    """In one currency, for good. With an `external_id` it is found again by it, and a second one is refused."""
    owner = data.user_id or principal.user_id
    if owner is None:
        raise problems.invalid("user_id", "is required: whose account it is", "required")
    if only_user(principal) not in (None, owner):
        raise errors.NotFound(user_id=str(owner))
    async with db.write() as write:
        account = await accounts.open_account(
            write,
            user_id=owner,
            currency=data.currency,
            name=data.name,
            external_id=data.external_id,
            metadata=data.metadata or {},
        )
        if principal.role != "user":
            audit.record(write, principal.actor, "account.open", str(account.id))
    return account


@get("/v1/accounts", summary="List accounts", tags=["accounts"])
async def list_accounts(
    principal: Principal,
    db: Database,
    user_id: UUID | None = None,
    external_id: ExternalIdFilter = None,
    search: Search = None,
    cursor: str | None = None,
    limit: Limit = pages.LIMIT_DEFAULT,
) -> AccountPage:
    """Newest first: a user's own; for operators and services all, or those of `user_id`, by `external_id`, or found by `search`."""
    only = only_user(principal)
    if only is not None and user_id not in (None, only):
        return AccountPage(items=[], next_cursor=None)
    asked = ("accounts", user_id or only, external_id, search)
    async with db.read() as read:
        found = await accounts.page(
            read,
            user_id=user_id or only,
            external_id=external_id,
            searched=search,
            before=None if cursor is None else pages.last_id(cursor, *asked),
            limit=limit + 1,
        )
    more = len(found) > limit
    return AccountPage(items=found[:limit], next_cursor=pages.cursor_after(found[limit - 1].id, *asked) if more else None)


@get("/v1/accounts/{account_id:uuid}", summary="One account", tags=["accounts"])
async def get_account(account_id: UUID, principal: Principal, db: Database, cache: Cache) -> Account:
    """The account with its balance, from the database."""
    return await accounts.get(db, cache, account_id, only_user=only_user(principal))


@patch("/v1/accounts/{account_id:uuid}", summary="Rename an account", tags=["accounts"])
async def change_account(account_id: UUID, data: ChangeAccount, principal: Principal, db: Database, cache: Cache) -> Account:
    """Name and metadata; neither touches money."""
    async with db.write() as write:
        changed = await accounts.change(
            write,
            account_id,
            only_user=only_user(principal),
            name=None if data.name is UNSET else data.name,
            sets_name=data.name is not UNSET,
            metadata=None if data.metadata is UNSET else data.metadata,
        )
        if principal.role == "operator":
            changed_fields = [name for name in ("name", "metadata") if getattr(data, name) is not UNSET]
            audit.record(write, principal.actor, "account.change", str(account_id), {"fields": changed_fields})
    await cache.forget(balances.KIND, [str(account_id)])  # it has a new version, and who is answered may ask for it at once
    return changed


@get("/v1/accounts/{account_id:uuid}/balance", summary="Balance, now or then", tags=["accounts"], fast_path=True)
async def get_balance(
    account_id: UUID,
    principal: Principal,
    db: Database,
    cache: Cache,
    if_none_match: IfNoneMatch,
    at: At = None,
    min_version: MinVersion = 0,
) -> Response[Balance | BalanceAt | None]:
    """Now: from the cache, at least as new as `min_version`. With `at`: the posted balance just before that moment."""
    then = moment("at", at)
    if then is not None:
        return Response(await balances.read_at(db, cache, account_id, then, only_user=only_user(principal)))
    found = await balances.read(db, cache, account_id, only_user=only_user(principal), min_version=min_version)
    etag = f'"{found.version}"'
    if if_none_match == etag:
        return Response(None, status_code=304, headers={"ETag": etag})
    return Response(found.shown(), headers={"ETag": etag})


@post("/v1/accounts/{account_id:uuid}/freeze", status_code=200, summary="Freeze", tags=["accounts"])
async def freeze(account_id: UUID, principal: Principal, ledger: Ledger) -> AccountStatus:
    """Refuse every request on the account; settlements of the provider are still posted."""
    return await _set_status(commands.Freeze(account_id=account_id), "frozen", principal, ledger)


@post("/v1/accounts/{account_id:uuid}/unfreeze", status_code=200, summary="Unfreeze", tags=["accounts"])
async def unfreeze(account_id: UUID, principal: Principal, ledger: Ledger) -> AccountStatus:
    """Take requests again."""
    return await _set_status(commands.Unfreeze(account_id=account_id), "active", principal, ledger)


@post("/v1/accounts/{account_id:uuid}/close", status_code=200, summary="Close", tags=["accounts"])
async def close(account_id: UUID, principal: Principal, ledger: Ledger) -> AccountStatus:
    """For good; only an account without balance, holds, debts and open payments."""
    return await _set_status(commands.Close(account_id=account_id), "closed", principal, ledger)


async def _set_status(command: commands.Command, status: str, principal: Principal, ledger: Ledger) -> AccountStatus:
    """Written down whoever does it: no row of history tells of it."""
    act = commands.Act(ids.new_id(0), principal.actor, f"account.{status}", str(command.account_id), {})
    answer = answered(await ledger.submit(Submission(command, actor(principal), act=act)))
    return AccountStatus(account_id=command.account_id, status=status, balance=balance_of(command.account_id, answer))


routes = [open_account, list_accounts, get_account, change_account, get_balance, freeze, unfreeze, close]
