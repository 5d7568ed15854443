"""What is done beside the requests: one table of jobs, each with its rhythm, its timeout and its retries.

Every job may run twice at once or half-way and again: it looks in the database for what is left to do, does it in bounded
slices, and each slice is idempotent. The queue only says when.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from piggybank.jobs import alerts, capacity, heartbeat, keys, outbox, partitions, people, reports, revio
from piggybank.jobs.work import Work


class Job(NamedTuple):
    """`cron` has a sixth field for seconds; `retries` counts the attempts of one run."""

    run: Callable[[Work], Awaitable[int]]  # answers how many rows it dealt with
    cron: str
    timeout_s: int
    retries: int


# The outbox, the provider's events and what is to be sent are not in it: loops of their own in every worker take them each second
# (see piggybank/worker.py).
JOBS: dict[str, Job] = {
    "build_reports": Job(reports.build, "*/5 * * * *", timeout_s=300, retries=3),
    "prune_keys": Job(keys.prune, "17 * * * *", timeout_s=300, retries=2),
    "ask_about_payments": Job(revio.ask_about_payments, "* * * * * */30", timeout_s=300, retries=1),
    "unstick_events": Job(revio.unstick_events, "*/5 * * * *", timeout_s=60, retries=1),
    "look_after_webhook": Job(revio.look_after_webhook, "* * * * *", timeout_s=60, retries=1),
    "reconcile_yesterday": Job(revio.reconcile_yesterday, "30 2 * * *", timeout_s=3_600, retries=3),
    "record_usage": Job(capacity.record, "* * * * * 15", timeout_s=30, retries=1),  # 15 s after the minute: its commits are in
    "roll_up_usage": Job(capacity.roll_up, "7 * * * *", timeout_s=60, retries=2),
    "ensure_partitions": Job(partitions.ensure, "43 * * * *", timeout_s=600, retries=2),
    "prune_people": Job(people.prune, "37 * * * *", timeout_s=120, retries=2),
}

SWEEP_EVERY_S = 1.0
SWEEP_TIMEOUT_S = 30
APPLY_TIMEOUT_S = 600  # a round of events

__all__ = ["APPLY_TIMEOUT_S", "JOBS", "SWEEP_EVERY_S", "SWEEP_TIMEOUT_S", "Job", "Work", "alerts", "heartbeat", "outbox", "revio"]
