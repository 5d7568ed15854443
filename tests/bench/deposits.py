"""`make bench`: deposits a second over HTTP, each answer durable, 64 connections (wrk), against the shipped server on fresh stores.

Group commit (the product) beside one SERIALIZABLE transaction a request (`one_by_one.py`), in the same app and run: spread over many
accounts, and all on one. Figures are printed, never asserted.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec

from piggybank import settings as settings_file
from piggybank.appliance import store_files
from piggybank.appliance.embedded import Embedded
from piggybank.settings import Settings
from tests.conftest import command, environment

ROOT = Path(__file__).parents[2]
CONNECTIONS = 64
THREADS = 2
SECONDS = int(os.environ.get("BENCH_SECONDS", "10"))
ACCOUNTS = 500
START_TIMEOUT_S = 60
SCOPES = "users:write,accounts:write,ledger:write"


def main() -> int:
    if shutil.which("wrk") is None:
        print("NOT RUN: wrk is missing on this machine (apt-get install wrk)", file=sys.stderr)
        return 1
    with fresh_stores() as settings, serving(settings):
        token = json.loads(command(settings, "apikeys", "create", "--scopes", SCOPES, "--json"))["token"]
        accounts = open_accounts(settings, token)
        print(f"{CONNECTIONS} connections, {SECONDS} s each, {ACCOUNTS} accounts, {os.cpu_count()} cores shared with wrk and the stores\n")
        print(f"{'':44}{'deposits/s':>12}{'failed':>9}{'p50 ms':>9}{'p99 ms':>9}")
        for name, prefix in (("group commit", "/v1/accounts/"), ("one SERIALIZABLE transaction a request", "/bench/accounts/")):
            for where, chosen in (("spread", accounts), ("one account", accounts[:1])):
                measure(f"{name}, {where}", settings.url, token, prefix, chosen)
        print("\n" + command(settings, "verify").strip())
    return 0


@contextmanager
def fresh_stores() -> Iterator[Settings]:
    """Stores of our own, in a folder that the system user may enter."""
    with tempfile.TemporaryDirectory(prefix="piggybank-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        data_dir = Path(folder) / "data"
        stores = Embedded(data_dir)
        try:
            stores.start()
            loaded = settings_file.load(data_dir, {})
            settings = msgspec.structs.replace(loaded, port=store_files.free_ports(1)[0], log_level="warning")
            command(settings, "migrate")
            yield settings
        finally:
            stores.stop()


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """The server with the route to compare with."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.serve"], env=environment(settings), cwd=ROOT)
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while not is_ready(settings.url):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server did not become ready")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


def open_accounts(settings: Settings, token: str) -> list[str]:
    """One account each for as many users."""
    with httpx.Client(base_url=settings.url, headers={"Authorization": f"Bearer {token}"}) as client:
        made = []
        for number in range(ACCOUNTS):
            user = client.post("/v1/users", json={"external_id": f"bench-{number}"}).raise_for_status().json()["id"]
            made.append(client.post("/v1/accounts", json={"user_id": user, "currency": "ZAR"}).raise_for_status().json()["id"])
    return made


def measure(name: str, url: str, token: str, prefix: str, accounts: list[str]) -> None:
    script = str(Path(__file__).with_name("deposits.lua"))
    sizes = [f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", script]
    done = subprocess.run(
        ["wrk", *sizes, url, "--", token, prefix, name.replace(" ", ""), *accounts], capture_output=True, text=True, check=True
    )
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]
    requests, failed, took_us = (int(part) for part in result[:3])
    print(f"{name:44}{(requests - failed) / took_us * 1_000_000:12,.0f}{failed:9,}{result[3]:>9}{result[4]:>9}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
