"""`piggybank upgrade`: from the version that runs to another one, while people pay. The *new* version's code does it.

    look       may this version follow that one, is there room, does everything run; nothing is changed
    back up    the whole database, checked (`back_up`)
    migrate    only adding, so that the old code goes on beside the new schema
    try        a web process of the new version, on a port of its own, becomes ready; else it ends here, and nobody noticed
    hand over  `current` is turned; the old supervisor is killed, which its children outlive, and the new one adopts them: the stores go
               on, each web process drains when its successor listens
    verify     everything runs as the new version, and answers
    roll back  where it does not: the link is turned back, the old supervisor returns; the schema stays, since it only has more

`kill -9` on purpose: a supervisor that is asked to end stops what it started, and this way is the one that every version knows, since a
crash goes the same way.
"""

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from piggybank import __version__, errors
from piggybank import settings as settings_file
from piggybank.appliance import (
    binaries,
    change,
    dumps,
    folder,
    migrating,
    orders,
    overview,
    processes,
    reboot,
    stops,
    store_files,
    topology,
    versions,
    web,
)
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.folder import Card
from piggybank.appliance.processes import Program
from piggybank.appliance.server_folders import major_of
from piggybank.db import installation, migrate, revisions, storage
from piggybank.db.storage import MIB, RESERVE_MIB
from piggybank.settings import Settings

LOCK = "upgrade.lock"  # in `run`
TRIAL_TIMEOUT_S = 60
TAKE_OVER_TIMEOUT_S = 120  # a supervisor that adopts and replaces one web process after the other
COMMAND_TIMEOUT_S = 240  # more than `up --detach` takes at most
ASK_TIMEOUT_S = 5
POLL_S = 0.1
ELSEWHERE = {
    "compose": "installer/install.sh --docker of that version's checkout",
    "helm": "helm upgrade piggybank deploy/helm/piggybank --reset-then-reuse-values --set image.tag=VERSION",
    "railway": "deploy the image of that version: railway up",
    "ecs": "register the definitions with that version's IMAGE, run piggybank-migrate, update both services: deploy/ecs/README.md",
    "native": "installer/install.sh of that version's checkout",
    "external": "pip install the new version; piggybank migrate; then start the processes again, one after the other",
}


class Upgrade(NamedTuple):
    """From one version to another, as it was looked at."""

    settings: Settings
    before: str  # name of the version that runs
    after: str
    revision: str
    migrations: list[str]
    database_mib: int

    @property
    def plan(self) -> list[str]:
        """What would be done."""
        schema = f"migrate the schema from {self.revision} to {self.migrations[-1]}" if self.migrations else "the schema stays as it is"
        return [
            f"back up the database ({self.database_mib:,} MiB) to {self.settings.data_dir / dumps.FOLDER}",
            f"{schema}; it only adds, so that {self.before} goes on beside it",
            f"try a web process of {self.after} on a port of its own",
            f"hand over from {self.before} to {self.after}: each web process drains when its successor listens; writes go on",
            f"verify, and go back to {self.before} where something does not run",
        ]


def back_up(settings: Settings, mark: str, tell: Tell) -> None:
    """The one place that makes the backup before a change of version; raises `errors.CannotProceed`."""
    tell(f"backed up: {dumps.dump(settings, mark)}")


def look(settings: Settings, *, without_backup: bool = False) -> Upgrade:
    """Whether this process' version may take over; changes nothing. Raises `errors.CannotProceed` with what to do first."""
    data_dir = settings.data_dir
    present, after = versions.present(data_dir), versions.running(data_dir)
    if not present or not after:
        target = change.target_of(settings)
        raise errors.CannotProceed(what=f"{data_dir} was not installed by installer/install.sh", do=f"here it is: {ELSEWHERE[target]}")
    card = folder.read_card(data_dir)
    # the link is ahead of what runs where an upgrade was killed
    before = (versions.of_process(data_dir, card.pid) if card is not None else "") or present
    if before == after:
        known = ", ".join(versions.here(data_dir))
        raise errors.CannotProceed(what=f"{after} runs already; here are {known}", do="name another: --to VERSION, --to FILE")
    stops.check(versions.number(before), versions.number(after), stops.table())
    if card is None or card.state != "running":
        raise errors.CannotProceed(what="it does not run, and what does not run cannot be tried", do="start it: piggybank up --detach")
    if orders.under_way(data_dir):
        raise errors.CannotProceed(what="the supervisor is at work on an order", do="wait until that is done, then again")
    revision, size_mib = asyncio.run(_ask(settings))
    if not revisions.is_known(revision):
        raise errors.CannotProceed(
            what=f"{after} is older than the schema ({revision}); nothing was changed",
            do="install the version that brought it, or restore a backup of before",
        )
    lacking = migrate.missing(revision)
    stops.check(versions.number(before), versions.number(after), [], contracts=stops.of_migrations(lacking))
    storage.check_room(data_dir, RESERVE_MIB + (0 if without_backup else size_mib), "a backup may need")
    return Upgrade(settings, before, after, revision, [script.revision for script in lacking], size_mib)


