"""An installation as people start it, in a folder of its own: `piggybank ..` and what it runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner, Result

from piggybank.appliance import store_files
from piggybank.cli import main
from tests.conftest import ROOT

WAIT_S = 60
COMMAND_TIMEOUT_S = 200


class Bank:
    """An installation in a folder of its own."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{settings['PIGGYBANK_PORT']}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")} | settings

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`piggybank ..` on this folder."""
        command = [sys.executable, "-m", "piggybank", *words, "--data-dir", str(self.data_dir)]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )

    def do(self, *words: str) -> str:
        """The same, which must end well; what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"piggybank {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ask(self, *words: str) -> Result:
        """The same in this process, for what only looks: a start of Python costs seconds on a busy machine."""
        with ThreadPoolExecutor(1) as pool:  # a loop of its own
            return pool.submit(CliRunner().invoke, main, [*words, "--data-dir", str(self.data_dir)], env=self.environment).result()

    def pids(self) -> dict[str, int]:
        """Of all that run, by their records; one that is being replaced just now is left out."""
        found = {}
        for path in (self.data_dir / "run").glob("*.json"):
            with suppress(FileNotFoundError):
                found[path.stem] = int(json.loads(path.read_text())["pid"])
        return found

    def kill(self, name: str) -> int:
        """kill -9; the pid that was."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def stores(self) -> store_files.Secrets:
        return store_files.load_secrets(self.data_dir / "stores", None)


def wait_until(true: Callable[[], Any]) -> None:
    """Poll; the limit only keeps a broken test from hanging."""
    until = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
