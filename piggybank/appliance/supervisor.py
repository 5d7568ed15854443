"""`piggybank up`: the stores, the schema, the web processes and the workers of one data folder, kept alive.

Children outlive a supervisor that is killed; the next one adopts them, so neither a connection nor a cache is lost. What dies is
started again, at once at first and then ever slower. The end is in order: the web drains, the workers finish, the Valkeys save,
PostgreSQL writes its last checkpoint.

A full disk ends none of that: what cannot be written now is tried again, and saying what happens never decides what happens.
"""

import asyncio
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import asyncpg
import msgspec
import psutil

from piggybank import errors, metrics, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import failover, folder, logs, migrating, move, orders, processes, rotation, system_user, topology, web
from piggybank.appliance.backups.schedule import Schedule
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.orders import Order
from piggybank.appliance.processes import Program, Running
from piggybank.capacity import phases
from piggybank.db import installation, months
from piggybank.settings import Settings

LOOK_EVERY_S = 0.2
ROTATE_EVERY_S = 10.0
FIRST_PAUSE_S = 0.1  # before a dead child is started again
LONGEST_PAUSE_S = 30.0
ORDER_STOP_S = 5.0  # so long an order may still end by itself; the stores end under it then, and the next start goes on
STEADY_S = 60.0  # a child that lived that long starts again without a pause

TROUBLE = (OSError, subprocess.SubprocessError, psutil.Error)  # no space, no memory, no process: it may pass

AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError)  # the database does not answer, or will not

_log = telemetry.logger("supervisor")


def _tell_line(line: str) -> None:
    _tell("info", "stores", step=line)


def _tell(level: Literal["info", "warning", "error"], event: str, **details: Any) -> None:
    """Log it, if the disk takes it."""
    with suppress(OSError):
        getattr(_log, level)(event, **details)


