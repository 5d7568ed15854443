"""When each limit is reached, and how sure that is: growth fitted to the days that were recorded. Pure.

Growth is a straight line or compound (a line through the logarithms), whichever fits better; while neither does clearly, the interval
spans both, since a young exponential looks like a line. An interval holds the true date four times out of five, if growth goes on as it
did: neighbouring days are alike, so what they tell of the slope counts less than their number (by their correlation), and sizes wander,
so their uncertainty grows with the distance, too. A test draws histories of known growth and counts how often the interval holds. What
the past cannot tell is not in it: a campaign, a customer lost.
"""

import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Literal, NamedTuple

from msgspec import Struct

from piggybank.capacity import phases
from piggybank.capacity.outlook import FORESEEN_DAYS, HISTORY_DAYS, RECENT_DAYS, Measure, figure, fitted, measures
from piggybank.capacity.usage import Day

CONFIDENCE = 0.8
ONE_SIDED_Z = 1.2816  # the normal distribution's: a tenth lies beyond it
FITS_CLEARLY_BETTER = 0.25  # squared error, of the other's at most
ALIKE_MOST = 0.95  # what a correlation of neighbouring days is believed at most
WANDERING_SLOPE = 1.2  # variance of a fitted slope, times that of a step, times 1/n, of what wanders

Growth = Literal["linear", "compound"]


class Reach(Struct, frozen=True, kw_only=True):
    """When a limit is reached. Null: not within ten years; `earliest` and `latest` hold it in 80 % of cases."""

    expected: date | None
    earliest: date | None
    latest: date | None


class Expectation(Struct, frozen=True, kw_only=True):
    """One measure. `growth_a_day`: in its unit, or of compound growth a part of 1; null: not known, and `says` tells why."""

    name: str
    unit: str
    measured: float | None
    limit: float
    growth: Growth | None
    growth_a_day: float | None
    days: int
    reached: Reach | None
    says: str


class PhaseUntil(Struct, frozen=True, kw_only=True):
    """How long a phase carries it: until the first of its limits. Null: no limit comes near."""

    phase: int
    name: str
    first: str | None
    reached: Reach | None


class Forecast(Struct, frozen=True, kw_only=True):
    """`limits` of the phase that runs; `phases`: that one and those above it, none where no growth is told."""

    phase: int
    history_days: int
    confidence: float
    limits: list[Expectation]
    phases: list[PhaseUntil]
    says: str


class _Curve(NamedTuple):
    """`level`: what is measured now, of compound growth its logarithm; `spread`: how far off it may be after so many days."""

    growth: Growth
    level: float
    slope: float
    spread: Callable[[float], float]
    error: float


_Trend = list[_Curve]  # the one that fits best, and the other where it may be that one as well


def forecast(number: int, days: Sequence[Day], now: datetime) -> Forecast:
    """What `days`, oldest first, let expect of an installation that runs as phase `number`."""
    today, phase = now.date(), phases.of(number)
    there = [measure for measure in measures(days[-1] if days else None) if measure.applies(phase) and measure.grows]
    elsewhere = measures(None)  # with the phases' own bounds, whatever the servers have now
    trends = {measure.name: _trend(measure, days, today) for measure in there}
    limits = [_expectation(measure, round(measure.limit(phase), 3), days, trends[measure.name], today) for measure in there]
    told = any(not isinstance(trend, str) for trend in trends.values())
    until = [_until(each, there if each == number else elsewhere, trends, today) for each in phases.BUILT_PHASES if told and each >= number]
    span = (days[-1].day - days[0].day).days + 1 if days else 0
    return Forecast(phase=number, history_days=span, confidence=CONFIDENCE, limits=limits, phases=until, says=_says(until, trends, span))


