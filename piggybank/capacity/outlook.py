"""Measured load against the limits of a phase: which comes first, when at the present growth, and which phase then. Pure.

Growth is the slope of a straight line through the days (least squares), and only of what grows with an installation: a lag or a hit
rate goes up and down. A day of which much was not recorded has no sum. Where nothing is known it says so; it is never 0.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from piggybank.capacity import connections, phases
from piggybank.capacity.phases import Phase
from piggybank.capacity.usage import Day

RECENT_DAYS = 7  # a peak of so many days is the measured one
HISTORY_DAYS = 7  # fewer tell no growth
HORIZON_DAYS = 90  # what is reached later is no reason for another phase yet
FORESEEN_DAYS = 3_650
WHOLE_DAY_MINUTES = 1_380  # of 1,440: a day with fewer has no sum
MIB = 1024 * 1024
NO_DATA = "no data"
MENDED_BY = {  # what no phase mends
    "replication lag": "No phase mends that: look at the replicas' disks and network",
    "cache hit rate": "More memory for the cache mends that where its memory is at the limit, too; else it is how the API is used",
}


class Limit(Struct, frozen=True, kw_only=True):
    """One measure. `used`: 1 is the limit; `growth_a_day` in its unit; null: not known, and `says` tells why."""

    name: str
    unit: str
    measured: float | None
    limit: float
    used: float | None
    growth_a_day: float | None
    reached_on: date | None
    says: str


class Outlook(Struct, frozen=True, kw_only=True):
    """`first`: the name of the limit that comes first; `history_days`: of how long something was recorded."""

    phase: int
    phase_name: str
    history_days: float
    measured_until: date | None
    limits: list[Limit]
    first: str | None
    next_phase: int | None
    says: str
    days: list[Day]


class Measure(NamedTuple):
    """`of`: a day's figure, `limit`: a phase's; `sizes` are what they are now, the rest peaks; `grows`: a line tells something."""

    name: str
    unit: str
    of: Callable[[Day], float | None]
    limit: Callable[[Phase], float]
    size: bool = False
    grows: bool = True
    below: bool = False  # worse is less
    applies: Callable[[Phase], bool] = lambda _: True
    scales: bool = True  # a higher phase has a higher limit

    def points(self, days: Sequence[Day]) -> list[tuple[int, float]]:
        """(day, figure) of the days on which it is known."""
        return [(day.day.toordinal(), value) for day in days if (value := self.of(day)) is not None]

    def measured(self, points: Sequence[tuple[int, float]], today: date) -> float | None:
        """What it is now; None where the last days do not tell."""
        recent = [value for ordinal, value in points if ordinal > today.toordinal() - RECENT_DAYS]
        return None if not recent else recent[-1] if self.size else max(recent)


class Fit(NamedTuple):
    """A straight line through points, by least squares; `spread`: of the xs about their mean, squared and summed."""

    slope: float
    mean_x: float
    mean_y: float
    spread: float

    def at(self, x: float) -> float:
        return self.mean_y + self.slope * (x - self.mean_x)


def _whole(day: Day) -> float | None:
    return day.transactions if day.minutes >= WHOLE_DAY_MINUTES else None


def _connections_of(phase: Phase) -> float:
    """PostgreSQL's own; with a pooler they are bounded, and what may grow are its clients."""
    goal = phases.limits().goal.connections_used
    return goal * (phase.max_connections if not phase.pooled else connections.pooler(phase)[0])


def measures(latest: Day | None) -> tuple[Measure, ...]:
    """`latest`: what the servers said last of their own bounds; the phase's where they said nothing."""
    goal = phases.limits().goal
    max_connections = latest.max_connections if latest else None
    cache_max = latest.cache_max_bytes if latest else None
    return (
        Measure("transactions a second", "", lambda day: day.tps_peak, lambda phase: phase.tps_peak),
        Measure("transactions a day", "", _whole, lambda phase: phase.transactions_a_day),
        Measure("users", "", lambda day: day.users, lambda phase: phase.users, size=True),
        Measure(
            "connections",
            "",
            lambda day: day.connections,
            lambda phase: goal.connections_used * (max_connections or phase.max_connections),
        ),
        Measure(
            "replication lag",
            "ms",
            lambda day: day.lag_ms,
            lambda _: goal.lag_ms,
            grows=False,
            applies=lambda phase: phase.replicas > 0,
            scales=False,
        ),
        Measure(
            "cache memory",
            "MiB",
            lambda day: None if day.cache_used_bytes is None else day.cache_used_bytes / MIB,
            lambda phase: goal.cache_memory_used * (cache_max / MIB if cache_max else phase.cache_memory_mib),
            size=True,
        ),
        Measure(
            "cache hit rate",
            "%",
            lambda day: None if day.cache_hit_rate is None else 100 * day.cache_hit_rate,
            lambda _: 100 * goal.cache_hit_rate,
            size=True,
            grows=False,
            below=True,
            scales=False,
        ),
        Measure(
            "database size",
            "GiB",
            lambda day: None if day.database_bytes is None else day.database_bytes / MIB / 1_024,
            lambda phase: phase.database_gib,
            size=True,
        ),
    )


def outlook(number: int, days: Sequence[Day], now: datetime) -> Outlook:
    """What `days`, oldest first, say of an installation that runs as phase `number`."""
    phase = phases.of(number)
    latest = days[-1] if days else None
    known = sum(day.minutes for day in days) / 1_440
    span = (days[-1].day - days[0].day).days + 1 if days else 0
    asked = [measure for measure in measures(latest) if measure.applies(phase)]
    limits = [_limit(measure, phase, days, now.date()) for measure in asked]
    first = _first(limits, {measure.name for measure in asked if measure.scales})
    further = _next_phase(phase, first, {limit.name: limit for limit in limits}, now.date())
    return Outlook(
        phase=number,
        phase_name=phase.name,
        history_days=round(min(known, span), 1),
        measured_until=latest.day if latest else None,
        limits=limits,
        first=first.name if first else None,
        next_phase=further,
        says=_says(phase, first, further, any_data=any(limit.measured is not None for limit in limits), now=now.date()),
        days=list(days),
    )


