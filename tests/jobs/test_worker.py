"""The worker: it works whatever becomes of the queue, and stops cleanly."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
import structlog
from redis import Redis
from redis.exceptions import RedisError

from piggybank import errors, jobs, queues
from piggybank.appliance import binaries, store_files
from piggybank.jobs import Job
from piggybank.jobs.work import Work
from piggybank.queues import Queue
from piggybank.worker import running_worker
from tests.conftest import start_process

from .conftest import PATIENCE_S, put, until, waiting

# SAQ 0.26 still writes its statistics by a command that redis-py 8 wants written in another way
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

EVERY_SECOND = "* * * * * *"


@contextmanager
def valkey(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Valkey of one's own, that may be stopped."""
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
    process = subprocess.Popen([str(binaries.valkey(folder, None)), *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    with Redis(port=port) as client:
        while True:
            try:
                client.ping()
                break
            except RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Counted:
    """A job that counts its runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        monkeypatch.setitem(jobs.JOBS, "counted", Job(self.run, EVERY_SECOND, timeout_s=5, retries=1))

    async def run(self, _: Work) -> int:
        self.runs += 1
        return self.runs

    async def again(self) -> None:
        before = self.runs

        async def ran() -> bool:
            return self.runs > before

        await until(ran)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
async def queue(work: Work) -> AsyncIterator[Queue]:
    made = queues.open_queue(work.settings.queue_url)
    yield made
    await made.close()


def posted(account_id: UUID) -> list[str]:
    return [str(account_id)]


async def swept(sql: asyncpg.Connection) -> None:
    async def empty() -> bool:
        return not await waiting(sql)

    await until(empty)


async def test_a_queue_that_lost_its_data_loses_no_work(work: Work, queue: Queue, sql: asyncpg.Connection, counted: Counted) -> None:
    async with running_worker(work, queue):
        await counted.again()
        for _ in range(3):
            await put(sql, "ledger.posted", posted(uuid4()))
            await queue.redis.flushdb()  # its share of the tests' Valkey
            await swept(sql)
            await counted.again()  # the crons are back


async def test_the_queue_may_be_away_at_the_start_and_go_and_come(
    work: Work, sql: asyncpg.Connection, counted: Counted, tmp_path: Path
) -> None:
    port = store_files.free_ports(1)[0]
    queue = queues.open_queue(f"redis://127.0.0.1:{port}/0")
    async with running_worker(work, queue):
        await put(sql, "ledger.posted", posted(uuid4()))
        await swept(sql)  # without any queue
        assert counted.runs == 0
        for _ in range(2):
            with valkey(port, tmp_path):
                await counted.again()
            await put(sql, "ledger.posted", posted(uuid4()))
            await swept(sql)
    await queue.close()


async def test_a_failing_job_is_tried_again_and_hurts_nobody(
    work: Work, queue: Queue, sql: asyncpg.Connection, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    async def fail(_: Work) -> int:
        attempts.append(1)
        raise ValueError("as it is told to")

    monkeypatch.setitem(jobs.JOBS, "failing", Job(fail, EVERY_SECOND, timeout_s=5, retries=3))
    async with running_worker(work, queue):
        while len(attempts) < 4:
            await counted.again()
        await put(sql, "ledger.posted", posted(uuid4()))
        await swept(sql)


async def test_an_outage_is_a_line_in_the_log_and_a_fault_of_ours_a_traceback(
    work: Work, queue: Queue, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def outage(_: Work) -> int:
        raise errors.DatabaseUnavailable

    async def fault(_: Work) -> int:
        raise ValueError("as it is told to")

    for name, part in (("outage", outage), ("fault", fault)):
        monkeypatch.setitem(jobs.JOBS, name, Job(part, "0 0 1 1 *", timeout_s=5, retries=1))
    with structlog.testing.capture_logs() as logged:
        async with running_worker(work, queue):
            for number, name in enumerate(("outage", "fault"), 1):
                await until(partial(_starts, queue, name))
                await until(partial(_failed, logged, number))
    first, second = (line for line in logged if line["event"] == "job_failed")
    assert (first["job"], first["log_level"], first["because"], "exc_info" in first) == ("outage", "warning", "DatabaseUnavailable", False)
    assert (second["job"], second["log_level"], type(second["exc_info"])) == ("fault", "error", ValueError)


async def _failed(logged: Sequence[Mapping[str, Any]], jobs_failed: int) -> bool:
    return len([line for line in logged if line["event"] == "job_failed"]) == jobs_failed


async def test_what_became_of_each_run_is_told_in_the_queue(
    work: Work, queue: Queue, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = True

    async def sometimes(_: Work) -> int:
        if failing:
            raise ValueError("as it is told to" + "!" * queues.ERROR_MAX_CHARACTERS)
        return 1

    monkeypatch.setitem(jobs.JOBS, "sometimes", Job(sometimes, "0 0 1 1 *", timeout_s=5, retries=2))  # not by itself today

    async def ended() -> bool:
        state = await queue.state()
        run = state.last_runs.get("sometimes") if state else None
        return run is not None and run.final and (run.error is not None) == failing

    async with running_worker(work, queue):
        await until(lambda: _knows(queue, "sometimes"))
        assert await queue.run_now("sometimes")
        await until(ended)
        failing = False
        await until(lambda: _starts(queue, "sometimes"))  # when the failed run has left the queue
        await until(ended)
        await until(lambda: _ran_well(queue, "counted"))
    state = await queue.state()
    assert state is not None
    assert [(run.attempt, run.final) for run in state.failures if run.job == "sometimes"] == [(2, True), (1, False)]
    assert state.failures[0].error is not None
    assert state.failures[0].error.startswith("ValueError: as it is told to!")
    assert len(state.failures[0].error) == queues.ERROR_MAX_CHARACTERS
    assert state.jobs["counted"].cron == EVERY_SECOND
    assert await queue.run_now("no such job") is None


async def _knows(queue: Queue, name: str) -> bool:
    state = await queue.state()
    return state is not None and name in state.jobs


async def _ran_well(queue: Queue, name: str) -> bool:
    state = await queue.state()
    return state is not None and name in state.last_runs and state.last_runs[name].error is None


async def _starts(queue: Queue, name: str) -> bool:
    return bool(await queue.run_now(name))


async def test_the_end_waits_for_a_running_job(work: Work, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def long(_: Work) -> int:
        began.set()
        await asyncio.sleep(1.5)
        ended.set()
        return 0

    monkeypatch.setitem(jobs.JOBS, "long", Job(long, EVERY_SECOND, timeout_s=10, retries=1))
    async with running_worker(work, queue):
        async with asyncio.timeout(PATIENCE_S):
            await began.wait()
    assert ended.is_set()
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("process", "worker", "outbox sweep")]


async def test_it_survives_the_database(work: Work, queue: Queue, sql: asyncpg.Connection) -> None:
    async with running_worker(work, queue):
        await put(sql, "ledger.posted", posted(uuid4()))
        await swept(sql)
        await _end_connections(work.settings.database_url)
        await put(sql, "ledger.posted", posted(uuid4()))
        await swept(sql)


async def _end_connections(url: str) -> None:
    """All others of the same role."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def test_a_process_of_its_own_answers_metrics_and_ends_when_told(work: Work, sql: asyncpg.Connection, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    [port] = store_files.free_ports(1)
    # as in a container: `listen` is where the web is reached, and no address of the worker's
    elsewhere = {"listen": "web.invalid", "trusted_proxies": ["10.0.0.0/8"]}
    settings = msgspec.structs.replace(work.settings, worker_metrics_port=port, worker_metrics_listen="127.0.0.1", **elsewhere)
    process = start_process(settings, "worker", log)
    try:
        await put(sql, "ledger.posted", posted(uuid4()))
        await swept(sql)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert "saq_jobs_total" in (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
