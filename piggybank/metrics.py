"""What this process counts, and how all processes of an installation are read as one.

Each process counts in files that are mapped into memory (`PROMETHEUS_MULTIPROC_DIR`, which the supervisor gives to what it starts); who
is asked reads those of all. A file outlives its process, so nothing that was counted is lost; files of the dead are folded into one,
under a lock, or a look between the two steps would see a number fall. Without that folder (containers: one process each, and whoever
scrapes adds up) the same counters are in memory. The files are written out before they are mapped: a page that a full disk does not give
would end the process.

Labels are few and ours: a route's template, never a path; no account, no person.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from piggybank import settings

FILES = {"counter": 131_072, "histogram": 4_194_304}  # bytes of each: more than all series of one process take (6 KiB a route and status)
_DEAD = 0  # in a pid's place: no process has it
_FOLDED = ".folded"  # the sum with what a dead process counted, until it has taken their place
_LOCK = "lock"
_HEADER_BYTES = 8  # of each file

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)  # 0.2 and 0.5 are thresholds
WAITS = (*SECONDS, 30.0)
LAGS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 600.0, 1_800.0, 3_600.0, 21_600.0, 129_600.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "_OTHER"  # OpenTelemetry's word for what a client made up
NO_ROUTE = "none"
GONE = 499  # the client did not wait for its answer
PROBES = ("/health/live", "/health/ready", "/metrics")  # asked by machines: they say nothing of how people are served


def fold(here: Path) -> None:
    """Add the files of processes that ended to the one of all the dead: else each restart would leave two for ever.

    Raises OSError where the disk has no room for that: then they stay, and are read as they are.
    """
    if not any(here.glob(f"*{_FOLDED}")) and all(psutil.pid_exists(pid) for _, pid, _ in _files(here)):
        return
    with _locked(here, fcntl.LOCK_EX):
        for half_done in here.glob(f"*{_FOLDED}"):
            _settle(half_done)
        for kind, pid, path in _files(here):
            if not psutil.pid_exists(pid):
                _settle(_added(path, here / f"{kind}_{_DEAD}.db", FILES[kind]))


def _added(path: Path, whole: Path, size: int) -> Path:
    """The sum of both beside them, under the name of what it has taken in: whoever is killed before `_settle` ended has counted once."""
    known = list(MmapedDict.read_all_values_from_file(str(path)))  # type: ignore[no-untyped-call]
    before = whole.read_bytes() if whole.exists() else bytes(size)
    making = whole.with_suffix(".new")
    try:
        with making.open("wb") as file:  # room for all of it, should none of it be there yet; no copy that shares its pages
            file.write(before)
            file.write(bytes(max(0, _used(path) + int.from_bytes(before[:4], sys.byteorder) + _HEADER_BYTES - len(before))))
        total = MmapedDict(str(making))  # type: ignore[no-untyped-call]
        try:
            for key, value, _, _ in known:
                total.write_value(key, total.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
        finally:
            total.close()  # type: ignore[no-untyped-call]
        return making.rename(path.with_suffix(_FOLDED))
    finally:
        making.unlink(missing_ok=True)  # half of it: a full disk is not to stay full


def _settle(sum_of_both: Path) -> None:
    """It takes the place of the two."""
    sum_of_both.with_suffix(".db").unlink(missing_ok=True)
    sum_of_both.rename(sum_of_both.with_name(f"{sum_of_both.stem.rpartition('_')[0]}_{_DEAD}.db"))


def _used(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), sys.byteorder)


def _allocate(path: Path, size: int) -> None:
    """A file of that size whose every page is on the disk, where there is none; nobody sees half of it."""
    if path.exists():
        return
    making = path.with_suffix(".new")
    try:
        making.write_bytes(bytes(size))
        making.rename(path)
    finally:
        making.unlink(missing_ok=True)


def _files(here: Path) -> list[tuple[str, int, Path]]:
    """(kind, pid, path) of what living and dead processes left, without the sum of the dead."""
    found = []
    for path in here.glob("*.db"):
        kind, _, pid = path.stem.rpartition("_")
        if kind in FILES and pid.isdigit() and int(pid) != _DEAD:
            found.append((kind, int(pid), path))
    return found


@contextmanager
def _locked(here: Path, how: int) -> Iterator[None]:
    handle = os.open(here / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _prepared(here: Path | None) -> Path | None:
    """That folder, with this process's files in it; None where that cannot be: then it counts for itself alone."""
    if here is None:
        return None
    try:
        with suppress(Exception):  # whatever the dead left: it keeps nobody from starting
            fold(here)  # also where nobody ever asks
        for kind, size in FILES.items():
            _allocate(here / f"{kind}_{os.getpid()}.db", size)  # one that is there is of a dead process of the same number: it goes on
        with _locked(here, fcntl.LOCK_SH):
            return here
    except OSError:
        values.ValueClass = values.MutexValue
        return None