class Pause:
    """How long to wait before a child is started again: doubled each time, forgotten after a steady life."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self.until = 0.0

    def died(self, lived_s: float) -> float:
        """Note a death; returns the pause."""
        self._pause_s = FIRST_PAUSE_S if lived_s > STEADY_S or not self._pause_s else min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.until = time.monotonic() + self._pause_s
        return self._pause_s

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until


class Supervisor:
    """Of one data folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data_dir = settings.data_dir
        self.stores: Embedded | None = None
        self.programs: list[Program] = []
        self.running: dict[str, Running] = {}
        self._pauses: dict[str, Pause] = {}
        self._down: set[str] = set()
        self._said = ""  # the state on the card
        self._busy: set[str] = set()  # web processes and workers that are being replaced
        self._at_work: threading.Thread | None = None  # on an order of the command line
        self._stop = threading.Event()
        self._schedule: Schedule | None = None  # of backups

    def run(self) -> None:
        """Until SIGTERM or SIGINT; raises `errors.AlreadyRunning`, `errors.StoreFailed`, `errors.CannotProceed`."""
        self.user = prepare_folder(self.data_dir)
        with folder.Lock(self.data_dir):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._told_to_stop)
            orders.forget(self.data_dir)
            folder.write_card(self.settings, "starting")
            try:
                self._start()
                self._say("running")
                _tell("info", "running", url=self.settings.url, data_dir=str(self.data_dir))
                self._watch()
            finally:
                self._say("stopping")
                self._stop_all()
                with suppress(OSError):
                    folder.remove_card(self.data_dir)

    def _start(self) -> None:
        if settings_file.embedded_stores(self.data_dir):
            self.stores = Embedded(self.data_dir, topology.wanted(self.settings))
            self.stores.start(_tell_line)
            for name, store in self.stores.running.items():
                _tell("info", "adopted" if store.adopted else "started", name=name, pid=store.pid)
            self.settings = settings_file.load(self.data_dir)
        if (left := move.settle(self.data_dir)) is not None:
            _tell("warning", "move_undone" if left.undone else "move_finished")
        for revision in asyncio.run(migrating.bring_schema(self.settings)):
            _tell("info", "migrated", revision=revision)
        if self.settings.backup_target:  # before anybody pays: this may be an old copy that comes back (backups/schedule.py)
            self._schedule = Schedule(self.settings)
            self._schedule.start()
        self.programs = self._wanted_programs(self.settings)
        self._adopt()
        if not self.running:
            web.check_port(self.settings)
            metrics.wipe(web.counting_folder(self.data_dir))  # nobody counts there: begin at 0
        for program in self.programs:
            self._ensure(program)
        changed = self._changed(self.programs)
        if changed:  # what somebody else started may have another cache; `_finish` opens it
            asyncio.run(installation.close_cache(self.settings.owner_database_url))
        for program in changed:
            self._replace(program, self.settings, _tell_line)
        if self.stores is not None:
            self.stores.shrink(_tell_line)  # what a change of the phase that was interrupted left
        self._at_work = threading.Thread(target=self._finish, name="finish", daemon=True)
        self._at_work.start()

    def _finish(self) -> None:
        """What a change that was interrupted left, and what a phase has that takes its time."""
        try:
            asyncio.run(installation.open_cache(self.settings.owner_database_url))
            if phases.of(self.settings.phase).partitions:
                asyncio.run(months.enable(self.settings.owner_database_url, tell=_tell_line))
        except (*TROUBLE, *AWAY, errors.Error) as error:
            _tell("error", "not_finished", error=str(error), do="piggybank phase apply, again")

    def _wanted_programs(self, settings: Settings) -> list[Program]:
        runs_as = web.may_run_as(self.user, self.data_dir)
        if runs_as != self.user:
            why = f"user {system_user.NAME} cannot read the program"
            _tell("warning", "web_runs_as_root", why=why, do="install it with installer/install.sh")
        system_user.make_folder(web.counting_folder(self.data_dir), runs_as)
        mode = asyncio.run(installation.stored_mode(settings.database_url))
        if mode == "simulator":
            system_user.make_folder(self.data_dir / web.SIMULATOR, runs_as)
        return web.programs(settings, runs_as, mode)

    def _adopt(self) -> None:
        """Live processes of a supervisor that was killed, or of an earlier version; those that were started with something else are
        replaced when the rest runs, one after the other."""
        self._stop_unwanted()
        for program in self.programs:
            found = processes.find(program)
            if found is not None:
                self.running[program.name] = found
                _tell("info", "adopted", name=program.name, pid=found.pid, to_be_replaced=found.mark != program.mark)

    def _stop_unwanted(self) -> None:
        for program in web.beyond(self.settings, self.programs) if self.programs else []:
            if (found := processes.find(program)) is not None:
                _tell("info", "stopping_unwanted", name=program.name, pid=found.pid)
                found.stop()

    def _ensure(self, program: Program) -> None:
        if program.name not in self.running:
            self.running[program.name] = processes.start(program)
            _tell("info", "started", name=program.name, pid=self.running[program.name].pid)

    def _watch(self) -> None:
        rotated_at = 0.0
        while not self._stop.wait(LOOK_EVERY_S):
            if self._said != "running":
                self._say("running")
            if self.stores is not None:
                for name, known in list(self.stores.running.items()):
                    if name not in self.stores.busy:
                        self._look_after(name, known)
            for name, known in list(self.running.items()):
                if name not in self._busy:
                    self._look_after(name, known)
            self._look_for_orders()
            if time.monotonic() - rotated_at > ROTATE_EVERY_S:
                rotated_at = time.monotonic()
                self._rotate()

    def _look_after(self, name: str, known: Running) -> None:
        """Notice a death once; start again when its pause is over."""
        if known.alive():
            self._down.discard(name)
            return
        present = self.stores.running if self.stores is not None and name in self.stores.running else self.running
        if present.get(name) is not known:  # stopped or replaced since somebody looked
            return
        pause = self._pauses.setdefault(name, Pause())
        if name not in self._down:
            self._down.add(name)
            pause_s = pause.died(time.time() - known.since)
            with suppress(OSError):
                logs.note_crash(self.data_dir / "logs", name, known.pid, known.exit_code)
            _tell("error", "died", name=name, pid=known.pid, exit_code=known.exit_code, again_in_s=round(pause_s, 1))
        if not pause.over:
            return
        try:
            if self.stores is not None and name in self.stores.programs:
                fresh = self.stores.ensure(name)
            else:
                self._close_exchanged_cache(settings_file.load(self.data_dir), _tell_line)  # it reads them anew
                fresh = self.running[name] = processes.start(known.program)
        except (*TROUBLE, errors.Error, *AWAY) as error:
            _tell("error", "not_started", name=name, error=str(error), again_in_s=round(pause.died(0), 1))
            return
        self._down.discard(name)
        _tell("info", "started", name=name, pid=fresh.pid)

    def _look_for_orders(self) -> None:
        """Orders take minutes (a database is copied), and what dies meanwhile is still to be started again: a thread of their own."""
        if self._at_work is not None and self._at_work.is_alive():
            return
        if (order := orders.take(self.data_dir)) is not None:
            self._at_work = threading.Thread(target=self._carry_out, args=(order,), name=order.verb, daemon=True)
            self._at_work.start()

    def _carry_out(self, order: Order) -> None:
        reporting = orders.Reporting(self.data_dir, order)

        def tell(line: str) -> None:
            if self._stop.is_set() and order.verb == "phase":  # a failover is not left half done
                raise errors.CannotProceed(what="the supervisor was told to stop", do="start it again: piggybank up; then repeat this")
            _tell("info", order.verb, step=line)
            reporting.tell(line)

        try:
            if order.verb == "phase":
                self._apply_phase(int(order.argument), tell)
            elif order.verb == "rotate":
                self._rotate_secrets(order.argument, tell)
            else:
                self._fail_over(order, tell)
        except errors.Error as error:
            _tell("error", "order_failed", verb=order.verb, error=str(error))
            details = error.details
            reporting.failed(str(details.get("what", error)), str(details.get("do", f"look into {self.data_dir}/logs, then again")))
        except Exception as error:
            _log.exception("order_failed", verb=order.verb)
            reporting.failed(f"{type(error).__name__}: {error}", f"look into {self.data_dir}/logs/supervisor.log, then again")
        else:
            reporting.done()

    def _apply_phase(self, number: int, tell: Tell) -> None:
        """First what is added, then the web processes and workers, one after the other, then what is not needed any more."""
        before = topology.written_phase(self.data_dir)
        topology.write_phase(self.data_dir, number, self.user)
        try:
            if self.stores is not None:
                self.stores.grow(topology.wanted(settings_file.load(self.data_dir)), tell)
            self._roll(tell)
        except BaseException:
            topology.write_phase(self.data_dir, before, self.user)  # a start finds what stood before; `apply` may be repeated
            raise
        if self.stores is not None:
            self.stores.shrink(tell)
        if phases.of(number).partitions:
            asyncio.run(months.enable(self.settings.owner_database_url, tell=tell))

    def _fail_over(self, order: Order, tell: Tell) -> None:
        if self.stores is None or topology.DATABASE not in self.stores.topology.embedded:
            raise errors.CannotProceed(
                what="the database is yours, elsewhere", do="fail it over with its own tool; the pooler or the address must follow it"
            )
        failover.fail_over(self.stores, order.argument, tell, accept_loss=order.accept_loss, roll=lambda: self._roll(tell))

    def _rotate_secrets(self, name: str, tell: Tell) -> None:
        if name == rotation.SETTINGS:  # the new one stands in the operator's file
            self._roll(tell)
        elif self.stores is None:
            raise errors.CannotProceed(what="the stores are yours, elsewhere", do="change their passwords there, then the addresses")
        else:
            rotation.rotate(self.stores, name, lambda: self._roll(tell), tell)

    def _roll(self, tell: Tell) -> None:
        """Move to the settings as they are now: what is new is started first, so that somebody always answers.

        The cache is read again when all have the same one: where this fails on the way, not before it has been repeated.
        """
        settings = settings_file.load(self.data_dir)
        self._close_exchanged_cache(settings, tell)
        wanted = self._wanted_programs(settings)
        for program in self._changed(wanted):
            self._replace(program, settings, tell)
        for name in [name for name in self.running if name not in {program.name for program in wanted}]:
            tell(f"stopping {name}")
            self._busy.add(name)
            self.running.pop(name).stop()
            self._busy.discard(name)
        self.programs, self.settings = wanted, settings
        asyncio.run(installation.open_cache(settings.owner_database_url))

    def _close_exchanged_cache(self, settings: Settings, tell: Tell) -> None:
        """Processes that have different caches do not see each other's writes there: nobody reads either of them."""
        if settings.cache_url != self.settings.cache_url:
            tell("the cache is not read until every process has the new cache_url")
            asyncio.run(installation.close_cache(self.settings.owner_database_url))

    def _changed(self, wanted: list[Program]) -> list[Program]:
        """Those that do not run, or run with something else; what is new comes first."""
        changed = [program for program in wanted if program.name not in self.running or self.running[program.name].mark != program.mark]
        return sorted(changed, key=lambda program: program.name in self.running)

    def _replace(self, program: Program, settings: Settings, tell: Tell) -> None:
        """A web process is started beside the one that it replaces, which then drains: somebody always listens. Others first end."""
        name, is_web = program.name, program.name.startswith("web-")
        self._busy.add(name)
        try:
            old = self.running.pop(name, None)
            if old is not None and not is_web:
                old.stop()
            self.running[name] = fresh = processes.start(program)
            if is_web:
                self._take_place_of(old, fresh, settings)
        finally:
            self._busy.discard(name)
        tell(f"{name} {'replaced' if old else 'started'}")

    def _take_place_of(self, old: Running | None, fresh: Running, settings: Settings) -> None:
        try:
            web.wait_listening(fresh, settings.port)
        except errors.CannotProceed:
            if old is not None and old.alive():  # it goes on as it was
                fresh.stop()
                old.write_record()
                self.running[fresh.program.name] = old
            raise
        if old is not None:
            old.stop()

    def _rotate(self) -> None:
        try:
            for name in logs.rotate(self.data_dir / "logs"):
                _tell("info", "rotated", log=name)
        except OSError as error:
            _tell("warning", "not_rotated", error=str(error))

    def _stop_all(self) -> None:
        if self._schedule is not None:
            self._schedule.stopping.set()
        if self._at_work is not None:
            self._at_work.join(ORDER_STOP_S)
        for kind in ("web-", "worker-", web.SIMULATOR):
            found = [child for name, child in self.running.items() if name.startswith(kind)]
            for child in found:
                child.signal(child.program.stop_signal)
            for child in found:
                _tell("info", "stopped", name=child.program.name, pid=child.pid, gently=child.stop())
        self._stop_unwanted()  # what an upgrade that was killed has tried
        if self.stores is not None:
            for name, gently in self.stores.stop().items():
                _tell("info", "stopped", name=name, gently=gently)

    def _say(self, state: str) -> None:
        try:
            folder.write_card(self.settings, state)
            self._said = state
        except TROUBLE as error:
            _tell("warning", "card_not_written", state=state, error=str(error))

    def _told_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def stop_orphans(settings: Settings) -> list[str]:
    """Stop what a killed supervisor left running, in order; returns the names. Takes the folder's lock."""
    user = prepare_folder(settings.data_dir)
    with folder.Lock(settings.data_dir):
        stopped = []
        plain = Program(name="", argv=(), run_dir=settings.data_dir / "run", log=Path(), stop_timeout_s=web.WEB_STOP_TIMEOUT_S)
        for pattern in web.RECORDS:
            for path in sorted(plain.run_dir.glob(pattern)):
                if (found := processes.find(msgspec.structs.replace(plain, name=path.stem))) is not None:
                    found.stop()
                    stopped.append(path.stem)
        if (settings.data_dir / "stores" / "secrets.toml").exists():
            stores = Embedded(settings.data_dir)
            stores.find_all(user)
            stopped += stores.stop()
        folder.remove_card(settings.data_dir)
        return stopped
