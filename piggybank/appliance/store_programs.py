"""The stores as programs to run: PostgreSQL, PgBouncer, Valkey."""

import signal
from pathlib import Path

from piggybank.appliance import pooler, topology
from piggybank.appliance.processes import Program
from piggybank.appliance.system_user import SystemUser

POSTGRES_STOP_TIMEOUT_S = 60
POOLER_STOP_TIMEOUT_S = 5
VALKEY_STOP_TIMEOUT_S = 30


def of(name: str, folder: Path, postgres_bin: Path, valkey: Path, run_dir: Path, logs: Path, user: SystemUser | None) -> Program:
    """The store of that name, with its own folder."""
    stop_signal, kill_signal, stop_timeout_s = signal.SIGTERM, signal.SIGKILL, VALKEY_STOP_TIMEOUT_S
    argv: tuple[str, ...] = (str(valkey), str(folder / "valkey.conf"))
    if name in topology.NODES:  # SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one
        stop_signal, kill_signal, stop_timeout_s = signal.SIGINT, signal.SIGQUIT, POSTGRES_STOP_TIMEOUT_S
        argv = (str(postgres_bin / "postgres"), "-D", str(folder))
    elif name == topology.POOLER:
        stop_timeout_s = POOLER_STOP_TIMEOUT_S
        argv = (pooler.found() or "pgbouncer", str(folder / "pgbouncer.ini"))
    return Program(
        name=name,
        argv=argv,
        run_dir=run_dir,
        log=logs / f"{name}.log",
        user=user,
        alone=True,
        stop_signal=stop_signal,
        kill_signal=kill_signal,
        stop_timeout_s=stop_timeout_s,
    )
