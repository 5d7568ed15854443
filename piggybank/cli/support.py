"""`piggybank support-bundle`."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import support
from piggybank.cli.appliance import settings_of


@click.command("support-bundle")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The file (else piggybank-support-<time>.tar.gz here).")
@click.option("--list", "only_list", is_flag=True, help="Say what would be in it; write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def support_bundle(ctx: click.Context, output: Path | None, only_list: bool, yes: bool) -> None:
    """What somebody needs to help, in one file: versions, settings without secrets, status, doctor, phase, sizes, the ends of the logs.

    Tokens, keys, passwords and e-mail addresses are taken out, and no row of the database is in it. It is listed before it is written,
    and sent nowhere: look into it, then send it to whom you like.

    \b
    Examples:
      piggybank support-bundle --list
      piggybank support-bundle --yes --output /tmp/piggybank-support.tar.gz
    """
    settings = settings_of(ctx)
    if not settings.data_dir.is_dir():
        raise errors.CannotProceed(what=f"there is no installation in {settings.data_dir}", do="name its folder: --data-dir")
    telemetry.configure("error", "console")
    found = list(support.parts(settings))
    for part in found:
        click.echo(f"{len(part.text.encode()):>10,} bytes  {part.name}")
    if only_list:
        return
    path = output or Path(f"piggybank-support-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    if not yes and sys.stdin.isatty() and not click.confirm(f"Write these to {path}?", default=True):
        raise errors.CannotProceed(what="nothing was written", do="piggybank support-bundle --list shows it again")
    support.write(path, found)
    click.echo(f"written: {path} (only you may read it; nothing was sent anywhere)")
    for line in elsewhere(path, settings.data_dir, settings_file.orchestrator(settings.data_dir)):
        click.echo(line)


def elsewhere(path: Path, data_dir: Path, platform: str | None) -> list[str]:
    """On compose: how it comes out of the volume, and the logs, which are the engine's."""
    if platform != "compose":
        return []
    place, kept = path.absolute(), data_dir.absolute()
    if kept not in place.parents:
        found = f"it is in this container: unless {place} is on a volume or a folder of the host, it is gone with it (leave --output away)"
    else:
        found = f"it is in the volume `data`; to have it here, in the installation's folder: bin/compose cp web:{place} ."
    return [found, "the containers' logs are NOT in it: bin/compose logs --no-color --since 24h > logs.txt; read them before you send them"]
