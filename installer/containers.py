"""`install.sh --docker`: the same two halves with containers. The SDK that asks the engine is brought along for the length of a run."""

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from installer.options import Options
from installer.program import CHECKOUT, LOCKED, PIP_ENVIRONMENT

PORTS = {"PORT": 8080, "SIMULATOR_PORT": 8081, "PROMETHEUS_PORT": 9090, "GRAFANA_PORT": 3000}  # on this machine, by their names in .env
TOOLS_LOCK = CHECKOUT / "requirements-docker.lock"


def is_checkout() -> bool:
    """A bundle has what installs natively only."""
    return (CHECKOUT / "compose.yaml").is_file()


def has_sdk() -> bool:
    return importlib.util.find_spec("docker") is not None


def again_with_sdk(arguments: list[str]) -> int:
    """Run this installer once more, in an environment that has the SDK and goes away at the end; the exit code."""
    with tempfile.TemporaryDirectory(prefix="piggybank-tools-") as folder:
        python = Path(folder) / "bin" / "python"
        environment = {**os.environ, **PIP_ENVIRONMENT}
        for command in (
            [sys.executable, "-m", "venv", folder],
            [str(python), "-m", "pip", "install", "--quiet", *LOCKED, "-r", str(TOOLS_LOCK)],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
            if done.returncode != 0:
                what = done.stderr.strip() or done.stdout.strip()
                print(f"Nothing was changed: the SDK of Docker could not be fetched: {what}", file=sys.stderr)
                return 1
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        return subprocess.run([str(python), "-B", "-m", "installer", *arguments], check=False, env=environment).returncode


def project(options: Options) -> str:
    """The name of everything that the engine has of this installation."""
    name = "".join(letter if letter.isalnum() else "-" for letter in options.data_dir.name.lower()).strip("-")
    return "piggybank" if name in ("", "piggybank-docker") else f"piggybank-{name}"


def not_free(listen: str, port: int) -> str | None:
    """Why nothing more can listen there; None where it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as cause:
        return cause.strerror or str(cause)
    return None
