"""The command `piggybank`. Commands are imported when they are asked for: `status` should not wait for the web's libraries.

Exit codes: 0 well, 1 not (the sentence on standard error says what to do), 2 used wrongly or a setting that is not allowed;
`doctor` and `verify` say in their help what theirs mean.
"""

import gc
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from piggybank import __version__, errors

# name -> where it is, and what `piggybank --help` says without importing it
COMMANDS = {
    "up": ("piggybank.cli.appliance:up", "Start everything here: stores, schema, web, workers."),
    "down": ("piggybank.cli.appliance:down", "Stop everything of this data folder, in order."),
    "status": ("piggybank.cli.appliance:status", "What runs, since when, on which URL."),
    "doctor": ("piggybank.cli.appliance:doctor", "Look for what is wrong, and say what to do."),
    "serve": ("piggybank.cli.serving:serve", "Run one web process (what `up` and containers start)."),
    "worker": ("piggybank.cli.serving:worker", "Run one job worker (what `up` and containers start)."),
    "simulator": ("piggybank.cli.serving:simulator", "Run the simulator of the payment provider (what `up` starts in simulator mode)."),
    "provider": ("piggybank.cli.provider:provider", "The payment provider: mode, keys, webhook, comparing books."),
    "move": ("piggybank.cli.move:move", "Move the database to another PostgreSQL server."),
    "migrate": ("piggybank.cli.appliance:migrate", "Bring the database's schema to this version."),
    "upgrade": ("piggybank.cli.upgrade:upgrade", "Another version, or PostgreSQL's next major, with a backup and a way back."),
    "verify": ("piggybank.cli.ledger:verify", "Re-derive every balance from its rows."),
    "partitions": ("piggybank.cli.partitions:partitions", "Months of transactions: turn on, make ahead, list, archive."),
    "backup": ("piggybank.cli.backup:backup", "Make, list and prove backups; the recovery key; restore drills."),
    "restore": ("piggybank.cli.restore:restore", "Bring a backup back, into a new folder or database; end a recovery."),
    "bench": ("piggybank.cli.bench:bench", "Measure what this machine carries, on a database to throw away."),
    "phase": ("piggybank.cli.phase:phase", "Which phase this runs as, what another would change, and the change."),
    "failover": ("piggybank.cli.phase:failover", "Make a standby the primary."),
    "capacity": ("piggybank.cli.capacity:capacity", "What is carried, against the phase's limits: which comes first, and when."),
    "cost": ("piggybank.cli.cost:cost", "What a phase costs a month and a user, beside the design's figures."),
    "secrets": ("piggybank.cli.secrets:secrets", "New passwords and keys while people pay."),
    "users": ("piggybank.cli.people:users", "Create, invite, list and unlock users; one-time links."),
    "apikeys": ("piggybank.cli.people:apikeys", "Create, list and revoke API keys."),
    "currencies": ("piggybank.cli.ledger:currencies", "List, enable and disable currencies."),
    "support-bundle": ("piggybank.cli.support:support_bundle", "What somebody needs to help, in one file, without a secret."),
    "cache": ("piggybank.cli.cache:cache", "Form the cache's cluster out of its nodes, on containers."),
    "selftest": ("piggybank.cli.selftest:selftest", "Make a deposit, take it back, and check the trial balance."),
    "uninstall": ("piggybank.cli.appliance:uninstall", "Stop and remove; the data stays unless told twice."),
}


class Commands(click.Group):
    """Reads `COMMANDS`; prints an `errors.Error` as a sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls them so
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(_imported(module), name)
        assert isinstance(command, click.Command)
        _take_data_dir(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.Error as error:
            click.echo(f"piggybank: {_sentence(error)}", err=True)
            ctx.exit(2 if isinstance(error, errors.BadSetting) else 1)
        except PermissionError as error:
            click.echo(f"piggybank: {error.strerror}: {error.filename}; run it as the user who owns the data folder, or as root", err=True)
            ctx.exit(1)


def _imported(module: str) -> ModuleType:
    """What an import makes stays: looking through it again and again for garbage is a fifth of a command's start."""
    gc.disable()
    try:
        found = import_module(module)
    finally:
        gc.enable()
    if (structlog := sys.modules.get("structlog")) is not None:  # a command that needs no log is not to wait for the library
        # what a command prints is read by machines: a log line in it, as of a replica that is away, made it no JSON
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    return found


def _sentence(error: errors.Error) -> str:
    """What is so, and what to do about it, where the error knows both."""
    match error.details:
        case {"what": what, "do": do}:
            return f"{what}; {do}"
        case _:
            return str(error)


def _remember_data_dir(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.find_root().ensure_object(dict)["data_dir"] = value


def _data_dir_option() -> click.Option:
    return click.Option(
        ["--data-dir"],
        type=click.Path(path_type=Path),
        expose_value=False,
        is_eager=True,
        callback=_remember_data_dir,
        help="Folder of the installation (else PIGGYBANK_DATA_DIR, else the default folder).",
    )


def _take_data_dir(command: click.Command) -> None:
    """`--data-dir` may stand behind any command, too."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_data_dir(below)
        if not command.invoke_without_command:
            return
    if all(parameter.name != "data_dir" for parameter in command.params):
        command.params.append(_data_dir_option())


@click.group(cls=Commands, params=[_data_dir_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="piggybank")
@click.pass_context
def main(ctx: click.Context) -> None:
    """A self-hosted wallet: accounts, deposits, withdrawals, transfers over REST.

    \b
    Examples:
      piggybank up --detach
      piggybank status
      piggybank apikeys create --scopes all --name backend --json
      piggybank --data-dir /srv/second-bank doctor
    """
    ctx.ensure_object(dict)
