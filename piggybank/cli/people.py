"""`piggybank users ..` and `piggybank apikeys ..`: straight to the database, so they work with and without a running server."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import click
import msgspec
from sqlalchemy import text

from piggybank import errors, ids, settings
from piggybank.cache import Cache
from piggybank.db import installation
from piggybank.db.acts import COMMAND_LINE
from piggybank.db.engines import Database
from piggybank.db.tables.people import User
from piggybank.identity import apikeys as keys
from piggybank.identity import audit, links, passwords, sessions
from piggybank.identity import users as people
from piggybank.identity.tokens import Tokens

LIST_MAX = 1_000  # rows that a list prints
_T = TypeVar("_T")


class Here(NamedTuple):
    """The installation that a command works on."""

    settings: settings.Settings
    db: Database
    tokens: Tokens


@click.group()
def users() -> None:
    """Create, invite, list, unlock and demote users; make one-time links.

    \b
    Examples:
      piggybank users create --email ada@example.com --password-stdin < password.txt
      piggybank users operator-link
      piggybank users reset-link ada@example.com
    """


@users.command("create")
@click.option("--email", help="E-mail address to sign in with.")
@click.option("--external-id", help="The id by which your own backend knows this user.")
@click.option("--name", help="What people call the user.")
@click.option("--operator", is_flag=True, help="An operator sees every account and may manage API keys.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input; else it is asked for at a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def create_user(
    ctx: click.Context, email: str | None, external_id: str | None, name: str | None, operator: bool, password_stdin: bool, as_json: bool
) -> None:
    """Create a user, without a password when only --external-id is given.

    \b
    Examples:
      piggybank users create --external-id customer-17 --json
      echo "$PASSWORD" | piggybank users create --operator --email ada@example.com --password-stdin
    """
    if email is None and (operator or password_stdin or external_id is None):
        raise click.UsageError("give --email, or only --external-id for a user who never signs in")
    newcomer = people.Newcomer(email=email, password=_password(password_stdin) if email else None, name=name, external_id=external_id)

    async def run(here: Here) -> User:
        return await people.create(here.db, newcomer, role="operator" if operator else "user", actor=COMMAND_LINE)

    user = _run(ctx, run)
    row = {"id": user.id, "email": user.email, "external_id": user.external_id, "role": user.role}
    _say(as_json, row, f"created {user.role} {user.id}")


@users.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def list_users(ctx: click.Context, as_json: bool) -> None:
    """List the newest users (at most 1,000).

    \b
    Example:
      piggybank users list --json
    """

    async def run(here: Here) -> list[dict[str, Any]]:
        async with here.db.read() as read:
            return [
                {
                    "id": user.id,
                    "email": user.email,
                    "external_id": user.external_id,
                    "role": user.role,
                    "created_at": ids.time_of(user.id),
                }
                for user in await people.page(read, after=None, limit=LIST_MAX)
            ]

    rows = _run(ctx, run)
    lines = [f"{row['id']}  {row['role']:8}  {row['email'] or '-'}  {row['external_id'] or '-'}" for row in rows]
    _say(as_json, {"items": rows}, "\n".join(lines) or "no users yet; create one: piggybank users create --help")


@users.command("invite")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def invite(ctx: click.Context, as_json: bool) -> None:
    """Print a link with which one person can sign up within 7 days.

    \b
    Example:
      piggybank users invite
    """

    async def run(here: Here) -> dict[str, str]:
        if here.settings.sign_up == "closed":
            raise errors.SignUpClosed(hint="set sign_up to invite, or use: piggybank users create")
        return await _link(here, "invite", None)

    _say_link(as_json, _run(ctx, run))


@users.command("operator-link")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def operator_link(ctx: click.Context, as_json: bool) -> None:
    """Print a link with which one person can become an operator within 24 hours; `users demote` takes that back.

    \b
    Example:
      piggybank users operator-link
    """

    async def run(here: Here) -> dict[str, str]:
        return await _link(here, "operator", None)

    _say_link(as_json, _run(ctx, run))


@users.command("demote")
@click.argument("email")
@click.option("--even-the-last", is_flag=True, help="Also where no operator is left then.")
@click.pass_context
def demote(ctx: click.Context, email: str, even_the_last: bool) -> None:
    """Take the operator's role from EMAIL, who is a user like others then. Their sessions end; API keys that they made stay.

    \b
    Examples:
      piggybank users demote ada@example.com
      piggybank apikeys list
    """

    async def run(here: Here) -> int:
        return await people.demote(here.db, here.tokens, email, actor=COMMAND_LINE, even_the_last=even_the_last)

    ended = _run(ctx, run)
    click.echo(f"{email} is no operator any more; {ended} sessions ended")


@users.command("reset-link")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def reset_link(ctx: click.Context, email: str, as_json: bool) -> None:
    """Print a link with which EMAIL's owner can set a new password within an hour.

    \b
    Example:
      piggybank users reset-link ada@example.com
    """

    async def run(here: Here) -> dict[str, str]:
        async with here.db.read() as read:
            user = await people.of_email(read, people.normalised(email))
        if user is None:
            raise errors.UserNotFound(email=email)
        return await _link(here, "reset", user.id)

    _say_link(as_json, _run(ctx, run))


@users.command("unlock")
@click.argument("email")
@click.pass_context
def unlock(ctx: click.Context, email: str) -> None:
    """Let EMAIL sign in again at once after too many wrong passwords.

    \b
    Example:
      piggybank users unlock ada@example.com
    """

    async def run(here: Here) -> bool:
        address = people.normalised(email)
        async with here.db.write() as write:
            user = await people.of_email(write, address)
            if user is None:
                raise errors.UserNotFound(email=email)
            was_locked = await sessions.locked_until(write, address) is not None
            await sessions.unlock(write, address)
            audit.record(write, COMMAND_LINE, "user.unlock", f"user:{user.id}")
        return was_locked

    click.echo("unlocked" if _run(ctx, run) else "was not locked; failures forgotten")


@click.group()
def apikeys() -> None:
    """Create, list and revoke API keys: how your own backend signs in.

    \b
    Examples:
      piggybank apikeys create --name backend --scopes users:write,accounts:write,ledger:write --json
      piggybank apikeys revoke 0192f0c1-...
    """


@apikeys.command("create")
@click.option("--scopes", required=True, help=f"Commas between: {', '.join(keys.SCOPES)}; or all.")
@click.option("--name", default="command line", show_default=True, help="What the key is for.")
@click.option("--json", "as_json", is_flag=True, help='Print {"id", "name", "scopes", "token"} for scripts.')
@click.option("--token-only", is_flag=True, help="Print the token and nothing else.")
@click.pass_context
def create_key(ctx: click.Context, scopes: str, name: str, as_json: bool, token_only: bool) -> None:
    """Create a key and print its token, which cannot be shown again.

    \b
    Example:
      TOKEN=$(piggybank apikeys create --scopes ledger:write,accounts:read --name backend --token-only)
    """
    if as_json and token_only:
        raise click.UsageError("--json and --token-only are two ways to print it: take one")
    wanted = list(keys.SCOPES) if scopes == "all" else [scope.strip() for scope in scopes.split(",") if scope.strip()]
    unknown = [scope for scope in wanted if scope not in keys.SCOPES]
    if unknown or not wanted:
        said = f"{', '.join(unknown) or 'nothing'} is not a scope; allowed: {', '.join(keys.SCOPES)}"
        raise click.BadParameter(said, param_hint="--scopes")

    async def run(here: Here) -> dict[str, Any]:
        async with here.db.write() as write:
            key, token = await keys.create(write, name=name, scopes=wanted, actor=COMMAND_LINE)
        return {"id": key.id, "name": key.name, "scopes": key.scopes, "token": token}

    key = _run(ctx, run)
    if token_only:
        click.echo(key["token"])
        return
    _say(as_json, key, f"key {key['id']} ({', '.join(key['scopes'])})\n{key['token']}\nThis is the only time that the token is shown.")


@apikeys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.pass_context
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """List the keys that are in force (at most 1,000).

    \b
    Example:
      piggybank apikeys list
    """

    async def run(here: Here) -> list[dict[str, Any]]:
        async with here.db.read() as read:
            return [
                {"id": key.id, "name": key.name, "scopes": key.scopes, "hint": key.hint, "created_at": ids.time_of(key.id)}
                for key in await keys.page(read, after=None, limit=LIST_MAX)
            ]

    rows = _run(ctx, run)
    lines = [f"{row['id']}  ..{row['hint']}  {row['name']}  {','.join(row['scopes'])}" for row in rows]
    _say(as_json, {"items": rows}, "\n".join(lines) or "no keys yet; create one: piggybank apikeys create --help")


@apikeys.command("revoke")
@click.argument("key_id", type=click.UUID)
@click.pass_context
def revoke_key(ctx: click.Context, key_id: UUID) -> None:
    """End the key KEY_ID for good, within a second everywhere.

    \b
    Example:
      piggybank apikeys revoke 0192f0c1-2a7b-7c33-9d0e-3f1f5a1b6c00
    """

    async def run(here: Here) -> None:
        await keys.revoke(here.db, here.tokens, key_id, actor=COMMAND_LINE)

    _run(ctx, run)
    click.echo("revoked")


def _run(ctx: click.Context, command: Callable[[Here], Awaitable[_T]]) -> _T:
    """Run `command` with the installation's stores open."""
    root = ctx.find_root().obj or {}
    chosen = settings.load(root.get("data_dir"))
    if not chosen.database_url:
        raise errors.CannotProceed(what=f"no database is known in {chosen.data_dir}", do="start one: piggybank up")

    async def with_stores() -> _T:
        db, cache = Database.of(chosen), Cache.of(chosen)
        try:
            async with db.read() as read:
                if await read.scalar(text("SELECT to_regclass('public.restores')")) is None:
                    raise errors.SchemaBehind
                epoch, closed, db.recovering = await installation.epoch(read)
            cache.know(epoch, closed=closed)
            return await command(Here(chosen, db, Tokens(db, cache)))
        finally:
            await cache.close()
            await db.close()

    return asyncio.run(with_stores())


async def _link(here: Here, purpose: links.Purpose, user_id: UUID | None) -> dict[str, str]:
    async with here.db.write() as write:
        token = await links.create(write, purpose, user_id)
        audit.record(write, COMMAND_LINE, f"link.{purpose}", f"user:{user_id}" if user_id else "anyone")
    return {"link": links.address(here.settings.url, purpose, token), "token": token}


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the password at: use --password-stdin")
    asked: str = click.prompt(f"Password (at least {passwords.MIN_CHARACTERS} characters)", hide_input=True, confirmation_prompt=True)
    return asked


def _say(as_json: bool, machine: dict[str, Any], human: str) -> None:
    click.echo(msgspec.json.encode(machine).decode() if as_json else human)


def _say_link(as_json: bool, link: dict[str, str]) -> None:
    _say(as_json, link, f"{link['link']}\nIt works once.")