def lines(found: Outlook) -> list[str]:
    """The outlook for people."""
    head = f"phase {found.phase} ({found.phase_name}); {found.history_days:g} days of data"
    rows = [("measure", "measured", "limit", "used", "")]
    for limit in found.limits:
        measured = NO_DATA if limit.measured is None else figure(limit.measured, limit.unit)
        used = "" if limit.used is None else f"{limit.used:.0%}"
        rows.append((limit.name, measured, figure(limit.limit, limit.unit), used, "" if limit.measured is None else limit.says))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(part.ljust(width) for part, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
    return [head, "", *table, "", found.says]


def _limit(measure: Measure, phase: Phase, days: Sequence[Day], today: date) -> Limit:
    points = measure.points(days)
    limit, measured = round(measure.limit(phase), 3), measure.measured(points, today)
    if measured is None:
        says = NO_DATA if not points else f"no data of the last {RECENT_DAYS} days"
        return Limit(
            name=measure.name, unit=measure.unit, measured=None, limit=limit, used=None, growth_a_day=None, reached_on=None, says=says
        )
    used = (limit / measured if measured else float("inf")) if measure.below else measured / limit
    growth, reached_on, says = _growth(measure, points, measured, limit, today)
    if used >= 1:
        reached_on, says = today, "below the limit now" if measure.below else "reached"
    return Limit(
        name=measure.name,
        unit=measure.unit,
        measured=round(measured, 3),
        limit=limit,
        used=round(min(used, 999), 3),
        growth_a_day=None if growth is None else round(growth, 4),
        reached_on=reached_on,
        says=says,
    )


def _growth(
    measure: Measure, points: Sequence[tuple[int, float]], measured: float, limit: float, today: date
) -> tuple[float | None, date | None, str]:
    """A day's growth, the day on which the limit is reached by it, and the same in words."""
    if not measure.grows:
        return None, None, ""
    span = points[-1][0] - points[0][0] + 1
    if span < HISTORY_DAYS or len(points) < HISTORY_DAYS:
        return None, None, f"under {HISTORY_DAYS} days of data: no growth is told yet"
    slope = fitted(points).slope
    wait_days = (limit - measured) / slope if slope > 0 else float("inf")
    if wait_days > FORESEEN_DAYS:
        return slope, None, "not at the present growth"
    reached_on = today + timedelta(days=max(0, round(wait_days)))
    return slope, reached_on, f"reached about {reached_on} at the present growth"


def fitted(points: Sequence[tuple[float, float]]) -> Fit:
    """Least squares. The xs must not all be the same."""
    mean_x, mean_y = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return Fit(sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, mean_x, mean_y, spread)


def _first(limits: Sequence[Limit], scaling: set[str]) -> Limit | None:
    """The one that is over its limit furthest, those that a phase mends before the others; else the one that is reached soonest."""
    reached = [limit for limit in limits if limit.used is not None and limit.used >= 1]
    if reached:
        return max(reached, key=lambda limit: (limit.name in scaling, limit.used or 0))
    foreseen = [(limit.reached_on, limit.name, limit) for limit in limits if limit.reached_on is not None]
    return min(foreseen)[2] if foreseen else None


def _next_phase(phase: Phase, first: Limit | None, limits: dict[str, Limit], today: date) -> int | None:
    """The lowest phase above in which nothing that scales is at its limit; None where there is no need, or no phase helps."""
    near = first is not None and first.reached_on is not None and first.reached_on <= today + timedelta(days=HORIZON_DAYS)
    named = {measure.name: measure for measure in measures(None)}
    if not near or first is None or not named[first.name].scales:
        return None
    return next((each.number for each in phases.table()[phase.number + 1 :] if _carries(each, named, limits)), None)


def _carries(candidate: Phase, named: dict[str, Measure], limits: dict[str, Limit]) -> bool:
    """Whether the candidate's limits are above what is measured and reached soon."""
    for name, found in limits.items():
        measure = named[name]
        if found.measured is None or not measure.scales:
            continue
        if name == "connections":
            fits = found.measured < _connections_of(candidate)
        else:
            expected = found.measured + max(0.0, found.growth_a_day or 0.0) * HORIZON_DAYS
            fits = expected < measure.limit(candidate) or candidate.open_ended
        if not fits:
            return False
    return True


def _says(phase: Phase, first: Limit | None, further: int | None, *, any_data: bool, now: date) -> str:
    if not any_data:
        return f"{NO_DATA}: a worker writes down a minute each minute; piggybank status says whether one runs"
    if first is None or first.reached_on is None:
        return "no limit comes near"
    when = (
        "is reached"
        if first.used is not None and first.used >= 1
        else f"is reached about {first.reached_on}, in {(first.reached_on - now).days} days"
    )
    what = f"{first.name} comes first: {figure(first.measured or 0, first.unit)} of {figure(first.limit, first.unit)}; it {when}"
    if further is not None:
        return f"{what}. Next: phase {further} ({phases.of(further).name}), piggybank phase plan {further}"
    if first.reached_on > now + timedelta(days=HORIZON_DAYS):
        return f"{what}. Phase {phase.number} carries it until then"
    return f"{what}. {MENDED_BY.get(first.name, 'No phase above carries more')}"


def figure(value: float, unit: str) -> str:
    digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}{'' if unit in ('', '%') else ' '}{unit}"