def lines(found: Forecast) -> list[str]:
    """The forecast for people."""
    told = "growth fitted to {} days" if found.phases else "{} days of data"
    head = f"phase {found.phase} ({phases.of(found.phase).name}); {told.format(found.history_days)}"
    rows = [("measure", "measured", "limit", "a day", "reached", f"between ({found.confidence:.0%})")]
    for each in found.limits:
        measured = "no data" if each.measured is None else figure(each.measured, each.unit)
        rows.append((each.name, measured, figure(each.limit, each.unit), _growth_words(each), *_reach_words(each)))
    table = [("phase", "carries it until", f"between ({found.confidence:.0%})", "its first limit")]
    table += [(f"{each.phase} {each.name}", *_dates(each.reached), each.first or "") for each in found.phases]
    return [head, "", *_columns(rows), "", *((*_columns(table), "") if found.phases else ()), found.says]


def _expectation(measure: Measure, limit: float, days: Sequence[Day], trend: _Trend | str, today: date) -> Expectation:
    points = measure.points(days)
    measured = measure.measured(points, today)
    if isinstance(trend, str):
        reached, growth, slope, says = None, None, None, trend
    else:
        reached, growth, slope = _reach(trend, limit, today), trend[0].growth, trend[0].slope
        slope = math.expm1(slope) if growth == "compound" else slope
        says = _reach_says(reached, today)
    return Expectation(
        name=measure.name,
        unit=measure.unit,
        measured=None if measured is None else round(measured, 3),
        limit=limit,
        growth=growth,
        growth_a_day=None if slope is None else round(slope, 5),
        days=len(points),
        reached=reached,
        says=says,
    )


def _trend(measure: Measure, days: Sequence[Day], today: date) -> _Trend | str:
    """The growth of a measure, or why none is told."""
    points = measure.points(days)
    measured = measure.measured(points, today)
    if measured is None:
        return "no data" if not points else f"no data of the last {RECENT_DAYS} days"
    if len(points) < HISTORY_DAYS or points[-1][0] - points[0][0] + 1 < HISTORY_DAYS:
        return f"under {HISTORY_DAYS} days of data: no growth is told yet"
    spread = _wandering if measure.size else _noisy
    line = fitted(points)
    error = sum((value - line.at(at)) ** 2 for at, value in points)
    curves = [_Curve("linear", measured, line.slope, spread(points), error)]
    if all(value > 0 for _, value in points):
        logs = [(at, math.log(value)) for at, value in points]
        curve = fitted(logs)
        error = sum((value - math.exp(curve.at(at))) ** 2 for at, value in points)
        curves.append(_Curve("compound", math.log(measured), curve.slope, spread(logs), error))
    curves.sort(key=lambda each: each.error)
    return [each for each in curves if each is curves[0] or FITS_CLEARLY_BETTER * each.error <= curves[0].error]


def _noisy(points: Sequence[tuple[int, float]]) -> Callable[[float], float]:
    """Of peaks: a line with noise about it, in which a day is like its neighbour."""
    line, count = fitted(points), len(points)
    off = [value - line.at(at) for at, value in points]
    squares = sum(each * each for each in off)
    alike = sum(one * other for one, other in pairwise(off)) / squares if squares else 0.0
    alike = min(max(alike + (1 + 3 * alike) / count, 0.0), ALIKE_MOST)  # a short series hides some of it
    effective = max(3.0, count * (1 - alike) / (1 + alike))
    z = _student_z(effective - 2)
    noise = math.sqrt(squares / (count - 2))
    slope = noise / math.sqrt(line.spread) * math.sqrt((1 + alike) / (1 - alike))
    return lambda after_days: z * (noise + slope * after_days)


def _wandering(points: Sequence[tuple[int, float]]) -> Callable[[float], float]:
    """Of sizes: each day adds a step, and no day makes up for another."""
    steps = [(high - low) / (later - at) for (at, low), (later, high) in pairwise(points)]
    mean = sum(steps) / len(steps)
    step = math.sqrt(sum((each - mean) ** 2 for each in steps) / max(1, len(steps) - 1))
    z = _student_z(len(steps) - 1)
    return lambda after_days: z * step * math.sqrt(after_days + WANDERING_SLOPE * after_days**2 / len(steps))


def _student_z(freedom: float) -> float:
    """Student's quantile, by Cornish and Fisher's first term."""
    return ONE_SIDED_Z * (1 + (ONE_SIDED_Z**2 + 1) / (4 * max(1.0, freedom)))


