"""What every test may use: real stores, one database a test worker, a real server.

One embedded PostgreSQL and two Valkeys serve a whole run, started at the first need by whichever xdist worker comes first. A
template database is migrated once; each worker gets a copy, since the ledger commits and a rollback cannot isolate.
"""

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import msgspec
import psutil
import pytest
from pytest_socket import socket_allow_hosts
from redis.asyncio import Redis
from xdist.scheduler.loadscope import LoadScopeScheduling

from piggybank import settings as settings_file
from piggybank.appliance import store_files
from piggybank.appliance.embedded import Embedded
from piggybank.cache import Cache
from piggybank.db import migrate, roles
from piggybank.db.engines import Database
from piggybank.settings import COUNTING_FOLDER, Settings
from tests import forks

ROOT = Path(__file__).parent.parent  # `python -m piggybank` finds the checkout there
FOLDER_PREFIX = "piggybank-tests-"
TEMPLATE = "piggybank_template"
SERVER_START_TIMEOUT_S = 30
SERVER_STOP_TIMEOUT_S = 40
COMMAND_TIMEOUT_S = 60
VALKEY_DATABASES = 16
SHARED_FOLDERS = ("api", "cache", "console", "durability", "prove", "replicas", "simulator")
LONGEST = (
    "phases/test_f",
    "appliance",
    "prove",
    "console",
    "replicas",
    "durability",
    "cli",
    "faults",
    "installer",
    "cache",
    "phases",
    "upgrade",
    "api",
)
ALL_SCOPES = "users:read,users:write,accounts:read,accounts:write,ledger:write,payments:write,ops:read"

SIMULATOR_KEY = "simulator-key-of-the-tests"

_T = TypeVar("_T")
_run_dir: Path | None = None


# One folder a run ----------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """The main process makes the run's folder; xdist workers are told it."""
    global _run_dir  # noqa: PLW0603 - pytest's hooks have no other place
    given = getattr(config, "workerinput", {}).get("run_dir")
    if given:
        _run_dir = Path(given)
        return
    _sweep_abandoned()
    _run_dir = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=_open_temporary_folder()))
    _run_dir.chmod(0o755)  # the stores' system user passes through


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: runs in the main process before each worker starts."""
    node.workerinput["run_dir"] = str(_run_dir)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The main process stops the stores when all workers are done."""
    if not hasattr(config, "workerinput") and _run_dir is not None:
        _remove(_run_dir)


