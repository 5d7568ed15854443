"""Delivery of events: in order for each object, many objects at a time, again and again until somebody takes them.

Only the head of each object's line to a receiver is sent; the next becomes the head when the former was taken or given up. What
counts as taken is any 2xx. The bytes of a try are always those of the first one; the signature is made with the key of the moment.
"""

import asyncio
import sqlite3
import time
from contextlib import suppress

import httpx
import msgspec

from piggybank import telemetry
from piggybank.simulator import events, keys, timers
from piggybank.simulator.simulation import Simulation
from piggybank.simulator.webhooks import Webhook

PARALLEL = 32
TIMEOUT_S = 10.0  # of one try, real seconds: it measures the receiver
RETRIES = 8
FIRST_PAUSE_S = 30.0
PAUSE_FACTOR = 3.0  # 30 s, 90 s, .. 18 h: together 27 h
GIVE_UP_S = 36 * 3_600.0
NOT_NOTED_PAUSE_S = 5.0  # real seconds
LONGEST_WAIT_S = 60.0  # the machine's clock may be set meanwhile
KEPT_S = 7 * 86_400.0  # what is done is forgotten; the counts stay
PRUNE_EVERY_S = 86_400.0
PRUNED_ROWS = 5_000  # of one transaction
ANSWER_MAX_CHARACTERS = 200

_DUE = """
SELECT d.seq, d.event, d.object_id, d.receiver, d.url, d.due_at, d.first_tried_at, d.attempts, d.bad_signatures, e.event_type, e.body
FROM deliveries AS d JOIN events AS e ON e.seq = d.event
WHERE d.state = 'waiting' AND d.is_head = 1 AND d.due_at <= ?
ORDER BY d.due_at LIMIT ?
"""
_NEXT_DUE = "SELECT seq, due_at FROM deliveries WHERE state = 'waiting' AND is_head = 1 ORDER BY due_at LIMIT ?"
_WEBHOOK = "SELECT body, private_key FROM webhooks WHERE id = ?"
_END = """
UPDATE deliveries SET state = ?, is_head = 0, attempts = ?, first_tried_at = ?, last_answer = ?, updated_on = ?
WHERE seq = ? AND state = 'waiting'
"""
_AGAIN = """
UPDATE deliveries SET due_at = ?, attempts = ?, first_tried_at = ?, last_answer = ?, updated_on = ? WHERE seq = ? AND state = 'waiting'
"""
_COUNT = "UPDATE delivery_counts SET deliveries = deliveries + ? WHERE state = ?"
_PROMOTE = """
UPDATE deliveries SET is_head = 1
WHERE seq = (SELECT min(seq) FROM deliveries WHERE receiver = ? AND object_id = ? AND state = 'waiting')
"""
_PRUNE = """
DELETE FROM deliveries
WHERE seq IN (SELECT seq FROM deliveries WHERE state <> 'waiting' AND updated_on < ? ORDER BY updated_on LIMIT ?)
"""
_PRUNE_EVENTS = """
DELETE FROM events
WHERE seq IN (
    SELECT seq FROM events WHERE NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.event = events.seq) ORDER BY seq LIMIT ?
)
"""

_log = telemetry.logger("simulator")


def _own_machine() -> dict[str, httpx.AsyncHTTPTransport]:
    """An installation on this machine that answers HTTPS has a certificate for the name that others call it by."""
    limits = httpx.Limits(max_connections=PARALLEL, max_keepalive_connections=PARALLEL)
    return {
        address: httpx.AsyncHTTPTransport(verify=False, limits=limits)
        for address in ("https://127.0.0.1", "https://localhost", "https://[::1]")
    }


async def run(sim: Simulation) -> None:
    """Until cancelled; what is being sent then is sent again after the next start."""
    limits = httpx.Limits(max_connections=PARALLEL, max_keepalive_connections=PARALLEL)
    async with (
        httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False, follow_redirects=False, mounts=_own_machine()) as client,
        _Senders() as senders,
    ):
        while True:
            sim.deliveries_changed.clear()
            for row in sim.book.rows(_DUE, (time.time(), PARALLEL + len(senders.of))):
                if len(senders.of) >= PARALLEL:
                    break
                if row["seq"] not in senders.of:
                    senders.start(sim, client, row)
            with suppress(TimeoutError):
                async with asyncio.timeout(_wait_s(sim, senders)):
                    await sim.deliveries_changed.wait()


def deliver_now(sim: Simulation) -> int:
    """Everything that waits becomes due; answers how many."""
    with sim.book.writing():
        moved = sim.book.execute("UPDATE deliveries SET due_at = ? WHERE state = 'waiting'", (time.time(),)).rowcount
    sim.deliveries_changed.set()
    return moved


