"""`piggybank secrets rotate`."""

import secrets as random
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import folder, orders, processes, rotation, topology
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.system_user import ours, shared
from piggybank.cli.appliance import record_act, settings_of
from piggybank.settings import OPERATOR_FILE, Settings

CALLBACK = "eft_callback_secret"
GIVEN = ("revio_key", "eft_client_secret")  # by Revio, where the old one stays good until it is withdrawn
NAMES = (*rotation.NAMES, CALLBACK, *GIVEN)
SECRET_BYTES = 24


@click.group()
def secrets() -> None:
    """New passwords and keys while people pay: the old one is good until everybody has the new one.

    \b
    Examples:
      piggybank secrets rotate
      piggybank secrets rotate revio_key < new-key
    """


@secrets.command()
@click.argument("name", required=False, type=click.Choice(NAMES))
@click.option("--drop-old", is_flag=True, help="Of eft_callback_secret: Revio calls the new address; the old one is good no longer.")
@click.pass_context
def rotate(ctx: click.Context, name: str | None, drop_old: bool) -> None:
    """Without a name: the passwords of all stores that run in the data folder. No request fails.

    \b
    database             the passwords of all PostgreSQL roles
    cache, queue         those of the Valkeys
    revio_key, eft_client_secret    read from standard input; withdraw the old one at Revio afterwards
    eft_callback_secret  both addresses are good until --drop-old

    API keys, sessions and one-time links are people's own: make a new one, then revoke the old one (piggybank apikeys).

    \b
    Examples:
      piggybank secrets rotate
      piggybank secrets rotate database
      piggybank secrets rotate eft_callback_secret
      piggybank secrets rotate eft_callback_secret --drop-old
    """
    settings = settings_of(ctx)
    if platform := settings_file.orchestrator(settings.data_dir):
        raise errors.CannotProceed(
            what=f"{platform} starts the stores here, and has their passwords",
            do="change them there, then start what reads them again: README, New passwords",
        )
    if folder.read_card(settings.data_dir) is None:
        raise errors.CannotProceed(what="it does not run, and the servers have to be told", do="start it: piggybank up --detach")
    for one in _stores(settings) if name is None else [name]:
        for line in _rotated(settings, one, drop_old=drop_old):
            print(line, file=sys.stderr, flush=True)
        record_act(ctx, "secret.rotate", f"secret:{one}", **({"dropped_old": True} if drop_old else {}))
        click.echo(f"{one}: done")


def _stores(settings: Settings) -> list[str]:
    embedded = settings_file.embedded_stores(settings.data_dir)
    found = [name for name in rotation.NAMES if (topology.DATABASE if name == rotation.DATABASE else name) in embedded]
    if not found:
        raise errors.CannotProceed(what="every store is yours, elsewhere", do="change their passwords there, then the addresses")
    return found


def _rotated(settings: Settings, name: str, *, drop_old: bool) -> Iterator[str]:
    if name in rotation.NAMES:
        yield from orders.carry_out(settings.data_dir, "rotate", name)
        return
    if variables := settings_file.in_environment(name):
        raise errors.CannotProceed(what=f"{variables[0]} in the environment wins over the file", do="change it where it is set")
    if name in GIVEN:
        if not (value := sys.stdin.readline().strip()):
            raise errors.CannotProceed(what=f"no new {name} came on standard input", do=f"piggybank secrets rotate {name} < FILE")
        last = f"now withdraw the old {name} at Revio"
    else:
        value, last = _next_callback(settings, drop_old=drop_old)
    _keep(settings.data_dir, name, value)
    yield from orders.carry_out(settings.data_dir, "rotate", rotation.SETTINGS)
    yield last


def _next_callback(settings: Settings, *, drop_old: bool) -> tuple[str, str]:
    """The setting's new value, and what is to be done."""
    good = settings.eft_callback_secrets
    if drop_old:
        if len(good) < 2:
            raise errors.CannotProceed(what=f"there is no old {CALLBACK}", do=f"make a new one first: piggybank secrets rotate {CALLBACK}")
        return good[0], "the old address is good no longer"
    if len(good) > 1:
        raise errors.CannotProceed(
            what="two are good already", do=f"tell Revio of the new one, then: piggybank secrets rotate {CALLBACK} --drop-old"
        )
    fresh = random.token_urlsafe(SECRET_BYTES)
    tell = f"tell Revio the new address: {settings.url}/v1/revio/eft/{fresh} ; then: piggybank secrets rotate {CALLBACK} --drop-old"
    return ",".join([fresh, *good]), tell


def _keep(data_dir: Path, name: str, value: str) -> None:
    path, user = data_dir / OPERATOR_FILE, prepare_folder(data_dir)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    processes.write_file(path, settings_file.with_values(text, {name: value}), shared(user, 0o640), ours(user))