class _Rooms(LoadScopeScheduling):  # type: ignore[misc]
    """A file stays with one worker, or both would pay for its fixtures; so does a folder whose files share an installation.

    xdist's own groups are marks that it writes into the ids of tests, which pytest 9.2 does not take any more: it says nothing then.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.split("/")[1]
        return folder if folder in SHARED_FOLDERS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist: asked in the main process."""
    return _Rooms(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker has one of them alone at the end."""

    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.location[0].startswith(f"tests/{name}")), len(LONGEST))

    items.sort(key=place)


def pytest_runtest_setup() -> None:
    """No test leaves this machine."""
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


def _open_temporary_folder() -> str:
    """A temporary folder that another user may enter, when root runs the tests."""
    chosen = tempfile.gettempdir()
    if os.geteuid() == 0 and any(not part.stat().st_mode & 0o001 for part in (Path(chosen), *Path(chosen).parents)):
        return "/tmp"
    return chosen


def _sweep_abandoned() -> None:
    """Stores of a run that was killed."""
    for folder in Path(_open_temporary_folder()).glob(f"{FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and os.access(folder, os.W_OK):
            _remove(folder)


def _remove(folder: Path) -> None:
    if (folder / "data").exists():
        stores = Embedded(folder / "data")
        stores.find_all(None)
        stores.stop()
    for process in psutil.process_iter(["cmdline"]):  # what a failed test left: the folder's name is this run's alone
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            with suppress(psutil.Error):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


# Tools that may be missing -------------------------------------------------------------------------------------------


def require(tool: str, available: bool | None = None) -> None:
    """Skip, saying NOT RUN, when a tool is missing; fail when `PIGGYBANK_REQUIRE` names it or says `all`."""
    if shutil.which(tool) is not None if available is None else available:
        return
    wanted = {name.strip() for name in os.environ.get("PIGGYBANK_REQUIRE", "").split(",")}
    message = f"NOT RUN: {tool} is missing on this machine"
    if wanted & {tool, "all"}:
        pytest.fail(f"{message}, and PIGGYBANK_REQUIRE asks for it")
    print(message, file=sys.__stdout__)
    pytest.skip(message)


# Stores and databases ------------------------------------------------------------------------------------------------


class Stores(NamedTuple):
    """The run's stores: `admin_url` is the superuser's, on the template's cluster."""

    embedded: Embedded
    secrets: store_files.Secrets

    @property
    def admin_url(self) -> str:
        return self.secrets.admin_url


@pytest.fixture(scope="session")
def open_folder() -> Path:
    """A folder that the stores' system user may enter; pytest closes its own to everybody but who runs it, again and again."""
    assert _run_dir is not None
    made = _run_dir / f"open-{uuid4().hex[:8]}"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def open_path(open_folder: Path) -> Path:
    """`open_folder` for one test."""
    made = open_folder / uuid4().hex[:8]
    made.mkdir(mode=0o755)
    return made


@pytest.fixture(scope="session")
def stores() -> Stores:
    """The run's stores with a migrated template; the first worker to come starts them."""
    assert _run_dir is not None
    embedded = Embedded(_run_dir / "data")
    with _locked(_run_dir / "lock"):
        if (_run_dir / "ready").exists():
            embedded.prepare()
        else:
            embedded.start()
            _make_template(embedded)
            (_run_dir / "ready").touch()
    return Stores(embedded, embedded.secrets)


@pytest.fixture(scope="session")
def settings(stores: Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """This worker's database and its share of the Valkeys."""
    with _database_copy(stores, tmp_path_factory.mktemp("data"), 2 * _worker_number(worker_id)) as made:
        yield made


@pytest.fixture
def fresh_settings(stores: Stores, worker_id: str, tmp_path: Path) -> Iterator[Settings]:
    """A new database for this test alone."""
    with _database_copy(stores, tmp_path, 2 * _worker_number(worker_id) + 1) as made:
        yield made


@pytest.fixture(scope="session")
async def db(settings: Settings) -> AsyncIterator[Database]:
    """The worker's database, with the application's role."""
    database = Database.of(settings)
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def cache(settings: Settings) -> AsyncIterator[Cache]:
    """The worker's cache, under its database's epoch."""
    made = Cache(settings.cache_url)
    connection = await asyncpg.connect(settings.database_url)
    made.epoch = await connection.fetchval("SELECT epoch FROM installation")
    await connection.close()
    yield made
    await made.close()


def _make_template(embedded: Embedded) -> None:
    owner = store_files.OWNER_ROLE
    embedded.psql(f"CREATE DATABASE {TEMPLATE} OWNER {owner};")
    owner_url = _on_database(embedded.secrets.addresses()["owner_database_url"], TEMPLATE)
    run_apart(lambda: migrate.upgrade(owner_url, store_files.APPLICATION_ROLE))
    run_apart(lambda: roles.limit_role(owner_url, store_files.APPLICATION_ROLE))


@contextmanager
def _database_copy(stores: Stores, data_dir: Path, valkey_database: int) -> Iterator[Settings]:
    name = f"test_{uuid4().hex[:12]}"
    addresses: dict[str, str] = {
        key: _on_database(url, name if key.endswith("database_url") else str(valkey_database % VALKEY_DATABASES))
        for key, url in stores.secrets.addresses().items()
    }
    run_apart(lambda: _copy_template(addresses["owner_database_url"], name))
    yield Settings(
        data_dir=data_dir,
        rate_anonymous_per_minute=0,
        rate_sign_in_per_minute=0,
        rate_user_per_minute=0,
        database_url=addresses["database_url"],
        owner_database_url=addresses["owner_database_url"],
        cache_url=addresses["cache_url"],
        queue_url=addresses["queue_url"],
        simulator_key=SIMULATOR_KEY,
        simulator_port=store_files.free_ports(1)[0],
        revio_timeout_s=2,
    )
    run_apart(lambda: _drop(addresses, name, _on_database(stores.admin_url, "postgres")))


async def _copy_template(owner_url: str, name: str) -> None:
    connection = await asyncpg.connect(_on_database(owner_url, "postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    finally:
        await connection.close()
    connection = await asyncpg.connect(owner_url)
    try:
        # the cache is shared: an epoch of its own keeps this database's entries apart
        await connection.execute("UPDATE installation SET epoch = $1", uuid4().hex[:8])
    finally:
        await connection.close()


async def _drop(addresses: Mapping[str, str], name: str, admin_url: str) -> None:
    for key in ("cache_url", "queue_url"):
        async with Redis.from_url(addresses[key]) as client:
            await client.flushdb()
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


def _on_database(url: str, name: str) -> str:
    return url.rpartition("/")[0] + "/" + name


def _worker_number(worker_id: str) -> int:
    return int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_apart(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end from a synchronous fixture, away from the session's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


# Servers -------------------------------------------------------------------------------------------------------------


class Server:
    """A real process of ours that serves HTTP."""

    def __init__(self, settings: Settings, process: "subprocess.Popen[bytes] | forks.Forked", log: Path, url: str) -> None:
        self.settings = settings
        self.url = url
        self.process = process
        self.log = log
        self._token = ""

    @property
    def token(self) -> str:
        """A service key with every scope, made at the first need."""
        if not self._token:
            said = command(self.settings, "apikeys", "create", "--name", "tests", "--scopes", ALL_SCOPES, "--json")
            self._token = str(json.loads(said)["token"])
        return self._token

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def kill(self) -> None:
        """kill -9 of the server and all that it started."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Drain and end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SERVER_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Server]:
    """One server for this worker's database."""
    running = start_server(settings)
    yield running
    running.stop()


def start_server(settings: Settings, port: int | None = None) -> Server:
    """Start `piggybank serve` and wait until it is ready; the caller stops it."""
    settings = msgspec.structs.replace(settings, port=port or store_files.free_ports(1)[0])
    return _started(settings, "serve", settings.url, f"{settings.url}/health/ready", settings.data_dir / f"server-{settings.port}.log")


def start_simulator(settings: Settings) -> Server:
    """Start `piggybank simulator` on these settings' port and wait until it answers; the caller stops it."""
    url = settings.simulator_address
    return _started(settings, "simulator", url, f"{url}/health/live", settings.data_dir / f"simulator-{settings.simulator_port}.log")


def _started(settings: Settings, verb: str, url: str, health: str, log: Path) -> Server:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    running = Server(settings, start_process(settings, verb, log), log, url)
    until = time.monotonic() + SERVER_START_TIMEOUT_S
    while not _is_ready(health):
        if running.process.poll() is not None or time.monotonic() > until:
            running.kill()
            pytest.fail(f"piggybank {verb} did not become ready; its log ends:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)
    return running


def start_process(settings: Settings, verb: str, log: Path) -> "subprocess.Popen[bytes] | forks.Forked":
    """`piggybank serve`, `worker` or `simulator` with these settings; its outputs go to the end of `log`."""
    if COUNTING_FOLDER not in os.environ:
        return forks.start((verb,), environment(settings), log)
    with log.open("ab") as output:  # prometheus_client reads that when it is imported
        return subprocess.Popen(
            [sys.executable, "-m", "piggybank", verb],
            env=environment(settings),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def command(settings: Settings, *words: str) -> str:
    """Run `piggybank ..` for these settings, which must end well; what it printed."""
    done = run_command(settings, *words)
    assert done.returncode == 0, f"piggybank {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_command(settings: Settings, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    """The same, however it ends."""
    return forks.run(words, environment(settings), given, COMMAND_TIMEOUT_S)


def environment(settings: Settings) -> dict[str, str]:
    """The environment that makes a subprocess read exactly these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")}
    return kept | settings_file.as_environment(settings)


def _is_ready(health: str) -> bool:
    try:
        return httpx.get(health, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
