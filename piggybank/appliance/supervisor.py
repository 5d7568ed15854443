"""`piggybank up`: the stores, the schema, the web processes and the workers of one data folder, kept alive.

Children outlive a supervisor that is killed; the next one adopts them, so neither a connection nor a cache is lost. What dies is
started again, at once at first and then ever slower. The end is in order: the web drains, the workers finish, the Valkeys save,
PostgreSQL writes its last checkpoint.

A full disk ends none of that: what cannot be written now is tried again, and saying what happens never decides what happens.
"""

import asyncio
import math
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from uuid import uuid4

import asyncpg
import msgspec
import psutil

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import failover, folder, logs, migrating, move, orders, processes, rotation, topology, web
from piggybank.appliance.backups.schedule import Schedule
from piggybank.appliance.data_folder import had_database, prepare_folder
from piggybank.appliance.embedded import Embedded, Tell, quietly
from piggybank.appliance.fleet import Fleet
from piggybank.appliance.orders import Order
from piggybank.appliance.processes import Program, Running
from piggybank.capacity import phases
from piggybank.db import months
from piggybank.settings import Settings

LOOK_EVERY_S = 0.2
ROTATE_EVERY_S = 10.0
FIRST_PAUSE_S = 0.1  # before a dead child is started again
LONGEST_PAUSE_S = 30.0
ORDER_STOP_S = 5.0  # so long an order may still end by itself; the stores end under it then, and the next start goes on
STEADY_S = 60.0  # a child that lived that long starts again without a pause

TROUBLE = (OSError, subprocess.SubprocessError, psutil.Error)  # no space, no memory, no process: it may pass

CUT = {"what": orders.CUT_SHORT, "do": orders.REPEAT}
AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError)  # the database does not answer, or will not

_log = telemetry.logger("supervisor")


def _tell_line(line: str) -> None:
    _tell("info", "stores", step=line)


def _tell(level: Literal["info", "warning", "error"], event: str, **details: Any) -> None:
    """Log it, if the disk takes it."""
    with suppress(OSError):
        getattr(_log, level)(event, **details)


