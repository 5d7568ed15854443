"""kill -9 of the supervisor in the middle of an apply or of a failover, while people pay: the next `up` ends what was begun.

Each kill comes at a moment that can be seen from outside: a copy that is being made, a web process beside the one that it replaces, the
file that names the primary, a line of the log. Then nothing that was answered is missing, and nothing is left over: no process that
nobody knows, no slot, no half copy.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from piggybank.appliance import store_files, topology
from tests.appliance.bank import WAIT_S, Bank
from tests.conftest import ALL_SCOPES, require
from tests.phases.load import Load, loaded

pytestmark = pytest.mark.deep

PATIENCE_S = 300  # of a client, and of who waits until the servers are as they are declared
TRIES = 60
LOOK_S = 0.005

Seen = Callable[[], Any]


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    """In phase 0, with two web processes in all phases."""
    require("pgbouncer")
    made = Bank(
        open_path / "bank",
        PIGGYBANK_PORT=str(store_files.free_ports(1)[0]),
        PIGGYBANK_RATE_SERVICE_PER_MINUTE="0",
        PIGGYBANK_WEB_PROCESSES="2",
        PIGGYBANK_WORKER_PROCESSES="1",
    )
    try:
        made.do("up", "--detach")
        yield made
    finally:
        made.run("down")
        print(*(made.data_dir / "logs" / "supervisor.log").read_text(errors="replace").splitlines()[-200:], sep="\n")
        for process in processes_of(made):
            with suppress(psutil.Error):
                process.kill()


# What happens ---------------------------------------------------------------------------------------------------------


async def killed(bank: Bank, seen: Seen, *words: str, all_of_it: bool = False) -> None:
    """`piggybank ..`, and kill -9 of the supervisor when `seen`; with `all_of_it` of all that runs, as a power cut does."""
    told = asyncio.create_task(asyncio.to_thread(bank.run, *words))
    await asyncio.to_thread(wait_quickly, seen)
    supervisor = psutil.Process(bank.pids()["supervisor"])
    supervisor.kill()
    if all_of_it:
        end_all(bank)
    done = await told
    assert done.returncode == (0 if words[0] == "up" and "running" in done.stdout else 1), done.stdout + done.stderr


def end_all(bank: Bank) -> None:
    """kill -9 of all that runs."""
    while left := processes_of(bank):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(LOOK_S)


def wait_quickly(seen: Seen) -> None:
    """Poll often: what is looked for is soon over."""
    until = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(LOOK_S)


def said(bank: Bank, words: str) -> Seen:
    """The supervisor writes that into its log, from now on."""
    log = bank.data_dir / "logs" / "supervisor.log"
    start = log.stat().st_size
    return lambda: words in log.read_text(errors="replace")[start:]


def copying(bank: Bank, name: str) -> Seen:
    """The primary is being copied to that standby."""
    return lambda: copies(bank, name)


def replacing(bank: Bank, name: str) -> Seen:
    """A web process has been started beside the one that it replaces."""
    was = bank.pids()[name]
    return lambda: bank.pids().get(name, was) != was and psutil.pid_exists(was)


def another_primary(bank: Bank) -> Seen:
    """Another one is written down."""
    was = topology.primary_of(bank.data_dir / "stores")
    return lambda: topology.primary_of(bank.data_dir / "stores") != was


def copies(bank: Bank, name: str) -> list[psutil.Process]:
    """The process of pg_basebackup that makes that standby, when it writes already; not the one beside it that receives the log."""
    place = bank.data_dir / "stores" / f"{name}.new"
    if not (place / "global").exists():
        return []
    found = [process for process in psutil.process_iter(["cmdline", "ppid"]) if f"--pgdata={place}" in (process.info["cmdline"] or [])]
    return [process for process in found if process.info["ppid"] not in {other.pid for other in found}]


@asynccontextmanager
async def held(bank: Bank, name: str) -> AsyncIterator[None]:
    """Within the block the copy to that standby stands still, as if there were gigabytes of it."""
    await asyncio.to_thread(wait_quickly, copying(bank, name))
    [copy] = copies(bank, name)
    copy.suspend()
    try:
        yield
        assert copy.status() == psutil.STATUS_STOPPED
    finally:
        with suppress(psutil.Error):
            copy.resume()


@asynccontextmanager
async def hanging(bank: Bank) -> AsyncIterator[None]:
    """The primary answers nobody, and does not end: of its disk, say."""
    pid = bank.pids()[topology.primary_of(bank.data_dir / "stores")]
    all_of_it = [psutil.Process(pid), *psutil.Process(pid).children()]
    for process in all_of_it:
        process.suspend()
    try:
        yield
    finally:
        for process in all_of_it:
            with suppress(psutil.Error):
                process.resume()


# What must be so ------------------------------------------------------------------------------------------------------


async def settles(bank: Bank, number: int) -> None:
    """The servers become what that phase declares, nothing is left over, and the books fit."""
    until, state = time.monotonic() + PATIENCE_S, await asyncio.to_thread(state_of, bank)
    while state != (number, 0, [], [], []):
        assert time.monotonic() < until, f"phase, exit code, strangers, slots, folders: {state}"
        await asyncio.sleep(1)
        state = await asyncio.to_thread(state_of, bank)
    await asyncio.to_thread(bank.do, "verify")


def state_of(bank: Bank) -> tuple[int, int, list[str], list[str], list[str]]:
    """The phase, whether it shows itself, and what is there that should not be."""
    shown = bank.ask("phase", "show", "--observed", "--json")
    number = int(json.loads(shown.stdout)["phase"])
    try:
        slots = asyncio.run(slots_beyond(bank, number))
    except (OSError, asyncpg.PostgresError) as cause:
        slots = [str(cause)]
    return number, shown.exit_code, strangers(bank), slots, folders_beyond(bank, number)


def processes_of(bank: Bank) -> list[psutil.Process]:
    """All that live in that folder, or were started for it; not the command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "ppid"]):
        words, place = process.info["cmdline"] or [], process.info["cwd"] or ""
        of_ours = any(str(bank.data_dir) in word for word in words) and process.info["ppid"] != os.getpid()
        if (of_ours or place.startswith(str(bank.data_dir))) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def strangers(bank: Bank) -> list[str]:
    """Processes that the supervisor does not know."""
    found, known = [], set(bank.pids().values())
    for process in processes_of(bank):
        with suppress(psutil.Error):
            if process.pid not in known and not known & {parent.pid for parent in process.parents()}:
                found.append(" ".join(process.cmdline()))
    return found


