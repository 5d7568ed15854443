"""The load: a closed loop of HTTP/1.1 connections in a process of its own, as cheap as Python can.

`python -m piggybank.bench.load`: a `Job` as JSON on standard input, a `Result` on standard output. Each connection sends its next
request when the last was answered; at the end what is under way is waited for, so every answer is counted. With `per_second` it
sends at that rate instead, as long as a connection is free. After a 503 a connection rests for what Retry-After says.
"""

import asyncio
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator

import msgspec
import uvloop
from msgspec import Struct

from piggybank.bench.scenarios import BATCH_COMMANDS, ROWS, SCENARIOS, Kind, Request, requests

DRAIN_S = 15
WARM_UP_MAX_S = 60  # of requests that are counted, not timed
HOTTEST = 10  # accounts that are told apart
WATCHED = 100  # accounts after them, each for itself: beyond those too few requests come
SEED = 7
RETRY_AFTER_S = 1
TICK_S = 0.005  # of an open loop
_LENGTH = b"content-length: "
_POSTED = b'"status":201'  # of a command in the answer of a batch, which is 200 whatever became of them


class Job(Struct, frozen=True, kw_only=True):
    """What to send where. The first `warm_up_s` seconds and `warm_up_requests` (of a closed loop) are sent, but not timed."""

    scenario: str
    port: int
    token: str
    accounts: list[str]
    connections: int
    warm_up_s: float
    seconds: float
    mark: str
    warm_up_requests: int = 0
    per_second: float = 0


class Result(Struct, frozen=True, kw_only=True):
    """`answers` counts every answer, `kind status`, and `rows` what they say was posted; the rest is of the timed part.

    `timed` are commands that were done, `refused` those that were not: one a request, more in a batch. Times are of answers with 2xx.
    `unsent`: what an open loop could not send in time, since every connection waited for an answer. `own_cpu_us`: what a request cost
    here, not there.
    """

    answers: dict[str, int]
    rows: int
    timed: int
    refused: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cool_p99_ms: float  # of accounts outside the hottest, together
    watched_ms: dict[int, list[float]]  # of each of the next WATCHED, by rank
    unsent: int
    own_cpu_us: float

    @property
    def per_second(self) -> float:
        return self.timed / self.seconds


class _Load:
    def __init__(self, job: Job) -> None:
        self.requests: Iterator[Request] = requests(SCENARIOS[job.scenario], job.accounts, job.token, job.mark, SEED)
        self.seconds = job.seconds
        self.begins = time.perf_counter() + job.warm_up_s
        self.ends = self.begins + job.seconds
        self.cold = job.warm_up_requests
        self.answers: Counter[tuple[Kind, bytes]] = Counter()
        self.rows = 0
        self.timed = 0
        self.took_s: list[float] = []
        self.cool_s: list[float] = []
        self.watched_ms: dict[int, list[float]] = {}
        self.refused = 0
        self.free: deque[_Connection] = deque()  # of an open loop
        self.due: deque[Request] = deque()
        self.open_loop = job.per_second > 0
        self.unsent = 0
        self.busy = job.connections
        self.over = asyncio.Event()  # nothing is under way any more, or never will be
        self.broken = False

    def count(self, request: Request, answer: bytes, since: float) -> None:
        kind, rank, _ = request
        status = answer[9:12]
        self.answers[kind, status] += 1
        asked = done = 1
        if kind == "batch":
            asked, done = BATCH_COMMANDS, answer.count(_POSTED)
        elif status[:1] != b"2":
            done = 0
        if done:
            self.rows += done * ROWS.get(kind, 0)
        now = time.perf_counter()
        if self.cold:
            self.cold -= 1
            self.begins = max(self.begins, now)
            self.ends = self.begins + self.seconds
        elif self.begins <= now <= self.ends:
            self.timed += done
            self.refused += asked - done
            if done:
                self.took_s.append(now - since)
                if rank >= HOTTEST:
                    self.cool_s.append(now - since)
                    if rank < HOTTEST + WATCHED:
                        self.watched_ms.setdefault(rank, []).append(round((now - since) * 1_000, 2))

    def next(self, connection: "_Connection") -> None:
        if self.open_loop:
            if self.due:
                connection.send(time.perf_counter(), self.due.popleft())
                return
            self.free.append(connection)
        elif time.perf_counter() < self.ends:
            connection.send(time.perf_counter(), next(self.requests))
            return
        self.busy -= 1
        if not self.busy and time.perf_counter() >= self.ends:
            self.over.set()

    def lost(self) -> None:
        if not self.over.is_set():
            self.broken = True
            self.over.set()

    async def pace(self, per_second: float) -> None:
        """Send what is due, each tick."""
        started, sent = time.perf_counter(), 0
        while (now := time.perf_counter()) < self.ends and not self.broken:
            for _ in range(sent, int((now - started) * per_second)):
                sent += 1
                if self.free:
                    self.busy += 1
                    self.free.popleft().send(now, next(self.requests))
                else:
                    self.due.append(next(self.requests))
            await asyncio.sleep(TICK_S)
        self.unsent = len(self.due)
        self.due.clear()
        if not self.busy:
            self.over.set()


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined] # uvloop's transports are not asyncio's
        self._load.next(self)

    def send(self, since: float, request: Request) -> None:
        self._since, self._request = since, request
        self._write(request.data)

    def data_received(self, data: bytes) -> None:
        self._received = data = self._received + data if self._received else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        at = data.find(_LENGTH, 0, end)
        length = int(data[at + len(_LENGTH) : data.find(b"\r\n", at)]) if at > 0 else 0
        if len(data) < end + 4 + length:
            return
        self._received = b""
        self._load.count(self._request, data, self._since)
        if data[9:12] == b"503":  # as a client should: after what Retry-After says
            asyncio.get_running_loop().call_later(RETRY_AFTER_S, self._load.next, self)
        else:
            self._load.next(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._load.lost()


async def run(job: Job) -> Result:
    """Send the load and count. Raises ConnectionError where the server closes a connection, TimeoutError where it stops answering."""
    load = _Load(job)
    loop = asyncio.get_running_loop()
    cpu_s = _cpu_s()
    connections = [await loop.create_connection(lambda: _Connection(load), "127.0.0.1", job.port) for _ in range(job.connections)]
    if load.open_loop:
        await load.pace(job.per_second)
    await asyncio.wait_for(load.over.wait(), job.warm_up_s + job.seconds + DRAIN_S + WARM_UP_MAX_S * bool(job.warm_up_requests))
    if load.broken:
        raise ConnectionError("the server closed a connection under load")
    cpu_s = _cpu_s() - cpu_s
    for transport, _ in connections:
        transport.close()
    took, cool = sorted(load.took_s), sorted(load.cool_s)
    return Result(
        answers={f"{kind} {status.decode()}": count for (kind, status), count in load.answers.items()},
        rows=load.rows,
        timed=load.timed,
        refused=load.refused,
        seconds=job.seconds,
        p50_ms=_quantile(took, 0.5),
        p99_ms=_quantile(took, 0.99),
        max_ms=_quantile(took, 1),
        cool_p99_ms=_quantile(cool, 0.99),
        watched_ms=load.watched_ms,
        unsent=load.unsent,
        own_cpu_us=round(cpu_s * 1_000_000 / max(1, load.answers.total()), 1),
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _quantile(sorted_s: list[float], share: float) -> float:
    return round(sorted_s[min(len(sorted_s) - 1, int(len(sorted_s) * share))] * 1_000, 2) if sorted_s else 0.0


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))))
