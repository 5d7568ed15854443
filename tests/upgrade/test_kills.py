"""What an upgrade that was killed leaves: nothing that runs on, nothing that fills the disk, and nobody else's process is harmed."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from piggybank import errors
from piggybank.appliance import dumps, processes, supervisor, upgrade, versions, web
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.folder import Card
from piggybank.appliance.processes import Program
from piggybank.settings import Settings

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def settings_here(settings: Settings, open_path: Path) -> Settings:
    """On the worker's database, with a data folder of its own."""
    here = msgspec.structs.replace(settings, data_dir=open_path / "bank")
    prepare_folder(here.data_dir)
    return here


def test_a_supervisor_that_ended_meanwhile_is_not_killed_by_its_number() -> None:
    somebody = subprocess.Popen(SLEEP)
    try:
        card = Card(
            pid=somebody.pid, started=1.0, argv=["piggybank"], since="", url="", listen="", port=1, tls=False, version="", state="running"
        )
        upgrade._kill(card)
        with pytest.raises(subprocess.TimeoutExpired):
            somebody.wait(0.5)
    finally:
        somebody.kill()
        somebody.wait()


def test_a_trial_that_nobody_ended_is_ended_by_down(settings_here: Settings) -> None:
    run_dir, logs = settings_here.data_dir / "run", settings_here.data_dir / "logs"
    tried = processes.start(Program(name=web.TRIAL, argv=SLEEP, run_dir=run_dir, log=logs / "trial.log"))
    try:
        assert supervisor.stop_orphans(settings_here) == [web.TRIAL]
        assert not tried.alive()
    finally:
        tried.stop()


def test_half_a_backup_does_not_stay(settings_here: Settings) -> None:
    folder = settings_here.data_dir / dumps.FOLDER
    folder.mkdir()
    (folder / f"before-0.1.0.dump{dumps.UNFINISHED}").write_bytes(b"half")
    made = dumps.dump(settings_here, "0.2.0")
    assert list(folder.iterdir()) == [made]


def test_two_upgrades_at_once_are_one(settings_here: Settings) -> None:
    first, second = upgrade._alone(settings_here.data_dir), upgrade._alone(settings_here.data_dir)
    with first, pytest.raises(errors.CannotProceed, match="another upgrade"), second:
        pass
    with upgrade._alone(settings_here.data_dir):
        pass


def test_what_runs_is_told_by_the_process_and_not_by_the_link(tmp_path: Path) -> None:
    python = tmp_path / "versions" / "0.1.0-abc" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    running = subprocess.Popen([str(python), *SLEEP[1:]])
    try:
        assert versions.of_process(tmp_path, running.pid) == "0.1.0-abc"
        assert versions.of_process(tmp_path / "other", running.pid) == ""
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("form", ["{}", "bundle/../../{}"])
def test_a_bundle_writes_nowhere_else(tmp_path: Path, form: str) -> None:
    outside = tmp_path / "outside"
    bundle = tmp_path / "made-bundle.tar.gz"
    with tarfile.open(bundle, "w:gz") as archive:
        member = tarfile.TarInfo(form.format(outside))
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(errors.CannotProceed, match="no bundle"):
        versions.install(tmp_path, bundle, print)
    assert not outside.exists()