def prepare(settings: Settings, tell: Tell) -> None:
    """Where nothing runs, and before `current` is turned: may this version follow, and the backup, where a migration is due.

    The stores run for as long as that takes. Raises `errors.CannotProceed`; then the version of before starts as it did.
    """
    data_dir = settings.data_dir
    embedded = settings_file.embedded_stores(data_dir)
    if embedded and not (data_dir / "stores" / "secrets.toml").exists():
        return  # nothing was ever started here
    primary = data_dir / "stores" / topology.primary_of(data_dir / "stores")
    if topology.DATABASE in embedded and primary.exists() and major_of(primary) != binaries.POSTGRES_MAJOR:
        return  # `upgrade postgres` of this version comes first: it makes a backup, and keeps the old database
    prepare_folder(data_dir)
    stores = Embedded(data_dir, topology.wanted(settings)) if embedded else None
    with folder.Lock(data_dir):
        try:
            if stores is not None:
                stores.start()
                settings = settings_file.load(data_dir)
            if asyncio.run(_is_due(settings)):
                _, size_mib = asyncio.run(_ask(settings))
                storage.check_room(data_dir, RESERVE_MIB + size_mib, "a backup may need")
                back_up(settings, __version__, tell)
        finally:
            if stores is not None and not any(store.adopted for store in stores.running.values()):
                stores.stop()  # what was left running goes on: `up` adopts it


async def _is_due(settings: Settings) -> bool:
    try:
        return bool(await migrating.migrations_due(settings.owner_database_url))
    except (OSError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="look at owner_database_url") from cause


def carry_out(made: Upgrade, tell: Tell, *, without_backup: bool = False) -> None:
    """Do it. Raises `errors.CannotProceed`; then the version from before runs, or it says what does."""
    with _alone(made.settings.data_dir):
        _carry_out(made, tell, without_backup=without_backup)


def _carry_out(made: Upgrade, tell: Tell, *, without_backup: bool) -> None:
    settings = made.settings
    if without_backup:
        tell("no backup was made, as you asked")
    else:
        back_up(settings, versions.number(made.after), tell)
    for revision in asyncio.run(migrating.bring_schema(settings)):
        tell(f"migrated: {revision}")
    _try(settings, made.after)
    tell(f"a web process of {made.after} is ready")
    with _undisturbed():
        try:
            _hand_over(made)
        except (errors.Error, OSError, subprocess.SubprocessError, psutil.Error) as cause:
            tell(f"{made.after} does not take over: {_words(cause)}")
            _roll_back(made, tell)
            raise errors.CannotProceed(
                what=f"{made.after} did not come up; {made.before} runs again, and nothing was lost",
                do=f"look into {settings.data_dir}/logs/supervisor.log",
            ) from cause
    tell(f"{made.after} runs; {made.before} stays beside it")
    for name in versions.remove_old(settings.data_dir, made.before):
        tell(f"removed {name}, which nothing runs from")


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Raises `errors.CannotProceed` while another one is at it: each would kill the other's supervisor."""
    handle = os.open(data_dir / "run" / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise errors.CannotProceed(what="another upgrade is under way", do="wait until it is done") from cause
        yield
    finally:
        os.close(handle)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A terminal that is closed, a Ctrl-C: half a hand-over is worse than either version, and it takes a minute."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _ask(settings: Settings) -> tuple[str, int]:
    try:
        connection = await asyncpg.connect(settings.owner_database_url, timeout=ASK_TIMEOUT_S)
        try:
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
            revision = await connection.fetchval("SELECT version_num FROM alembic_version")
        finally:
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="piggybank status") from cause
    return str(revision), int(size) // MIB


def _try(settings: Settings, name: str) -> None:
    """Start one web process of this version beside the others, on another port, and end it again."""
    user = web.may_run_as(prepare_folder(settings.data_dir), settings.data_dir)
    port = store_files.free_ports(1)[0]
    if (left := processes.find(_plain(settings, web.TRIAL))) is not None:  # by an upgrade that was killed
        left.stop()
    tried = processes.start(
        Program(
            name=web.TRIAL,
            argv=(*web.command(settings.data_dir, "serve"), "--port", str(port)),
            run_dir=settings.data_dir / "run",
            log=settings.data_dir / "logs" / f"{web.TRIAL}.log",
            user=user,
            environment=web.environment(settings.data_dir),
            stop_timeout_s=web.WEB_STOP_TIMEOUT_S,
        )
    )
    try:
        until = time.monotonic() + TRIAL_TIMEOUT_S
        while not web.is_ready(settings.listen, port, tls=bool(settings.tls_cert)):
            if not tried.alive() or time.monotonic() > until:
                raise errors.CannotProceed(
                    what=f"a web process of {name} does not become ready; the version from before runs on, and nothing was lost",
                    do=f"look at the end of {tried.program.log}",
                )
            time.sleep(POLL_S)
    finally:
        tried.stop()