_here = _prepared(settings.counting_folder())

REQUESTS = Histogram(
    "http_server_request_duration_seconds",
    "Seconds from a request's first byte to its answer.",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=SECONDS,
)
POSTINGS = Counter("ledger_postings", "Commands that the ledger decided, by their kind and what came of them.", ["kind", "outcome"])
REPLAYS = Counter("ledger_idempotent_replays", "Commands that were answered from their idempotency key.")
BATCH_SIZE = Histogram("ledger_batch_size", "Commands in one database transaction.", buckets=BATCHES)
BATCH_SECONDS = Histogram("ledger_batch_duration_seconds", "Seconds of one batch, from BEGIN to its commit.", buckets=SECONDS)
COMMIT_SECONDS = Histogram("ledger_commit_duration_seconds", "Seconds of a batch's COMMIT alone.", buckets=SECONDS)
QUEUE_WAIT = Histogram("ledger_queue_wait_seconds", "Seconds that the oldest command of a batch had waited.", buckets=WAITS)
RETRIES = Counter("ledger_batch_retries", "Batches that were posted again: a key known, an account locked, a connection lost.", ["why"])
LOOKUPS = Counter("cache_lookups", "Values looked for in the cache.", ["kind", "result"])
READS = Counter("db_reads", "Reads that a replica may answer, by who did: replica, or primary with the reason.", ["target", "reason"])
SLOW_QUERIES = Counter("db_slow_queries", "Statements that took longer than 100 ms.")
WEBHOOK_LAG = Histogram("psp_webhook_lag_seconds", "Seconds from an event of the provider to its arrival here.", buckets=LAGS_S)
BAD_SIGNATURES = Counter("psp_webhook_signature_failures", "Events refused because no key of ours had signed them.")
JOBS = Counter("saq_jobs", "Runs of jobs, by how they ended.", ["task", "status"])

TABLE: tuple[Counter | Histogram, ...] = (
    *(REQUESTS, POSTINGS, REPLAYS, BATCH_SIZE, BATCH_SECONDS, COMMIT_SECONDS, QUEUE_WAIT, RETRIES),
    *(LOOKUPS, READS, SLOW_QUERIES, WEBHOOK_LAG, BAD_SIGNATURES, JOBS),
)


def all_processes() -> CollectorRegistry:
    """The counters of every process, the dead included; of this one alone where there is no folder."""
    if _here is None:
        return REGISTRY
    registry = CollectorRegistry()
    registry.register(_Together(_here))
    return registry


def wipe(here: Path) -> None:
    """Begin at 0: nobody counts in it now."""
    for file in (*here.glob("*.db"), *here.glob("*.new"), *here.glob(f"*{_FOLDED}")):
        with suppress(OSError):
            file.unlink()


class _Together(Collector):
    """All files as one; those of the dead are folded first."""

    def __init__(self, here: Path) -> None:
        self._here = here

    def collect(self) -> Iterator[object]:  # type: ignore[override] # prometheus_client's own are Iterable[Metric], which these are
        with suppress(OSError):
            fold(self._here)
        with _locked(self._here, fcntl.LOCK_SH):
            files = [str(path) for path in self._here.glob("*.db")]
            yield from MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]


def request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request."""
    _requests(method if method in METHODS else OTHER_METHOD, route or NO_ROUTE, str(status or GONE)).observe(seconds)


@lru_cache(maxsize=4_096)  # as many as there are routes and statuses; the library's own look-up takes a lock and half the time
def _requests(method: str, route: str, status: str) -> Histogram:
    return REQUESTS.labels(method, route, status)
