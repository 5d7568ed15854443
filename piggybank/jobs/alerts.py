"""Look each minute whether something is wrong, and tell those who should know: by the log, a mail, a webhook.

A loop of its own beside the queue, since a queue that is away is one of the things to be told. So it also writes the minute down where the
queue's job did not. A dead man's switch is asked when all that went well, every channel has heard and somebody serves: elsewhere somebody
then notices that it does not any more. What fires is in the log at once; a channel that fails is tried again each minute, for a day. Each
says what to do, and where the page is. While the database is away nothing can be looked at, nor agreed upon with other workers: each tells
that from memory.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import msgspec
import structlog

from piggybank import errors, ids
from piggybank.capacity import alerts, runbooks, usage, watching
from piggybank.capacity.usage import Noted
from piggybank.capacity.watching import Fired
from piggybank.identity import mail
from piggybank.jobs import capacity
from piggybank.jobs.work import Work

LOOK_AT_S = 20  # after the minute: the queue's job has written it down by then
TELL_TIMEOUT_S = 5.0

News = Literal["firing", "resolved"]
Channel = Callable[[Work, Fired, News], Awaitable[None]]

_log = structlog.get_logger()


class Watch:
    """One worker's: asked each second, it looks once a minute."""

    __name__ = "watch"

    def __init__(self) -> None:
        self._seen: datetime | None = None
        self._known = usage.last_minute(datetime.now(UTC))  # when somebody could look, or this began
        self._missed: datetime | None = None
        self._from_memory: Fired | None = None

    async def __call__(self, work: Work) -> int:
        """How many alerts began or ended."""
        now = datetime.now(UTC)
        minute = usage.last_minute(now)
        if now.second < LOOK_AT_S or minute == self._seen:
            return 0
        changed = await look(work, minute)
        self._seen = self._known = minute
        if self._from_memory is not None:
            ended = self._from_memory.resolved_at or now
            self._from_memory = await _tell_from_memory(work, msgspec.structs.replace(self._from_memory, resolved_at=ended))
        return changed

    async def missed(self, work: Work) -> int:
        """Asked where the above failed: once a minute, whether that is to be told. Answers how many alerts began."""
        now = datetime.now(UTC)
        minute = usage.last_minute(now)
        if now.second < LOOK_AT_S or minute == self._missed:
            return 0
        self._missed, began = minute, 0
        if self._from_memory is None:
            alert = alerts.unwatched()
            value = alerts.firing(alert, {self._known: Noted()}, minute, work.settings.alert_pace)
            if value is None:
                return 0
            self._from_memory, began = _remembered(alert, value, now), 1
        self._from_memory = await _tell_from_memory(work, msgspec.structs.replace(self._from_memory, resolved_at=None))
        return began


async def look(work: Work, minute: datetime) -> int:
    """Write that minute down where nobody did, compare, tell; answers how many alerts began or ended."""
    async with work.db.read() as read:
        known = await usage.noted(read, minute, minute)
    if not known:
        await capacity.record(work)
    async with work.db.write(lasting=False) as write:
        fired, resolved = await watching.watch(write, minute, work.settings.alert_pace)
    await tell(work)
    async with work.db.read() as read:
        firing = [alerts.named(each.name, each.severity) for each in await watching.listed(read, "firing")]
        untold = await watching.waits(read, datetime.now(UTC), list(_wanted(work)))
    if not untold and not any(alert is not None and alert.stops_ping for alert in firing):
        await _still_alive(work)
    return fired + resolved


async def tell(work: Work) -> int:
    """Tell what each channel has not told yet; answers how much was told."""
    channels = _wanted(work)
    async with work.db.write(lasting=False) as write:
        waiting = await watching.claim(write, datetime.now(UTC), list(channels))
    done = 0
    for alert in waiting:
        by = [mark for name, channel in channels.items() for mark in await _told(work, name, channel, alert)]
        async with work.db.write(lasting=False) as write:
            await watching.told(write, alert, by)
        done += len(by)
    return done


