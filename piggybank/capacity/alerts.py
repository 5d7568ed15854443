"""The alerts: `alerts.toml`, as rules of Prometheus and as what the worker looks for in the minutes that it wrote down. Pure.

Both say the same of the same minutes; a test gives both the same series. So a counter's window is of whole minutes, a quantile is
interpolated as PromQL does it, and an alert fires when it was true at each minute of `for`, the present one included. Only its end
differs: Prometheus ends what it knows nothing of any more, the worker does not, or who serves nobody would be told to be well.
"""

import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from piggybank import metrics
from piggybank.capacity import runbooks, shares
from piggybank.capacity.shares import Share
from piggybank.capacity.usage import Noted

MINUTE = timedelta(minutes=1)
GROUP_INTERVAL_S = 60
QUANTILE = 0.95
UNKNOWN_HOLDS = timedelta(days=1)  # so long an alert goes on though nobody asks for what it measures any more

Severity = Literal["warning", "critical"]
Unit = Literal["s", "ratio", "count"]

_PEOPLE = f'http_route!~"{"|".join(metrics.PROBES)}"'
# What an alert may name beside the gauges: the series in Prometheus, and the same of one minute
HISTOGRAMS: dict[str, tuple[str, Callable[[Share], list[int]], tuple[float, ...]]] = {
    "seconds": (f"http_server_request_duration_seconds_bucket{{{_PEOPLE}}}", lambda share: share.seconds, metrics.SECONDS),
    "webhook_lags": ("psp_webhook_lag_seconds_bucket", lambda share: share.webhook_lags, metrics.LAGS_S),
}
COUNTERS: dict[str, tuple[str, Callable[[Share], int]]] = {
    "requests": (f"http_server_request_duration_seconds_count{{{_PEOPLE}}}", lambda share: share.requests),
    "errors": (
        f'http_server_request_duration_seconds_count{{http_response_status_code=~"5..",{_PEOPLE}}}',
        lambda share: share.errors,
    ),
    "hits": ('cache_lookups_total{result="hit"}', lambda share: share.hits),
    "lookups": ("cache_lookups_total", lambda share: share.hits + share.misses),
    "slow_queries": ("db_slow_queries_total", lambda share: share.slow_queries),
    "bad_signatures": ("psp_webhook_signature_failures_total", lambda share: share.bad_signatures),
}

# Who away is blind for what: nothing of it ends meanwhile
SEEN_BY = {"saq_oldest_job_age_seconds": "queue_up", "cache_memory_ratio": "cache_up"}


class Alert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the table; exactly one of `above` and `below`."""

    name: str
    severity: Severity
    function: Literal["p95", "ratio", "increase", "now", "missing", "silent"]
    metric: str
    of: str = ""
    least: int = 1
    window_minutes: int = 1
    for_minutes: int
    above: float | None = None
    below: float | None = None
    unit: Unit
    says: str
    source: str
    stops_ping: bool = False

    @property
    def threshold(self) -> float:
        found = self.above if self.above is not None else self.below
        assert found is not None
        return found

    @property
    def runbook(self) -> str:
        """Its page, from the top of the repository."""
        return f"{runbooks.FOLDER}/{self.name}.md"

    def violates(self, value: float) -> bool:
        return value > self.threshold if self.above is not None else value < self.threshold

    def message(self, value: float) -> str:
        """In words, with what was measured and what is allowed."""
        sign = "at most" if self.above is not None else "at least"
        return f"{self.says} {shown(value, self.unit)} ({sign} {shown(self.threshold, self.unit)})"


@cache
def table() -> tuple[Alert, ...]:
    """All of them, in the order of the file."""
    rows = tomllib.loads(Path(__file__).with_name("alerts.toml").read_text(encoding="utf-8"))["alert"]
    return msgspec.convert(rows, tuple[Alert, ...])


def named(name: str, severity: str) -> Alert | None:
    """The row; None where this version has no such alert any more."""
    return next((alert for alert in table() if (alert.name, alert.severity) == (name, severity)), None)


def unwatched() -> Alert:
    """The one that says that nobody can look."""
    return next(alert for alert in table() if alert.function == "missing")


def longest() -> timedelta:
    """So far back a look needs minutes."""
    return MINUTE * max(alert.window_minutes + alert.for_minutes for alert in table())


def firing(alert: Alert, minutes: Mapping[datetime, Noted], at: datetime, pace: float = 1.0) -> float | None:
    """What was measured at `at`, if it was beyond the threshold at each minute of `for`; else None."""
    since = [value(alert, minutes, at - number * MINUTE, pace) for number in range(int(alert.for_minutes / pace) + 1)]
    return since[0] if all(found is not None and alert.violates(found) for found in since) else None


def is_over(alert: Alert, minutes: Mapping[datetime, Noted], at: datetime, since: datetime, pace: float = 1.0) -> bool:
    """Whether one that fires has ended at `at`: somebody could look, and it is well. Few samples are enough for that."""
    noted = minutes.get(at)
    if alert.function not in ("missing", "silent") and (noted is None or _is_blind(alert, noted)):
        return False
    found = value(alert, minutes, at, pace, least=1)
    if found is None and alert.function in ("p95", "ratio"):
        return at - since > UNKNOWN_HOLDS
    return found is None or not alert.violates(found)


def _is_blind(alert: Alert, noted: Noted) -> bool:
    """Whether those who would see it tell nothing."""
    if alert.function != "now" or alert.metric == "replica_lag_seconds":
        return _is_silent(noted) is True
    return noted.figures.get(SEEN_BY.get(alert.metric, "")) == 0


def _is_silent(noted: Noted) -> bool | None:
    """Whether no web process told anything; None: of a version that does not say."""
    if noted.share is None:
        return True
    return None if noted.share.web is None else not noted.share.web


def value(alert: Alert, minutes: Mapping[datetime, Noted], at: datetime, pace: float = 1.0, *, least: int | None = None) -> float | None:
    """What the alert measures at that minute; None: nobody knows. `least` instead of the alert's own."""
    if alert.function == "missing":
        return None if at in minutes else 1.0
    if alert.function == "silent":
        silent = _is_silent(minutes[at]) if at in minutes else None
        return 1.0 if silent else None
    if alert.function == "now":
        return _now(alert, minutes.get(at))
    window = max(1, int(alert.window_minutes / pace))
    noted = (minutes.get(at - number * MINUTE) for number in range(window))
    told = [each.share for each in noted if each is not None and each.share is not None]
    return _counted(alert, told, alert.least / pace if least is None else least) if told else None


