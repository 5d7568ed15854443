"""A cluster is asked as a whole: every master, whichever node the address names."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from piggybank.appliance import binaries, store_files
from piggybank.capacity import measuring

MASTERS = 3
SLOTS = 16_384
PASSWORD = "of-the-tests"
PATIENCE_S = 60.0
MIB = 1024 * 1024


def is_whole(port: int) -> bool:
    """True when that node knows all others, and that every slot has one."""
    try:
        with Redis(port=port, password=PASSWORD) as client:
            return bool(client.cluster("INFO")["cluster_state"] == "ok" and len(client.cluster("NODES")) == MASTERS)
    except RedisError:
        return False


def is_there(port: int) -> bool:
    try:
        with Redis(port=port, password=PASSWORD) as client:
            return bool(client.ping())
    except RedisError:
        return False


def until(ports: list[int], true: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not all(true(port) for port in ports):
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


@pytest.fixture
def masters(tmp_path: Path) -> Iterator[list[int]]:
    """Ports of the masters of a real cluster."""
    program, ports = binaries.valkey(tmp_path, None), store_files.free_ports(2 * MASTERS)
    clients, buses = ports[:MASTERS], ports[MASTERS:]
    running = []
    try:
        for port, bus in zip(clients, buses, strict=True):
            (folder := tmp_path / str(port)).mkdir()
            words = f"--bind 127.0.0.1 --port {port} --cluster-enabled yes --cluster-port {bus} --dir {folder} --maxmemory 64mb"
            command = [str(program), *words.split(), "--requirepass", PASSWORD, "--save", ""]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        until(clients, is_there)
        for number, port in enumerate(clients):
            with Redis(port=port, password=PASSWORD) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS - 1)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", clients[0], buses[0])
        until(clients, is_whole)
        yield clients
    finally:
        for process in running:
            process.kill()
            process.wait()


async def test_every_master_of_a_cluster_is_counted(masters: list[int]) -> None:
    for address in (
        f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{masters[1]}",  # one that is away, one that is there
        f"valkey+cluster://:{PASSWORD}@127.0.0.1:{masters[2]}",
        f"redis://:{PASSWORD}@127.0.0.1:{masters[0]}/0",
    ):
        found = await measuring.cache(address)
        assert found is not None, address
        assert found.max_bytes == MASTERS * 64 * MIB
        assert found.used_bytes > MASTERS * MIB
    assert await asyncio.wait_for(measuring.cache(f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:2"), PATIENCE_S) is None