def _check_cut(cut: threading.Event) -> None:
    if cut.is_set():
        raise errors.CannotProceed(**CUT)


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
        self.data_dir = settings.data_dir
        self.fleet = Fleet(settings, _tell)
        self.stores: Embedded | None = None
        self._pauses: dict[str, Pause] = {}
        self._down: set[str] = set()
        self._said = ""  # the state on the card
        self._at_work: threading.Thread | None = None  # on an order of the command line, or on what the start left to do
        self._cut = threading.Event()  # a failover waits: that ends
        self._stop = threading.Event()
        self._schedule: Schedule | None = None  # of backups

    def run(self) -> None:
        """Until SIGTERM or SIGINT; raises `errors.AlreadyRunning`, `errors.StoreFailed`, `errors.CannotProceed`."""
        self.user = self.fleet.user = prepare_folder(self.data_dir)
        with folder.Lock(self.data_dir):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._told_to_stop)
            orders.forget(self.data_dir)
            folder.write_card(self.fleet.settings, "starting")
            try:
                self._start()
                self._say("running")
                _tell("info", "running", url=self.fleet.settings.url, data_dir=str(self.data_dir))
                self._watch()
            finally:
                self._say("stopping")
                self._stop_all()
                with suppress(OSError):
                    folder.remove_card(self.data_dir)

    def _start(self) -> None:
        if settings_file.embedded_stores(self.data_dir):
            self.stores = Embedded(self.data_dir, topology.to_begin_with(self.fleet.settings))
            if had_database(self.data_dir):
                self.stores.open(_tell_line)
            else:  # nobody pays yet
                self.stores.start(_tell_line)
            for name, store in self.stores.running.items():
                _tell("info", "adopted" if store.adopted else "started", name=name, pid=store.pid)
            self.fleet.settings = settings_file.load(self.data_dir)
        if (left := move.settle(self.data_dir)) is not None:
            _tell("warning", "move_undone" if left.undone else "move_finished")
        for revision in asyncio.run(migrating.bring_schema(self.fleet.settings)):
            _tell("info", "migrated", revision=revision)
        if self.fleet.settings.backup_target:  # before anybody pays: this may be an old copy that comes back (backups/schedule.py)
            self._schedule = Schedule(lambda: settings_file.load(self.data_dir))
            self._schedule.start()
        self.fleet.start()
        self._set_to_work("finish", self._finish)

    def _finish(self, cut: threading.Event) -> None:
        """While people are served: an apply that was cut short is done again; else what the phase lacks is made, as `apply` makes it."""
        tell = self._teller("finish", cut)
        number = topology.applying(self.data_dir)
        try:
            self.fleet.roll(tell)  # those that were adopted
            if number is None:
                if self.stores is not None:
                    self.stores.add_standbys(tell, patient=True)
                self._end_apply(self.fleet.settings.phase, tell, cut)
        except (*TROUBLE, *AWAY, errors.Error) as error:
            _tell("error", "not_finished", error=str(error), do="piggybank phase apply, again")
        if number is not None:
            self._carry_out(Order(id=uuid4().hex[:12], verb="phase", argument=str(number)), cut)

    def _watch(self) -> None:
        rotated_at = 0.0
        while not self._stop.wait(LOOK_EVERY_S):
            if self._said != "running":
                self._say("running")
            if self.stores is not None:
                for name, known in list(self.stores.running.items()):
                    if name not in self.stores.busy:
                        self._look_after(name, known)
            for name, known in list(self.fleet.running.items()):
                if name not in self.fleet.busy:
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
        present = self.stores.running if self.stores is not None and name in self.stores.running else self.fleet.running
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
                fresh = self.fleet.start_again(known, _tell_line)
        except (*TROUBLE, errors.Error, *AWAY) as error:
            _tell("error", "not_started", name=name, error=str(error), again_in_s=round(pause.died(0), 1))
            return
        self._down.discard(name)
        _tell("info", "started", name=name, pid=fresh.pid)

    def _look_for_orders(self) -> None:
        """Orders take minutes (a database is copied), and what dies meanwhile is still to be started again: a thread of their own.

        One after the other; but a bank without a working primary waits for nothing: a failover cuts short what is at work.
        """
        if self._at_work is not None and self._at_work.is_alive():
            if orders.waiting(self.data_dir) == "failover":
                self._cut.set()
                if self.stores is not None:
                    self.stores.end_copies()
        elif (order := orders.take(self.data_dir)) is not None:
            self._set_to_work(order.verb, partial(self._carry_out, order))

    def _set_to_work(self, name: str, work: Callable[[threading.Event], None]) -> None:
        self._cut = threading.Event()
        self._at_work = threading.Thread(target=work, args=(self._cut,), name=name, daemon=True)
        self._at_work.start()

    def _teller(self, verb: str, cut: threading.Event, tell: Tell = quietly) -> Tell:
        """Tells what is done, and ends it where it must end; a failover is not left half done."""

        def told(line: str) -> None:
            if verb in ("phase", "finish") and self._stop.is_set():
                raise errors.CannotProceed(what="the supervisor was told to stop", do="start it again: piggybank up; then repeat this")
            if verb != "failover":
                _check_cut(cut)
            _tell("info", verb, step=line)
            tell(line)

        return told

    def _carry_out(self, order: Order, cut: threading.Event) -> None:
        reporting = orders.Reporting(self.data_dir, order)
        tell = self._teller(order.verb, cut, reporting.tell)
        try:
            if order.verb == "phase":
                self._apply_phase(int(order.argument), tell, cut)
            elif order.verb == "rotate":
                self._rotate_secrets(order.argument, tell)
            else:
                self._fail_over(order, tell)
        except errors.Error as error:
            _tell("error", "order_failed", verb=order.verb, error=str(error))
            details = CUT if cut.is_set() else error.details
            reporting.failed(str(details.get("what", error)), str(details.get("do", f"look into {self.data_dir}/logs, then again")))
        except Exception as error:
            _log.exception("order_failed", verb=order.verb)
            reporting.failed(f"{type(error).__name__}: {error}", f"look into {self.data_dir}/logs/supervisor.log, then again")
        else:
            reporting.done()

    def _apply_phase(self, number: int, tell: Tell, cut: threading.Event) -> None:
        """First what is added, then the web processes and workers, one after the other, then what is not needed any more.

        The phase is that of the next start when all is there that it needs, and not before: nobody waits for copies then.
        """
        before = topology.written_phase(self.data_dir)
        topology.write_applying(self.data_dir, number)
        try:
            if self.stores is not None:
                self.stores.grow(topology.wanted(settings_file.load(self.data_dir), number), tell)
            topology.write_phase(self.data_dir, number, self.user)
            try:
                self.fleet.roll(tell)
            except BaseException:
                topology.write_phase(self.data_dir, before, self.user)  # a start finds what stood before; `apply` may be repeated
                raise
            self._end_apply(number, tell, cut)
        finally:
            topology.forget_applying(self.data_dir)

    def _end_apply(self, number: int, tell: Tell, cut: threading.Event) -> None:
        if self.stores is not None:
            self.stores.shrink(tell)
        if phases.of(number).partitions:
            self._turn_months_on(tell, cut)

    def _turn_months_on(self, tell: Tell, cut: threading.Event) -> None:
        """That waits for whoever reads for long, and on a server that hangs for ever: in a thread that is left alone when it is cut."""
        failed: list[Exception] = []

        def turn_on() -> None:
            try:
                asyncio.run(months.enable(self.fleet.settings.owner_database_url, tell=tell))
            except Exception as error:  # raised below, to whoever asked
                failed.append(error)

        turning = threading.Thread(target=turn_on, name="months", daemon=True)
        turning.start()
        while turning.is_alive():
            turning.join(LOOK_EVERY_S)
            _check_cut(cut)
        if failed:
            raise failed[0]

    def _fail_over(self, order: Order, tell: Tell) -> None:
        if self.stores is None or topology.DATABASE not in self.stores.topology.embedded:
            raise errors.CannotProceed(
                what="the database is yours, elsewhere", do="fail it over with its own tool; the pooler or the address must follow it"
            )
        failover.fail_over(self.stores, order.argument, tell, accept_loss=order.accept_loss, roll=lambda: self.fleet.roll(tell))

    def _rotate_secrets(self, name: str, tell: Tell) -> None:
        if name == rotation.SETTINGS:  # the new one stands in the operator's file
            self.fleet.roll(tell)
        elif self.stores is None:
            raise errors.CannotProceed(what="the stores are yours, elsewhere", do="change their passwords there, then the addresses")
        else:
            rotation.rotate(self.stores, name, lambda: self.fleet.roll(tell), tell)

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
        self.fleet.stop()
        if self.stores is not None:
            for name, gently in self.stores.stop().items():
                _tell("info", "stopped", name=name, gently=gently)

    def _say(self, state: str) -> None:
        try:
            folder.write_card(self.fleet.settings, state)
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
        stopped += [str(pid) for pid in web.stop_strays(settings.data_dir, set(), math.inf)]
        if (settings.data_dir / "stores" / "secrets.toml").exists():
            stores = Embedded(settings.data_dir)
            stores.find_all(user)
            stopped += stores.stop()
        folder.remove_card(settings.data_dir)
        return stopped
