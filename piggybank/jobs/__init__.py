"""What is done beside the requests: one table of jobs, each with its rhythm, its timeout and its retries.

Every job may run twice at once or half-way and again: it looks in the database for what is left to do, does it in bounded
slices, and each slice is idempotent. The queue only says when.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from piggybank.jobs import keys, outbox, people, reports
from piggybank.jobs.work import Work


class Job(NamedTuple):
    """`cron` has a sixth field for seconds; `retries` counts the attempts of one run."""

    run: Callable[[Work], Awaitable[int]]  # answers how many rows it dealt with
    cron: str
    timeout_s: int
    retries: int


# The outbox is not in it: it is swept by a loop of its own in every worker (see piggybank/worker.py).
JOBS: dict[str, Job] = {
    "build_reports": Job(reports.build, "*/5 * * * *", timeout_s=300, retries=3),
    "prune_keys": Job(keys.prune, "17 * * * *", timeout_s=300, retries=2),
    "prune_people": Job(people.prune, "37 * * * *", timeout_s=120, retries=2),
}

SWEEP_EVERY_S = 1.0
SWEEP_TIMEOUT_S = 30

__all__ = ["JOBS", "SWEEP_EVERY_S", "SWEEP_TIMEOUT_S", "Job", "Work", "outbox"]