async def slots_beyond(bank: Bank, number: int) -> list[str]:
    """Replication slots that keep the log for nobody."""
    primary, found = topology.primary_of(bank.data_dir / "stores"), []
    for name in (primary, *standbys(bank, number)):
        connection = await asyncpg.connect(bank.stores.database_url(store_files.ADMIN_ROLE, name))
        try:
            slots = {row["slot_name"] for row in await connection.fetch("SELECT slot_name FROM pg_replication_slots")}
        finally:
            await connection.close()
        expected = {store_files.slot_of(each) for each in standbys(bank, number)} if name == primary else set()
        found += [f"{slot} on {name}" for slot in sorted(slots ^ expected)]
    return found


def standbys(bank: Bank, number: int) -> tuple[str, ...]:
    return topology.standbys_of(bank.data_dir / "stores", 2 if number >= 2 else 0)


def folders_beyond(bank: Bank, number: int) -> list[str]:
    """What is of a server, and of none that this phase has."""
    stores = bank.data_dir / "stores"
    wanted = {topology.primary_of(stores), *standbys(bank, number), *(topology.CACHE_NODES if number == 3 else ())}
    there = {path.name for kind in ("postgres*", "cache-*") for path in stores.glob(kind)}
    return sorted(there ^ wanted)


async def pays(bank: Bank, token: str) -> None:
    """Somebody is answered that his money is there."""
    load = Load(bank.url, token, 1, within_s=WAIT_S, tries=TRIES)
    try:
        async with asyncio.timeout(WAIT_S):
            while not await asyncio.to_thread(bank.is_ready):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(LOOK_S)
        await load.open_accounts()
        await load.compare()
    finally:
        await load.close()


def token_of(bank: Bank) -> str:
    made: dict[str, str] = json.loads(bank.do("apikeys", "create", "--name", "kills", "--scopes", ALL_SCOPES, "--json"))
    return made["token"]


# The tests ------------------------------------------------------------------------------------------------------------


async def test_apply_2_is_killed_again_and_again(bank: Bank) -> None:
    async with loaded(bank, within_s=PATIENCE_S, tries=TRIES):
        await killed(bank, copying(bank, "postgres-2"), "phase", "apply", "2")
        await killed(bank, copying(bank, "postgres-3"), "up", "--detach")
        await killed(bank, replacing(bank, "web-1"), "up", "--detach")
        await asyncio.to_thread(bank.do, "up", "--detach")
        await settles(bank, 2)


