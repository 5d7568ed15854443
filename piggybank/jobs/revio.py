"""The provider's side of the jobs: apply its events, send what waits, ask about what is quiet, compare books at night.

Events and payments are taken by every worker each second, a claimed slice at a time; the rest is asked for by SAQ. A provider that is
away fails no job: what was not done is due again, later with every attempt.
"""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import structlog

from piggybank import errors
from piggybank.jobs.work import Work
from piggybank.revio import Refused, Unclear, Unsent
from piggybank.wallet import deposits, inbox, orders, reconciliation, withdrawals
from piggybank.wallet.provider import callback_url, connect
from piggybank.wallet.settlement import Unmatched

EVENT_SLICES_MAX = 50  # of one round
QUIET_AFTER_S = 120.0  # a payment that nobody heard of for so long is asked about
ASKED_TOGETHER = 6
ASKED_MAX = 600  # of one run
ABANDONED_AFTER = timedelta(hours=1)
CAUGHT_UP_MOST = timedelta(days=31)  # after nights that were missed

_log = structlog.get_logger()


async def apply_events(work: Work) -> int:
    """Apply events that wait; answers how many."""
    mode = await work.provider.mode()
    applied = 0
    for _ in range(EVENT_SLICES_MAX):
        slice_events = await inbox.apply_due(work.db, work.ledger, mode)
        applied += slice_events
        if slice_events < inbox.SLICE_EVENTS:
            break
    return applied


async def send_payments(work: Work) -> int:
    """Send payouts and refunds that wait; answers how many."""
    return await withdrawals.send_due(work.db, work.ledger, work.provider)


async def ask_about_payments(work: Work, *, quiet_s: float = QUIET_AFTER_S) -> int:
    """Ask the provider about open payments that are quiet, and end checkouts whose time is over; answers how many."""
    try:
        mode = await work.provider.check()
    except errors.ProviderNotConfigured:
        return 0
    asked = 0
    while asked < ASKED_MAX and (due := await orders.claim(work.db, orders.QUIET, mode, limit=ASKED_TOGETHER, quiet_s=quiet_s)):
        await orders.together(_ask(work, payment_id) for payment_id in due)
        asked += len(due)
    return asked


async def _ask(work: Work, payment_id: UUID) -> None:
    payment = await orders.get(work.db, payment_id)
    ask = deposits.ask if payment.kind == "deposit" else withdrawals.ask
    try:
        await ask(work.db, work.ledger, work.provider, payment)
    except (errors.ProviderUnavailable, errors.ProviderRefused, errors.PaymentMovedOn) as waits:
        _log.info("payment_not_told", payment=str(payment_id), because=waits.code)
    except Unmatched as cause:
        _log.error("provider_answer_not_posted", payment=str(payment_id), because=str(cause))
    await orders.put_off(work.db, payment)


async def unstick_events(work: Work) -> int:
    """Events that nobody will take any more are made due."""
    return await inbox.unstick(work.db)


async def introduce(work: Work) -> int:
    """At the start, until it is done once: a payment made right now is not to wait for the next look."""
    if work.provider.introduced:
        return 0
    return await look_after_webhook(work)


async def look_after_webhook(work: Work) -> int:
    """Know the keys of our webhook, also after they were changed; in the simulator the webhook is registered, too."""
    try:
        client, mode = await work.provider.client(), await work.provider.mode()
        callback = callback_url(work.settings, mode)
        work.provider.introduced = mode == "live"  # there an operator registers it: piggybank provider connect
        if mode == "live" and all(webhook.callback != callback for webhook in await client.webhooks()):
            return 0
        await connect(work.provider)
    except errors.ProviderNotConfigured:
        work.provider.introduced = True
        return 0
    except (Refused, Unsent, Unclear) as cause:
        _log.info("provider_webhook_not_known", because=str(cause))
        return 0
    work.provider.introduced = True
    return 1


async def reconcile_yesterday(work: Work) -> int:
    """Compare the day before with the provider's statement, and the days before it that nobody compared; answers the differences."""
    await reconciliation.give_up_abandoned(work.db, older_than=ABANDONED_AFTER)
    until = datetime.combine(datetime.now(UTC).date(), time(0), tzinfo=UTC)
    since = until - timedelta(days=1)
    last = await reconciliation.compared_until(work.db, await work.provider.mode())
    if last is not None:
        since = max(min(since, last), until - CAUGHT_UP_MOST)
    return await reconcile(work, since, until)


async def reconcile(work: Work, since: datetime, until: datetime, tell: Callable[[str], None] = lambda _: None) -> int:
    """Compare [since, until); 0 also where there is no provider to compare with."""
    try:
        found = await reconciliation.reconcile(work.db, work.ledger, work.provider, since, until, tell)
    except errors.ProviderNotConfigured:
        return 0
    return found.items_count
