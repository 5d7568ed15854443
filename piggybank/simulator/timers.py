"""What is to happen later: rows with a moment, an action and the id that it is about (see clockwork.py)."""

import time
from typing import NamedTuple

from piggybank.simulator.simulation import Simulation


class Timer(NamedTuple):
    """`details` is what the action wants to know beside the id."""

    seq: int
    due_at: float
    action: str
    subject: str
    details: str


def put(sim: Simulation, action: str, subject: str, wait_s: float, details: str = "") -> None:
    """Have it done in `wait_s` seconds of the real world; inside a transaction."""
    put_at(sim, action, subject, time.time() + wait_s, details)


def put_at(sim: Simulation, action: str, subject: str, due_at: float, details: str = "") -> None:
    """Have it done at a moment of the real world; inside a transaction."""
    row = (due_at, action, subject, details)
    sim.book.execute("INSERT INTO timers (due_at, action, subject, details) VALUES (?, ?, ?, ?)", row)
    sim.timers_changed.set()


def drop(sim: Simulation, action: str, subject: str) -> None:
    """It is not to happen any more: somebody did it by hand."""
    sim.book.execute("DELETE FROM timers WHERE action = ? AND subject = ?", (action, subject))


def is_waiting(sim: Simulation, action: str) -> bool:
    """Whether it is to happen at all."""
    return sim.book.row("SELECT 1 FROM timers WHERE action = ?", (action,)) is not None


def next_one(sim: Simulation) -> Timer | None:
    """The one that is due first."""
    row = sim.book.row("SELECT seq, due_at, action, subject, details FROM timers ORDER BY due_at, seq LIMIT 1")
    return None if row is None else Timer(*row)