def _reach(trend: _Trend, limit: float, today: date) -> Reach:
    reached = [_reach_by(curve, limit, today) for curve in trend]
    earliest = [each.earliest for each in reached if each.earliest is not None]
    latest = [each.latest for each in reached]
    return Reach(
        expected=reached[0].expected,
        earliest=min(earliest, default=None),
        latest=None if None in latest else max(each for each in latest if each is not None),
    )


def _reach_by(curve: _Curve, limit: float, today: date) -> Reach:
    gap = (math.log(limit) if curve.growth == "compound" else limit) - curve.level
    if gap <= 0:
        return Reach(expected=today, earliest=today, latest=today)
    return Reach(
        expected=_day(today, _crossing(lambda after: curve.slope * after, gap)),
        earliest=_day(today, _crossing(lambda after: curve.slope * after + curve.spread(after), gap)),
        latest=_day(today, _crossing(lambda after: curve.slope * after - curve.spread(after), gap)),
    )


def _crossing(grown: Callable[[float], float], gap: float) -> float | None:
    """After how many days growth has closed the gap; None: not in FORESEEN_DAYS."""
    if grown(FORESEEN_DAYS) < gap:
        return None
    low, high = 0.0, float(FORESEEN_DAYS)
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if grown(middle) >= gap else (middle, high)
    return high


def _day(today: date, after_days: float | None) -> date | None:
    return None if after_days is None else today + timedelta(days=round(after_days))


def _until(number: int, there: Sequence[Measure], trends: dict[str, _Trend | str], today: date) -> PhaseUntil:
    """The first of the phase's limits; what no phase mends is left out, and PostgreSQL's connections, which each phase counts anew."""
    phase, found = phases.of(number), []
    for measure in there:
        trend = trends.get(measure.name, "")
        if measure.scales and measure.name != "connections" and not isinstance(trend, str):
            reached = _reach(trend, measure.limit(phase), today)
            if reached.earliest is not None:
                found.append((reached.expected or date.max, reached.earliest, measure.name, reached))
    if not found:
        return PhaseUntil(phase=number, name=phase.name, first=None, reached=None)
    *_, name, reached = min(found, key=lambda each: each[:3])
    return PhaseUntil(phase=number, name=phase.name, first=name, reached=reached)


def _says(until: Sequence[PhaseUntil], trends: dict[str, _Trend | str], span: int) -> str:
    if all(isinstance(trend, str) for trend in trends.values()):
        if span < HISTORY_DAYS:
            return f"under {HISTORY_DAYS} days of data: no growth is told yet"
        return "no growth is told: nothing was recorded on enough days"
    here, further = until[0], until[1:]
    if here.reached is None or here.reached.earliest is None:
        return "no limit comes near at this growth"
    ready = f"be ready by {here.reached.earliest}"
    enough = next((each for each in further if each.reached is None or (each.reached.earliest or date.max) > here.reached.earliest), None)
    if enough is None:
        return f"{here.first} comes first; {ready}. No phase above carries more"
    return f"{here.first} comes first; {ready}: phase {enough.phase} ({enough.name}) carries more, piggybank phase plan {enough.phase}"


def _reach_says(reached: Reach, today: date) -> str:
    if reached.earliest is None:
        return "not in ten years"
    if reached.latest == today:
        return "reached"
    return f"between {reached.earliest} and {reached.latest or 'never'}"


def _growth_words(each: Expectation) -> str:
    if each.growth_a_day is None:
        return ""
    return f"{each.growth_a_day:+.2%}" if each.growth == "compound" else f"{each.growth_a_day:+,.3g}"


def _reach_words(each: Expectation) -> tuple[str, str]:
    return ("", each.says if each.measured is not None else "") if each.reached is None else _dates(each.reached)


def _dates(reached: Reach | None) -> tuple[str, str]:
    if reached is None or reached.earliest is None:
        return "not in ten years", ""
    return str(reached.expected or "not in ten years"), f"{reached.earliest} and {reached.latest or 'never'}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)).rstrip() for row in rows]