def counts(sim: Simulation) -> dict[str, int]:
    """How many there are by state, the pruned ones too."""
    return {row["state"]: row["deliveries"] for row in sim.book.rows("SELECT state, deliveries FROM delivery_counts")}


def ensure_pruning(sim: Simulation) -> None:
    """Have it happen once a day, of the real world: it is about this machine's disk."""
    if not timers.is_waiting(sim, "prune"):
        timers.put(sim, "prune", "", PRUNE_EVERY_S)


def prune(sim: Simulation) -> None:
    """Forget what was done long ago; inside the clockwork's transaction."""
    pruned = sim.book.execute(_PRUNE, (int(time.time() - KEPT_S), PRUNED_ROWS)).rowcount
    sim.book.execute(_PRUNE_EVENTS, (PRUNED_ROWS,))
    timers.put(sim, "prune", "", 0 if pruned == PRUNED_ROWS else PRUNE_EVERY_S)


class _Senders:
    """The tries that are under way, by delivery."""

    def __init__(self) -> None:
        self.of: dict[int, asyncio.Task[None]] = {}

    async def __aenter__(self) -> "_Senders":
        return self

    async def __aexit__(self, *_: object) -> None:
        under_way = list(self.of.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def start(self, sim: Simulation, client: httpx.AsyncClient, row: sqlite3.Row) -> None:
        task = asyncio.create_task(_deliver(sim, client, row))
        self.of[row["seq"]] = task
        task.add_done_callback(lambda _: self._end(sim, row["seq"]))

    def _end(self, sim: Simulation, seq: int) -> None:
        del self.of[seq]
        sim.deliveries_changed.set()


def _wait_s(sim: Simulation, senders: _Senders) -> float:
    """Until the next that is not under way is due."""
    if len(senders.of) >= PARALLEL:
        return LONGEST_WAIT_S  # the end of one wakes
    upcoming = sim.book.rows(_NEXT_DUE, (len(senders.of) + 1,))
    return min((row["due_at"] - time.time() for row in upcoming if row["seq"] not in senders.of), default=LONGEST_WAIT_S)


async def _deliver(sim: Simulation, client: httpx.AsyncClient, row: sqlite3.Row) -> None:
    tried_at = time.time()
    try:
        url, headers = _addressed(sim, row)
        answer = await client.post(url, content=row["body"], headers=headers)
        accepted, said = answer.is_success, str(answer.status_code)
    except Exception as cause:  # whatever it is, the next try comes after a pause and not at once
        accepted, said = False, f"{type(cause).__name__}: {cause}"[:ANSWER_MAX_CHARACTERS]
    try:
        with sim.book.writing():
            _note(sim, row, tried_at, said, accepted=accepted)
    except sqlite3.Error as cause:  # a full disk; it is sent again, but not at once
        _log.error("delivery_not_noted", delivery=row["seq"], exc_info=cause)
        await asyncio.sleep(NOT_NOTED_PAUSE_S)


def _addressed(sim: Simulation, row: sqlite3.Row) -> tuple[str, dict[str, str]]:
    headers = {"Content-Type": "application/json", "User-Agent": "revio-simulator"}
    if row["receiver"] == events.EFT:
        return row["url"], headers
    url, private = row["url"], sim.keys.company_private
    if row["receiver"] != events.COMPANY:
        webhook = sim.book.row(_WEBHOOK, (row["receiver"],))
        if webhook is None:
            raise httpx.InvalidURL("the webhook was deleted")
        url, private = msgspec.json.decode(webhook["body"], type=Webhook).callback, webhook["private_key"]
    is_spoiled = row["attempts"] < row["bad_signatures"]
    headers["X-Signature"] = keys.sign(private, b"spoiled" + row["body"] if is_spoiled else row["body"])
    return url, headers


def _note(sim: Simulation, row: sqlite3.Row, tried_at: float, said: str, *, accepted: bool) -> None:
    """How the try ended, and what becomes of the line behind it."""
    attempts, now = row["attempts"] + 1, sim.book.now()
    first_tried_at = tried_at if row["first_tried_at"] is None else row["first_tried_at"]
    due_at = time.time() + sim.wait_s(FIRST_PAUSE_S * PAUSE_FACTOR ** row["attempts"])
    is_hopeless = attempts > RETRIES or due_at > first_tried_at + sim.wait_s(GIVE_UP_S)
    if not accepted and not is_hopeless:
        sim.book.execute(_AGAIN, (due_at, attempts, first_tried_at, said, now, row["seq"]))
        return
    state = "delivered" if accepted else "given_up"
    if sim.book.execute(_END, (state, attempts, first_tried_at, said, now, row["seq"])).rowcount == 0:
        return  # its webhook was deleted while it was sent
    for counted, change in (("waiting", -1), (state, 1)):
        sim.book.execute(_COUNT, (change, counted))
    sim.book.execute(_PROMOTE, (row["receiver"], row["object_id"]))