async def test_apply_3_and_the_way_back_are_killed(bank: Bank) -> None:
    async with loaded(bank, within_s=PATIENCE_S, tries=TRIES):
        await killed(bank, said(bank, "forming the cache's cluster"), "phase", "apply", "3")
        await killed(bank, replacing(bank, "web-2"), "up", "--detach")
        await asyncio.to_thread(bank.do, "up", "--detach")
        await settles(bank, 3)
        await killed(bank, replacing(bank, "web-1"), "phase", "apply", "1")
        await killed(bank, said(bank, "stopping postgres-3"), "up", "--detach")
        await asyncio.to_thread(bank.do, "up", "--detach")
        await settles(bank, 1)


async def test_a_failover_is_killed(bank: Bank) -> None:
    """Before anything is changed, before the new primary is one, and while the web moves over."""
    await asyncio.to_thread(bank.do, "phase", "apply", "2")
    async with loaded(bank, within_s=PATIENCE_S, tries=TRIES):
        for seen in (said(bank, "becomes the primary"), another_primary(bank)):
            await killed(bank, seen, "failover")
            await asyncio.to_thread(bank.do, "up", "--detach")
            await settles(bank, 2)
        await killed(bank, replacing(bank, "web-2"), "failover")
        await asyncio.to_thread(bank.do, "up", "--detach")
        await settles(bank, 2)


async def test_people_pay_while_the_copies_of_an_interrupted_apply_are_made(bank: Bank) -> None:
    """All was killed, so nobody serves before `up` has started it."""
    token = await asyncio.to_thread(token_of, bank)
    await killed(bank, copying(bank, "postgres-2"), "phase", "apply", "2", all_of_it=True)
    starting = asyncio.create_task(asyncio.to_thread(bank.run, "up", "--detach"))
    async with held(bank, "postgres-2"):
        await pays(bank, token)
    assert (await starting).returncode == 0
    await settles(bank, 2)


async def test_people_pay_before_the_old_primary_is_back(bank: Bank) -> None:
    """The failover was interrupted when the new primary was named, and the old one must be copied anew."""
    token = await asyncio.to_thread(token_of, bank)
    await asyncio.to_thread(bank.do, "phase", "apply", "2")
    await killed(bank, another_primary(bank), "failover", all_of_it=True)
    stores = bank.data_dir / "stores"
    (stores / "postgres" / "pg_wal").rename(bank.data_dir / "lost")
    starting = asyncio.create_task(asyncio.to_thread(bank.run, "up", "--detach"))
    async with held(bank, "postgres"):
        await pays(bank, token)
    assert (await starting).returncode == 0
    await settles(bank, 2)


@pytest.mark.parametrize("by", ["apply", "up"])
async def test_a_failover_waits_for_no_reader_that_months_wait_for(bank: Bank, by: str) -> None:
    """Somebody reads for minutes, months wait for that, and the primary hangs."""
    token = await asyncio.to_thread(token_of, bank)
    await asyncio.to_thread(bank.do, "phase", "apply", "2")
    reader = await asyncpg.connect(bank.stores.database_url(store_files.OWNER_ROLE, "postgres"))
    try:
        await reader.execute("BEGIN; SELECT count(*) FROM transactions")
        waits = said(bank, " waits for pid")
        if by == "up":
            await killed(bank, waits, "phase", "apply", "3")
            waits = said(bank, " waits for pid")
            await asyncio.to_thread(bank.do, "up", "--detach")
            await asyncio.to_thread(wait_quickly, waits)
        else:
            applying = asyncio.create_task(asyncio.to_thread(bank.run, "phase", "apply", "3"))
            await asyncio.to_thread(wait_quickly, waits)
        async with hanging(bank):
            assert "takes writes" in await asyncio.to_thread(bank.do, "failover")
        if by == "apply":
            done = await applying
            assert done.returncode == 1
            assert "piggybank phase show, then repeat it" in done.stderr
    finally:
        reader.terminate()
    await pays(bank, token)
    assert "phase 3 (" in await asyncio.to_thread(bank.do, "phase", "apply", "3")
    await settles(bank, 3)


async def test_a_half_copy_goes_with_the_apply_that_is_given_up(bank: Bank) -> None:
    """It keeps the log on the primary's disk for nobody."""
    await killed(bank, copying(bank, "postgres-2"), "phase", "apply", "2")
    assert (bank.data_dir / "stores" / "postgres-2.new").exists()
    await asyncio.to_thread(bank.do, "phase", "apply", "0")
    await asyncio.to_thread(bank.do, "up", "--detach")
    await settles(bank, 0)
