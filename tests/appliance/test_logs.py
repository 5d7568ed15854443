"""Rotation under a writer that keeps its file open, and the pauses between restarts."""

import os
import resource
from pathlib import Path

import pytest

from piggybank.appliance import logs, supervisor


def test_a_log_rotates_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "web-1.log"
    writer = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(logs.LOG_KEPT_FILES + 3):
        os.write(writer, f"round {number}\n".encode() * 20)
        assert logs.rotate(tmp_path, max_bytes=100) == ["web-1.log"]
        assert path.stat().st_size == 0
    os.write(writer, b"after\n")
    os.close(writer)
    assert path.read_text() == "after\n", "the writer goes on at the start, without a hole"
    assert logs.rotate(tmp_path, max_bytes=100) == []
    kept = sorted(found.name for found in tmp_path.iterdir())
    assert kept == ["web-1.log", *(f"web-1.log.{number}" for number in range(1, logs.LOG_KEPT_FILES + 1))]
    assert f"round {logs.LOG_KEPT_FILES + 2}" in (tmp_path / "web-1.log.1").read_text()


def test_a_copy_that_fails_costs_no_older_log(tmp_path: Path) -> None:
    """As on a full disk, where it is tried again every ten seconds."""
    path = tmp_path / "web-1.log"
    for text in ("first", "second"):
        path.write_text(text * 100)
        assert logs.rotate(tmp_path, max_bytes=100) == ["web-1.log"]
    path.write_text("third" * 100)
    before, limits = {found.name: found.read_text() for found in tmp_path.iterdir()}, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        for _ in range(logs.LOG_KEPT_FILES):
            with pytest.raises(OSError, match="File too large"):
                logs.rotate(tmp_path, max_bytes=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {found.name: found.read_text() for found in tmp_path.iterdir()} == before


def test_crashes_are_remembered_for_the_doctor(tmp_path: Path) -> None:
    logs.note_crash(tmp_path, "postgres", 42, -9)
    (crash,) = logs.crashes_since(tmp_path, 60)
    assert (crash["name"], crash["exit_code"]) == ("postgres", -9)
    assert logs.crashes_since(tmp_path, -1) == []


def test_restarts_come_ever_slower_until_a_steady_life() -> None:
    pause = supervisor.Pause()
    pauses = [pause.died(0.5) for _ in range(12)]
    assert pauses[0] == supervisor.FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == supervisor.LONGEST_PAUSE_S
    assert pause.died(supervisor.STEADY_S + 1) == supervisor.FIRST_PAUSE_S