def _wanted(work: Work) -> dict[str, Channel]:
    return {name: channel for name, (wanted, channel) in _CHANNELS.items() if wanted(work)}


def _remembered(alert: alerts.Alert, value: float, now: datetime) -> Fired:
    return Fired(
        id=ids.new_id(0, int(now.timestamp()) * 1_000_000_000),
        name=alert.name,
        severity=alert.severity,
        since=now,
        value=value,
        threshold=alert.threshold,
        message=alert.message(value),
        resolved_at=None,
        told=[],
        claimed_until=None,
    )


async def _tell_from_memory(work: Work, alert: Fired) -> Fired | None:
    """Without its table; None when it has ended and every channel knows."""
    told = list(alert.told)
    channels = _wanted(work)
    for name, channel in channels.items():
        told += await _told(work, name, channel, alert)
    if all(f"{name}:resolved" in told for name in channels):
        return None
    return msgspec.structs.replace(alert, told=told)


async def _told(work: Work, name: str, channel: Channel, alert: Fired) -> list[str]:
    """What the channel has told now, as it is written down; a failure of it keeps no other from telling."""
    by = []
    for news in alert.news:
        mark = f"{name}:{news}"
        if mark in alert.told:
            continue
        try:
            await channel(work, alert, news)
        except (errors.MailFailed, httpx.HTTPError, httpx.InvalidURL) as cause:
            _log.warning("alert_not_told", alert=alert.name, by=name, because=type(cause).__name__)
            break  # the first news first
        by.append(mark)
    return by


async def _log_it(work: Work, alert: Fired, news: News) -> None:
    say = _log.info if news == "resolved" else _log.critical if alert.severity == "critical" else _log.warning
    say(f"alert_{news}", alert=alert.name, severity=alert.severity, message=alert.message, **_help(work, alert, news))


async def _mail_it(work: Work, alert: Fired, news: News) -> None:
    subject = f"[piggybank] {'resolved' if news == 'resolved' else alert.severity}: {alert.name}"
    lines = [
        alert.message,
        "",
        f"since: {alert.since:%Y-%m-%d %H:%M} UTC",
        *([f"until: {alert.resolved_at:%Y-%m-%d %H:%M} UTC"] if alert.resolved_at else []),
        f"where: {work.settings.url}",
        *(["", "what to do:", *(f"- {step}" for step in runbooks.steps(alert.name))] if news == "firing" else []),
        "",
        f"all about it: {runbooks.address(work.settings.url, alert.name)}",
        "",
    ]
    await mail.send(work.settings, work.settings.alert_email, subject, "\n".join(lines))


async def _post_it(work: Work, alert: Fired, news: News) -> None:
    said = {
        "status": news,
        "name": alert.name,
        "severity": alert.severity,
        "since": alert.since.isoformat(),
        "resolved_at": alert.resolved_at and alert.resolved_at.isoformat(),
        "value": alert.value,
        "threshold": alert.threshold,
        "message": alert.message,
        "installation": work.settings.url,
        **_help(work, alert, news),
    }
    async with _client() as client:
        (await client.post(work.settings.alert_webhook_url, json=said)).raise_for_status()


def _help(work: Work, alert: Fired, news: News) -> dict[str, Any]:
    """What to do, while there is something to be done, and where the whole page is."""
    page = {"runbook": runbooks.address(work.settings.url, alert.name)}
    return {"do": runbooks.steps(alert.name), **page} if news == "firing" else page


async def _still_alive(work: Work) -> None:
    if work.settings.alert_ping_url:
        try:
            async with _client() as client:
                (await client.get(work.settings.alert_ping_url)).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            _log.warning("ping_failed", because=type(cause).__name__)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TELL_TIMEOUT_S, follow_redirects=False)


_CHANNELS: dict[str, tuple[Callable[[Work], bool], Channel]] = {
    "log": (lambda _: True, _log_it),
    "email": (lambda work: bool(work.settings.alert_email) and mail.can_send(work.settings), _mail_it),
    "webhook": (lambda work: bool(work.settings.alert_webhook_url), _post_it),
}
