"""The web processes, workers and the simulator of one data folder: found, started, moved to other settings one after the other.

A web process is started beside the one that it replaces, which then drains: somebody always listens. The record of a name is then of the
new one, so what a supervisor left that was killed just then is known to nobody: it is looked for by its command line.
"""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import psutil

from piggybank import errors, metrics
from piggybank import settings as settings_file
from piggybank.appliance import processes, system_user, topology, web
from piggybank.appliance.embedded import Tell
from piggybank.appliance.processes import Program, Running
from piggybank.appliance.system_user import SystemUser
from piggybank.db import installation
from piggybank.settings import Settings

Note = Callable[..., None]  # of the supervisor's log: level, event, details


class Fleet:
    """`settings` are those that `programs` were made of: what should run."""

    def __init__(self, settings: Settings, note: Note) -> None:
        self.settings = settings
        self.data_dir: Path = settings.data_dir
        self.user: SystemUser | None = None
        self.programs: list[Program] = []
        self.running: dict[str, Running] = {}
        self.busy: set[str] = set()  # those that are being replaced
        self._note = note

    def start(self) -> None:
        """Adopt what lives, start what does not; who was started with something else is replaced by `roll`."""
        self.programs = self._wanted(self.settings)
        self._adopt()
        if not self.running:
            web.check_port(self.settings)
            metrics.wipe(web.counting_folder(self.data_dir))  # nobody counts there: begin at 0
        elif any(found.mark != self.programs[0].mark for found in self.running.values()):
            self._close_cache()  # what somebody else started may have another one
        for program in self.programs:
            if program.name not in self.running:
                self.running[program.name] = processes.start(program)
                self._note("info", "started", name=program.name, pid=self.running[program.name].pid)

    def start_again(self, known: Running, tell: Tell) -> Running:
        """One that died; it reads the settings as they are now."""
        self._close_exchanged_cache(settings_file.load(self.data_dir), tell)
        fresh = self.running[known.program.name] = processes.start(known.program)
        return fresh

    def roll(self, tell: Tell) -> None:
        """Move to the settings as they are now: what is new is started first, so that somebody always answers.

        The cache is read again when all have the same one: where this fails on the way, not before it has been repeated.
        """
        settings = settings_file.load(self.data_dir)
        self._close_exchanged_cache(settings, tell)
        wanted = self._wanted(settings)
        for program in self._changed(wanted):
            self._replace(program, settings, tell)
        for name in [name for name in self.running if name not in {program.name for program in wanted}]:
            tell(f"stopping {name}")
            self.busy.add(name)
            self.running.pop(name).stop()
            self.busy.discard(name)
        self.programs, self.settings = wanted, settings
        self._stop_strays(before=psutil.Process().create_time())  # who is younger may be about to be known
        asyncio.run(installation.open_cache(settings.owner_database_url))

    def stop(self) -> None:
        """All of it: the web drains, workers finish."""
        for kind in ("web-", "worker-", web.SIMULATOR):
            found = [child for name, child in self.running.items() if name.startswith(kind)]
            for child in found:
                child.signal(child.program.stop_signal)
            for child in found:
                self._note("info", "stopped", name=child.program.name, pid=child.pid, gently=child.stop())
        self._stop_unwanted()  # what an upgrade that was killed has tried
        self._stop_strays()

    def _stop_strays(self, before: float = math.inf) -> None:
        """What no record names: a supervisor was killed while it was being replaced, or before its record was written."""
        for pid in web.stop_strays(self.data_dir, {child.pid for child in list(self.running.values())}, before):
            self._note("info", "stray_stopped", pid=pid)

    def _wanted(self, settings: Settings) -> list[Program]:
        runs_as = web.may_run_as(self.user, self.data_dir)
        if runs_as != self.user:
            why = f"user {system_user.NAME} cannot read the program"
            self._note("warning", "web_runs_as_root", why=why, do="install it with installer/install.sh")
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
                self._note("info", "adopted", name=program.name, pid=found.pid, to_be_replaced=found.mark != program.mark)

    def _stop_unwanted(self) -> None:
        for program in web.beyond(self.settings, self.programs) if self.programs else []:
            if (found := processes.find(program)) is not None:
                self._note("info", "stopping_unwanted", name=program.name, pid=found.pid)
                found.stop()

    def _close_exchanged_cache(self, settings: Settings, tell: Tell) -> None:
        """Processes that have different caches do not see each other's writes there: nobody reads either of them."""
        if settings.cache_url != self.settings.cache_url:
            tell("the cache is not read until every process has the new cache_url")
            self._close_cache()

    def _close_cache(self) -> None:
        # a standby may be what waits for this to end; a failover of our own servers closes the cache again
        ours = topology.DATABASE in settings_file.embedded_stores(self.data_dir)
        asyncio.run(installation.close_cache(self.settings.owner_database_url, waits=not ours))

    def _changed(self, wanted: list[Program]) -> list[Program]:
        """Those that do not run, or run with something else; what is new comes first."""
        changed = [program for program in wanted if program.name not in self.running or self.running[program.name].mark != program.mark]
        return sorted(changed, key=lambda program: program.name in self.running)

    def _replace(self, program: Program, settings: Settings, tell: Tell) -> None:
        """A web process is started beside the one that it replaces, which then drains: somebody always listens. Others first end."""
        name, is_web = program.name, program.name.startswith("web-")
        self.busy.add(name)
        try:
            old = self.running.pop(name, None)
            if old is not None and not is_web:
                old.stop()
            self.running[name] = fresh = processes.start(program)
            if is_web:
                self._take_place_of(old, fresh, settings)
        finally:
            self.busy.discard(name)
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