def _counted(alert: Alert, told: list[Share], least: float) -> float | None:
    if alert.function == "p95":
        _, counts, bounds = HISTOGRAMS[alert.metric]
        alike = [buckets for buckets in map(counts, told) if len(buckets) == len(bounds) + 1]  # a version with other bounds may have told
        whole = [sum(column) for column in zip(*alike, strict=True)]
        return shares.quantile(QUANTILE, whole, bounds) if sum(whole) >= least else None
    count = sum(map(COUNTERS[alert.metric][1], told))
    if alert.function == "increase":
        return float(count)
    of = sum(map(COUNTERS[alert.of][1], told))
    return count / of if of >= least else None


def _now(alert: Alert, noted: Noted | None) -> float | None:
    found = None if noted is None else _worst(noted, alert.metric, lowest=alert.below is not None)
    if found is None or not alert.of:
        return found
    of = None if noted is None else _worst(noted, alert.of, lowest=False)
    return found / of if of else None


def _worst(noted: Noted, name: str, *, lowest: bool) -> float | None:
    figure = noted.figures.get(name)
    if isinstance(figure, dict):
        return (min if lowest else max)(figure.values(), default=None)
    return figure


def expression(alert: Alert, pace: float = 1.0, matchers: str = "") -> str:
    """What it measures, in PromQL, without its threshold; of the series that `matchers` choose, as `namespace='bank'`."""
    window = f"[{_duration(max(1, int(alert.window_minutes / pace)) * 60)}]"
    if alert.function in ("missing", "silent"):
        return f"absent({_chosen(alert.metric, matchers)})"
    if alert.function == "now":
        worst = "max" if alert.above is not None else "min"
        return f"{worst}({_chosen(alert.metric, matchers)})" + (f" / max({_chosen(alert.of, matchers)})" if alert.of else "")
    if alert.function == "p95":
        buckets = _chosen(HISTOGRAMS[alert.metric][0], matchers)
        enough = f"sum(increase({buckets.replace('_bucket', '_count')}{window})) >= {alert.least / pace:g}"
        return f"(histogram_quantile({QUANTILE}, sum by (le) (rate({buckets}{window}))) and ({enough}))"
    increase = f"sum(increase({_chosen(COUNTERS[alert.metric][0], matchers)}{window}))"
    if alert.function == "increase":
        return increase
    whole = f"sum(increase({_chosen(COUNTERS[alert.of][0], matchers)}{window}))"
    return f"({increase} or vector(0)) / ({whole} >= {alert.least / pace:g})"


def _chosen(series: str, matchers: str) -> str:
    if not matchers:
        return series
    return f"{series[:-1]},{matchers}}}" if series.endswith("}") else f"{series}{{{matchers}}}"


def rules(pace: float = 1.0, matchers: str = "") -> str:
    """`deploy/prometheus/rules.yml`."""
    lines = [
        "# Made from piggybank/capacity/alerts.toml: python -m piggybank.capacity.alerts > deploy/prometheus/rules.yml",
        "groups:",
        "  - name: piggybank",
        f"    interval: {_duration(max(1, int(GROUP_INTERVAL_S / pace)))}",
        "    rules:",
    ]
    for alert in table():
        sign = ">" if alert.above is not None else "<"
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {msgspec.json.encode(f'{expression(alert, pace, matchers)} {sign} {alert.threshold:g}').decode()}",
            f"        for: {_duration(int(alert.for_minutes * 60 / pace))}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {msgspec.json.encode(f'{alert.says} {_template(alert)}').decode()}",
            f"          runbook: {alert.runbook}",
        ]
    return "\n".join(lines) + "\n"


def shown(value: float, unit: Unit) -> str:
    """For a person."""
    if unit == "ratio":
        return f"{value:.1%}"
    if unit == "count":
        return f"{value:,.0f}"
    if value < 1:
        return f"{value * 1_000:.0f} ms"
    hours = value / 3_600
    return f"{hours:.0f} h" if hours >= 2 else f"{value:,.0f} s"


def _template(alert: Alert) -> str:
    """What was measured, in Prometheus's own words for people."""
    return {
        "ratio": "{{ $value | humanizePercentage }}",
        "s": "{{ $value | humanizeDuration }}",
        "count": "{{ $value | humanize }}",
    }[alert.unit]


def _duration(seconds: int) -> str:
    return f"{seconds // 60}m" if seconds and seconds % 60 == 0 else f"{seconds}s"


if __name__ == "__main__":
    print(rules(), end="")  # noqa: T201 - it is what this prints