def _hand_over(made: Upgrade) -> None:
    data_dir = made.settings.data_dir
    if (card := folder.read_card(data_dir)) is None:  # it had time to end, or to be another one, while the backup was made
        raise errors.CannotProceed(what="the supervisor ended meanwhile", do="piggybank status")
    supervised = reboot.supervises(data_dir, card.pid)
    versions.point(data_dir, made.after)
    _kill(card)
    _start(data_dir, made.after, supervised=supervised)
    _verify(data_dir, made.after)


def _roll_back(made: Upgrade, tell: Tell) -> None:
    """The version from before, on the schema as it is now. Raises `errors.CannotProceed` where it cannot return."""
    data_dir = made.settings.data_dir
    card = folder.read_card(data_dir)
    supervised = reboot.supervises(data_dir, card.pid) if card is not None else False
    versions.point(data_dir, made.before)
    if card is not None:
        _kill(card)
    if made.migrations and not _knows_newer_schemas(data_dir, made.before):
        live = ", ".join(process.name for process in overview.processes_of(made.settings))
        raise errors.CannotProceed(
            what=f"{made.before} is too old to start on the new schema; what runs goes on ({live}), and nobody looks after it",
            do=f"{versions.python(data_dir, made.after)} -m piggybank --data-dir {data_dir} up --detach",
        )
    _start(data_dir, made.before, supervised=supervised)
    _verify(data_dir, made.before)
    tell(f"{made.before} runs again")


def _kill(card: Card) -> None:
    with suppress(ProcessLookupError):
        if folder.runs(card):  # its pid may be anybody's by now
            os.kill(card.pid, signal.SIGKILL)
    _wait(lambda: not folder.runs(card), "the old supervisor does not end")


def _start(data_dir: Path, name: str, *, supervised: bool) -> None:
    """By systemd, which starts what was killed by itself, or by hand."""
    if supervised:
        return
    command = [str(versions.python(data_dir, name)), "-P", "-m", "piggybank", "--data-dir", str(data_dir), "up", "--detach"]
    # what `up --detach` leaves behind must not keep us waiting for the end of a pipe
    log = data_dir / "logs" / "upgrade.log"
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            cwd="/",
            start_new_session=True,  # a Ctrl-C is not for it
        )
    if done.returncode != 0:
        raise errors.CannotProceed(what=f"piggybank up of {name} ended with {done.returncode}", do=f"look at the end of {log}")


def _verify(data_dir: Path, name: str) -> None:
    """Everything that is not a store runs as that version, and answers."""

    def well() -> bool:
        card = folder.read_card(data_dir)
        if card is None or card.state != "running" or not _is_of(card.pid, data_dir, name):
            return False
        settings = settings_file.load(data_dir)
        mode = asyncio.run(installation.stored_mode(settings.database_url))
        wanted = {program: processes.look(_plain(settings, program)) for program in web.names(settings, mode)}
        of_it = all(live is not None and _is_of(live.pid, data_dir, name) for live in wanted.values())
        return of_it and overview.is_ready(settings)

    _wait(well, f"not everything runs as {name}")


def _plain(settings: Settings, name: str) -> Program:
    return Program(name=name, argv=(), run_dir=settings.data_dir / "run", log=Path())


def _is_of(pid: int, data_dir: Path, name: str) -> bool:
    """Whether that process runs from that version's folder."""
    return versions.of_process(data_dir, pid) == name


def _knows_newer_schemas(data_dir: Path, name: str) -> bool:
    """Versions before this command do not start on a schema that they do not know."""
    return any(versions.place(data_dir, name).glob("venv/lib/python*/site-packages/piggybank/appliance/upgrade.py"))


def _wait(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + TAKE_OVER_TIMEOUT_S
    while not true():
        if time.monotonic() > until:
            raise errors.CannotProceed(what=f"{what} within {TAKE_OVER_TIMEOUT_S} s", do="piggybank doctor")
        time.sleep(POLL_S)


def _words(cause: BaseException) -> str:
    return str(cause.details.get("what", cause)) if isinstance(cause, errors.Error) else f"{type(cause).__name__}: {cause}"


def lines(made: Upgrade) -> Iterator[str]:
    """The plan as numbered lines."""
    yield from (f"{number}. {line}" for number, line in enumerate(made.plan, 1))
