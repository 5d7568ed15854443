"""The web and worker processes as programs to run, and the port that the web processes share.

Several web processes bind the same port with SO_REUSEPORT, and the kernel spreads connections over them. The same would happen,
silently, with another installation on that port, so the port must be free before the first of ours starts.
"""

import hashlib
import http.client
import os
import socket
import ssl
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

import piggybank
from piggybank import errors
from piggybank.appliance import processes, system_user
from piggybank.appliance.processes import Program, Running
from piggybank.appliance.system_user import SystemUser
from piggybank.settings import COUNTING_FOLDER, ProviderMode, Settings

WEB_STOP_TIMEOUT_S = 40  # more than the drain of `piggybank serve`
WORKER_STOP_TIMEOUT_S = 30
ASK_TIMEOUT_S = 2.0
LISTEN_TIMEOUT_S = 60.0
POLL_S = 0.05
PRIVILEGED_PORTS = 1_024
SIMULATOR = "simulator"
TRIAL = "trial"  # the web process of a new version that an upgrade tries
RECORDS = ("web-*.json", "worker-*.json", f"{SIMULATOR}.json", f"{TRIAL}.json")  # of what runs beside the stores
_VERBS = {"web": "serve", "worker": "worker", "simulator": "simulator"}
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def command(data_dir: Path, *words: str) -> tuple[str, ...]:
    """`piggybank ..` of this very installation; -P: nothing is imported from the current folder."""
    return (sys.executable, "-P", "-m", "piggybank", "--data-dir", str(data_dir), *words)


def environment(data_dir: Path) -> dict[str, str]:
    """What a child needs beside our own environment."""
    # not root's: libraries look for files in HOME, and the system user may not
    needed = {"PIGGYBANK_DATA_DIR": str(data_dir), "HOME": str(data_dir)}
    here = Path(piggybank.__file__).parent.parent
    if str(here) not in sysconfig.get_paths().values():  # a checkout
        needed["PYTHONPATH"] = os.pathsep.join(part for part in (str(here), os.environ.get("PYTHONPATH", "")) if part)
    return needed


def programs(settings: Settings, user: SystemUser | None, mode: ProviderMode | None) -> list[Program]:
    """Web processes first; `user` from `may_run_as`, `mode` the provider's, as the database says it."""
    data_dir = settings.data_dir
    program = f"{piggybank.__version__} {sys.prefix}"  # two builds may call themselves the same version
    mark = hashlib.blake2b(msgspec.json.encode(settings, enc_hook=str) + program.encode(), digest_size=8).hexdigest()
    return [
        Program(
            name=name,
            argv=command(data_dir, _VERBS[name.partition("-")[0]]),
            run_dir=data_dir / "run",
            log=data_dir / "logs" / f"{name}.log",
            user=user,
            low_ports=name.startswith("web-") and settings.port < PRIVILEGED_PORTS,
            environment={**environment(data_dir), COUNTING_FOLDER: str(counting_folder(data_dir))},
            mark=mark,
            stop_timeout_s=WEB_STOP_TIMEOUT_S if name.startswith("web-") else WORKER_STOP_TIMEOUT_S,
        )
        for name in names(settings, mode)
    ]


def counting_folder(data_dir: Path) -> Path:
    """Where the processes count together (`metrics.py`)."""
    return data_dir / "metrics"


def names(settings: Settings, mode: ProviderMode | None) -> list[str]:
    """What should run beside the stores: the simulator in simulator mode only, where somebody made a key for it."""
    return [
        *(f"web-{number + 1}" for number in range(settings.web_processes)),
        *(f"worker-{number + 1}" for number in range(worker_count(settings))),
        *([SIMULATOR] if mode == "simulator" and settings.simulator_key else []),
    ]


def worker_count(settings: Settings) -> int:
    """The jobs run inside the web process only while there is one of it; with several somebody must run them."""
    return max(settings.worker_processes, 1 if settings.web_processes > 1 else 0)


def beyond(settings: Settings, wanted: list[Program]) -> list[Program]:
    """Processes of an earlier start that are not wanted any more."""
    known = {program.name for program in wanted}
    recorded = [path.stem for pattern in RECORDS for path in sorted((settings.data_dir / "run").glob(pattern))]
    like = wanted[0]
    return [msgspec.structs.replace(like, name=name, log=like.log.with_name(f"{name}.log")) for name in recorded if name not in known]


def stop_strays(data_dir: Path, known: set[int], before: float) -> list[int]:
    """End what was started for this folder before that time, and neither is `known` nor has a record; returns the pids."""
    likes = {command(data_dir, verb)[1:] for verb in _VERBS.values()}  # whatever Python
    plain = Program(name="", argv=(), run_dir=data_dir / "run", log=Path())
    recorded = [processes.look(msgspec.structs.replace(plain, name=path.stem)) for path in plain.run_dir.glob("*.json")]
    kept = known | {found.pid for found in recorded if found is not None}
    strays = [
        process
        for process in psutil.process_iter(["cmdline", "create_time"])
        if tuple(process.info["cmdline"] or ())[1:] in likes and process.pid not in kept and process.info["create_time"] < before
    ]
    for process in strays:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(strays, WEB_STOP_TIMEOUT_S)[1]:
        with suppress(psutil.Error):
            process.kill()
    return [process.pid for process in strays]


def may_run_as(user: SystemUser | None, data_dir: Path) -> SystemUser | None:
    """The system user if it can read this Python and this package, else None: then we stay who we are, and say so."""
    if user is None:
        return None
    probe = (sys.executable, "-P", "-c", "import piggybank.settings, asyncpg, granian, redis.asyncio")
    done = system_user.run(user, *probe, check=False, environment=environment(data_dir)) if _can_execute(user) else None
    return user if done is not None and done.returncode == 0 else None


def _can_execute(user: SystemUser) -> bool:
    return system_user.can(user, sys.executable, "--version")


def check_port(settings: Settings) -> None:
    """Raises `errors.CannotProceed` when somebody else listens where we shall."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.listen, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as cause:
            who = _listener(settings.port)
            raise errors.CannotProceed(
                what=f"cannot listen on {settings.listen}:{settings.port}: {cause.strerror}{who}",
                do="choose another port: PIGGYBANK_PORT, or port in piggybank.toml",
            ) from cause


def wait_listening(process: Running, port: int) -> None:
    """Until that very process takes connections on the port, which others may share. Raises `errors.CannotProceed` when it ends."""
    until = time.monotonic() + LISTEN_TIMEOUT_S
    while not _takes_connections(process.pid, port):
        if not process.alive() or time.monotonic() > until:
            raise errors.CannotProceed(what=f"{process.program.name} did not start", do=f"look at the end of {process.program.log}")
        time.sleep(POLL_S)


def _takes_connections(pid: int, port: int) -> bool:
    try:
        return port in listening(psutil.Process(pid))
    except psutil.Error:
        return False


def listening(process: psutil.Process) -> set[int]:
    """The ports on which a process takes connections; raises `psutil.Error`."""
    return {found.laddr.port for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN and found.laddr}


def is_ready(listen: str, port: int, *, tls: bool) -> bool:
    """Asks /health/ready on our own port, directly, whatever proxy the environment names."""
    host = EVERYWHERE.get(listen, listen)
    connection: http.client.HTTPConnection
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the certificate names the public host, not loopback
        context.verify_mode = ssl.CERT_NONE  # we only ask whether it answers
        connection = http.client.HTTPSConnection(host, port, timeout=ASK_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listener(port: int) -> str:
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f" (it is {psutil.Process(found.pid).name()}, pid {found.pid})"
    except psutil.Error:
        pass
    return ""
