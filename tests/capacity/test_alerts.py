"""One table of alerts: Prometheus and the worker say the same of the same series, and each has its page."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from piggybank import metrics
from piggybank.api.guards import ROUTES
from piggybank.capacity import alerts, dashboards, figures, panels, runbooks
from piggybank.capacity.alerts import Alert
from piggybank.capacity.shares import Share
from piggybank.capacity.usage import Noted
from piggybank.cli import COMMANDS
from piggybank.settings import Settings
from tests.conftest import ROOT, require

SEED = (Path(__file__).with_name("seed.md")).read_text(encoding="utf-8")
RUNBOOKS = ROOT / runbooks.FOLDER
DOCUMENT = (ROOT / "deploy/metrics.md").read_text(encoding="utf-8")
RULES = ROOT / "deploy/prometheus/rules.yml"
START = datetime(2026, 6, 10, tzinfo=UTC)
WARM = 20  # minutes without anything wrong, more than any window
AFTER = 20
NAMES = [f"{alert.name} {alert.severity}" for alert in alerts.table()]


def bad_minutes(alert: Alert) -> range:
    return range(WARM, WARM + alert.window_minutes + alert.for_minutes + 3)


def length(alert: Alert) -> int:
    return bad_minutes(alert).stop + AFTER


# A series of each kind: well, then beyond the threshold for long enough, then well again ------------------------------


def gauges(alert: Alert, bad: bool) -> dict[str, Any]:
    worst = alert.threshold * 1.5 + 1e-3 if alert.above is not None else alert.threshold / 2
    value = worst if bad else alert.threshold / 3 if alert.above is not None else min(1.0, alert.threshold * 2)
    label = next(gauge.label for gauge in figures.GAUGES if gauge.name == alert.metric)
    if alert.of:
        return {alert.metric: value * 100, alert.of: 100.0}
    calm = 0.0 if alert.above is not None else 1.0
    return {alert.metric: {"one": value, "other": calm} if label else value}


def counts(alert: Alert, bad: bool) -> Share:
    if alert.function == "p95":
        _, _, bounds = alerts.HISTOGRAMS[alert.metric]
        at = next(number for number, bound in enumerate(bounds) if bound > alert.threshold) + 1 if bad else 0
        buckets = [20 if number == at else 0 for number in range(len(bounds) + 1)]
        return Share(seconds=buckets) if alert.metric == "seconds" else Share(webhook_lags=buckets)
    if alert.function == "increase":
        return msgspec.convert({alert.metric: int(alert.threshold) // alert.window_minutes + 2 if bad else 0}, Share)
    whole = 2 * alert.least
    if alert.metric == "errors":
        return Share(requests=whole, errors=int(whole * alert.threshold * 2) + 1 if bad else 0)
    return Share(hits=int(whole * alert.threshold / 2) if bad else whole, misses=whole if bad else 0)


def minutes_of(alert: Alert) -> list[Noted | None]:
    made: list[Noted | None] = []
    for number in range(length(alert)):
        bad = number in bad_minutes(alert)
        if alert.function == "missing":
            made.append(None if bad else Noted(figures={"app_phase": 0.0}))
        elif alert.function == "silent":
            made.append(Noted(share=Share(web=not bad)))
        elif alert.function == "now":
            made.append(Noted(figures=gauges(alert, bad)))
        else:
            made.append(Noted(share=counts(alert, bad)))
    return made


# The same for promtool ------------------------------------------------------------------------------------------------


def series_of(alert: Alert, minutes: list[Noted | None]) -> list[dict[str, str]]:
    if alert.function in ("now", "missing"):
        return gauge_series(minutes)
    if alert.function == "silent":
        answers = ["1" if noted and noted.share and noted.share.web else "stale" for noted in minutes]
        return [{"series": f'{alert.metric}{{phase="0"}}', "values": " ".join(answers)}]
    shares = [noted.share for noted in minutes if noted is not None and noted.share is not None]
    people = 'http_request_method="GET",http_route="/v1/accounts"'
    if alert.function == "p95":
        name, pick, bounds = alerts.HISTOGRAMS[alert.metric]
        labels = people + "," if alert.metric == "seconds" else ""
        bare = name.partition("{")[0]
        return [
            cumulated(f'{bare}{{{labels}le="{bound}"}}', shares, lambda share, at=at: sum(pick(share)[: at + 1]))  # type: ignore[misc]
            for at, bound in enumerate([*map(str, bounds), "+Inf"])
        ] + [cumulated(f"{bare.replace('_bucket', '_count')}{{{labels}}}", shares, lambda share: sum(pick(share)))]
    requests = "http_server_request_duration_seconds_count"
    return [
        cumulated(f'{requests}{{{people},http_response_status_code="503"}}', shares, lambda share: share.errors),
        cumulated(f'{requests}{{{people},http_response_status_code="200"}}', shares, lambda share: share.requests - share.errors),
        # what machines ask is not counted
        cumulated(f'{requests}{{http_route="/health/ready",http_response_status_code="503"}}', shares, lambda _: 1_000),
        cumulated('cache_lookups_total{kind="page",result="hit"}', shares, lambda share: share.hits),
        cumulated('cache_lookups_total{kind="page",result="miss"}', shares, lambda share: share.misses),
        cumulated("db_slow_queries_total", shares, lambda share: share.slow_queries),
        cumulated("psp_webhook_signature_failures_total", shares, lambda share: share.bad_signatures),
    ]


def gauge_series(minutes: list[Noted | None]) -> list[dict[str, str]]:
    names = {name: figure for noted in minutes if noted is not None for name, figure in noted.figures.items()}
    made = []
    for name, example in names.items():
        for label in example if isinstance(example, dict) else [""]:
            values, there = [], True
            for noted in minutes:
                figure = None if noted is None else noted.figures.get(name)
                value = figure.get(label) if isinstance(figure, dict) else figure
                values.append(f"{value:.9g}" if value is not None else "stale" if there else "_")
                there = value is not None
            key = next(gauge.label for gauge in figures.GAUGES if gauge.name == name)
            made.append({"series": f'{name}{{{key}="{label}"}}' if label else name, "values": " ".join(values)})
    return made


def cumulated(name: str, shares: list[Share], pick: Callable[[Share], int]) -> dict[str, str]:
    return {"series": name, "values": " ".join(map(str, accumulate(map(pick, shares))))}


# ----------------------------------------------------------------------------------------------------------------------


def fired(alert: Alert, minutes: list[Noted | None]) -> list[bool]:
    """Of each minute, as the worker sees it."""
    known = {START + number * alerts.MINUTE: noted for number, noted in enumerate(minutes) if noted is not None}
    return [alerts.firing(alert, known, START + number * alerts.MINUTE) is not None for number in range(len(minutes))]


def unit_test(alert: Alert, minutes: list[Noted | None], expected: list[bool]) -> dict[str, Any]:
    labels = f'alertname="{alert.name}",severity="{alert.severity}"'
    return {
        "interval": "1m",
        "input_series": series_of(alert, minutes),
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{{labels},alertstate="firing"}}',
                "eval_time": f"{number}m",
                "exp_samples": [{"labels": f'ALERTS{{{labels},alertstate="firing"}}', "value": 1}] if fires else [],
            }
            for number, fires in enumerate(expected)
            if number >= WARM
        ],
    }


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("alert", alerts.table(), ids=NAMES)
def test_the_worker_fires_while_it_is_beyond_the_threshold_and_not_before_or_after(alert: Alert) -> None:
    minutes = minutes_of(alert)
    found = fired(alert, minutes)
    bad = bad_minutes(alert)
    assert not any(found[: bad.start])
    assert all(found[bad.start + alert.window_minutes + alert.for_minutes : bad.stop])
    assert not any(found[bad.stop + alert.window_minutes :])


def test_prometheus_says_the_same_of_the_same_series(tmp_path: Path) -> None:
    require("promtool")
    tests = [unit_test(alert, minutes := minutes_of(alert), fired(alert, minutes)) for alert in alerts.table()]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    # and it can fail
    tests[0]["promql_expr_test"] = [each | {"exp_samples": []} for each in tests[0]["promql_expr_test"]]
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests[:1]}))
    assert promtool("test", "rules", str(file)).returncode != 0


@pytest.mark.parametrize("alert", [each for each in alerts.table() if each.function == "p95"], ids=lambda each: each.name)
def test_a_few_slow_ones_are_no_alert_here_nor_in_prometheus(alert: Alert, tmp_path: Path) -> None:
    few = msgspec.structs.replace(counts(alert, bad=True), seconds=[], webhook_lags=[])
    bounds = alerts.HISTOGRAMS[alert.metric][2]
    lonely = [0] * len(bounds) + [1]
    one = msgspec.structs.replace(few, **{alert.metric: lonely})
    none = msgspec.structs.replace(few, **{alert.metric: [0] * (len(bounds) + 1)})
    every = alert.window_minutes // (alert.least - 1) + 1  # minutes between two: one too few in any window
    minutes: list[Noted | None] = [Noted(share=one if number >= WARM and number % every == 0 else none) for number in range(WARM + 60)]
    assert fired(alert, minutes) == [False] * len(minutes)
    require("promtool")
    file = tmp_path / "tests.yml"
    tests = [unit_test(alert, minutes, fired(alert, minutes))]
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_made_from_the_table() -> None:
    assert RULES.read_text(encoding="utf-8") == alerts.rules(), "python -m piggybank.capacity.alerts > deploy/prometheus/rules.yml"
    require("promtool")
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_quicker_pace_makes_shorter_windows_and_waits() -> None:
    slow = next(alert for alert in alerts.table() if alert.function == "p95")
    minutes = {START: Noted(share=counts(slow, bad=True))}
    assert alerts.firing(slow, minutes, START) is None
    assert alerts.firing(slow, minutes, START, pace=60.0) is not None
    rules = yaml.safe_load(alerts.rules(pace=60.0))["groups"][0]
    assert (rules["interval"], rules["rules"][0]["for"]) == ("1s", "10s")


def test_every_row_is_whole_and_what_the_design_asks_for_is_there() -> None:
    known = {gauge.name for gauge in figures.GAUGES} | alerts.HISTOGRAMS.keys() | alerts.COUNTERS.keys() | {"app_phase_info"}
    for alert in alerts.table():
        assert (alert.above is None) != (alert.below is None), alert.name
        assert {alert.metric, alert.of} - {""} <= known, alert.name
    for quoted in (re.search(r'"(.+)"', alert.source) for alert in alerts.table()):
        assert quoted is None or re.sub(r"\s*\|\s*", "|", quoted[1]).split("|")[0] in SEED
    table = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", SEED[SEED.index("### Alerting Thresholds") :], re.MULTILINE))
    expected = {
        "API p95 response time": "ApiSlow",
        "Database CPU": "DatabaseCpu",
        "Cache hit rate": "CacheMisses",
        "Error rate": "ApiErrors",
    }
    for measure, name in expected.items():
        asked = [float(number) for number in re.findall(r"[\d.]+", table[measure])]
        scale = 1_000 if "ms" in table[measure] else 100
        assert [alert.threshold * scale for alert in alerts.table() if alert.name == name] == pytest.approx(asked), measure


def test_every_alert_has_its_page_and_the_page_names_what_there_is() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in RUNBOOKS.glob("*.md")}
    assert pages.keys() == {alert.name for alert in alerts.table()}
    assert runbooks.table().keys() == pages.keys()
    assert runbooks.steps("AnAlertOfAnEarlierVersion") == []
    settings = {f"PIGGYBANK_{name.upper()}" for name in Settings.__struct_fields__}
    described = json.dumps([msgspec.to_builtins(dashboards.document(each)) for each in panels.DASHBOARDS])
    for name, page in pages.items():
        told = runbooks.table()[name]
        assert told.look
        assert told.do
        assert runbooks.steps(name) == told.do
        said = [f"# {name}", told.means, "## What to look at", *told.look, "## What to do", *told.do]
        assert " ".join(page.replace("\n- ", "\n").split()) == " ".join(" ".join(said).split()), name  # nothing of it is lost
        assert set(re.findall(r"`piggybank ([a-z-]+)", page)) <= COMMANDS.keys(), name
        assert set(re.findall(r"PIGGYBANK_[A-Z_]+", page)) <= settings, name
        assert set(re.findall(r"`((?:GET|POST) /[^`? ]+)", page)) <= ROUTES.keys(), name
        assert all(f'"{uid}"' in described for uid in re.findall(r"Dashboard `([\w-]+)`", page)), name
        assert set(re.findall(r"`([A-Z][a-z]+[A-Z][A-Za-z]+)`", page)) <= pages.keys(), name


def test_dashboards_are_made_from_the_table_and_ask_for_what_there_is() -> None:
    names = known_series()
    uids = set()
    for each in panels.DASHBOARDS:
        path = ROOT / dashboards.FOLDER / f"piggybank-{each.name}.json"
        assert path.read_text(encoding="utf-8") == dashboards.text(each), "python -m piggybank.capacity.dashboards"
        board = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), Board)
        uids.add(board.uid)
        places = [panel.gridPos for panel in board.panels]
        assert all(place.x >= 0 and place.x + place.w <= dashboards.WIDTH for place in places)
        cells = [(x, y) for place in places for x in range(place.x, place.x + place.w) for y in range(place.y, place.y + place.h)]
        assert len(cells) == len(set(cells)), "two panels in one place"
        for panel in board.panels:
            assert panel.description, panel.title
            for target in panel.targets:
                assert series_in(target.expr) <= names, target.expr
                assert series_in(target.expr), target.expr
    assert uids == {path.stem for path in (ROOT / dashboards.FOLDER).glob("*.json")}


def test_a_panel_is_empty_while_nobody_answers_and_says_what_it_shows() -> None:
    for board in panels.DASHBOARDS:
        for panel in board.panels:
            assert panel.says or panel.alert, panel.title
            assert not any(expression.endswith("or vector(0)") for expression, _ in panel.lines), panel.title


def metrics_table() -> str:
    """Of the document."""
    rows = [
        (family.name + ("_total" if family.type == "counter" else ""), family.type, metric._labelnames, family.documentation)
        for metric in metrics.TABLE
        for family in metric.collect()
    ]
    rows += [(gauge.name, "gauge", (gauge.label,) if gauge.label else (), gauge.says) for gauge in (*figures.GAUGES, figures.LIMIT)]
    rows += [(figures.UNKNOWN.name, "gauge", (figures.UNKNOWN.label, "reason"), figures.UNKNOWN.says)]
    lines = [f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {says} |" for name, kind, labels, says in rows]
    return "\n".join(["| metric | type | labels | what it is |", "|---|---|---|---|", *lines])


def alerts_table() -> str:
    """The same."""
    lines = [
        f"| [{alert.name}](../piggybank/capacity/runbooks/{alert.name}.md) | {alert.severity} | {alert.says}"
        f" {'more' if alert.above is not None else 'less'} than {alerts.shown(alert.threshold, alert.unit)} | {alert.for_minutes} min |"
        for alert in alerts.table()
    ]
    return "\n".join(["| alert | severity | when | for |", "|---|---|---|---|", *lines])


def test_every_metric_and_every_alert_is_documented() -> None:
    for table in (metrics_table(), alerts_table()):
        assert table in DOCUMENT, f"put this into deploy/metrics.md:\n{table}"


def known_series() -> set[str]:
    """Every name that `/metrics` may have."""
    found = {gauge.name for gauge in (*figures.GAUGES, figures.LIMIT, figures.UNKNOWN)}
    for metric in metrics.TABLE:
        family = next(iter(metric.collect()))
        ends = ("_total",) if family.type == "counter" else ("_bucket", "_count", "_sum")
        found |= {family.name + end for end in ends}
    return found


def series_in(expression: str) -> set[str]:
    """The names in an expression that are no function, no label and no value of one."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(?:by|on|without) \([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", bare)
    return set(re.findall(r"\b[a-z][a-z0-9_]+\b(?!\s*\()", bare)) - {"or", "and", "by"}


class Place(msgspec.Struct, forbid_unknown_fields=True):
    h: int
    w: int
    x: int
    y: int


class Source(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    uid: str


class Target(msgspec.Struct, forbid_unknown_fields=True):
    refId: str  # noqa: N815 - Grafana's names
    datasource: Source
    expr: str
    legendFormat: str  # noqa: N815


class Step(msgspec.Struct, forbid_unknown_fields=True):
    color: str
    value: float | None


class Thresholds(msgspec.Struct, forbid_unknown_fields=True):
    mode: str
    steps: list[Step]

    def __post_init__(self) -> None:
        values = [step.value for step in self.steps]
        assert values[0] is None  # everything below
        assert values[1:] == sorted(value for value in values[1:] if value is not None)


class Defaults(msgspec.Struct, forbid_unknown_fields=True):
    unit: str
    noValue: str  # noqa: N815
    thresholds: Thresholds
    custom: dict[str, Any] = {}
    min: float | None = None


class FieldConfig(msgspec.Struct, forbid_unknown_fields=True):
    defaults: Defaults
    overrides: list[Any]


class PanelShape(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    title: str
    description: str
    type: str
    datasource: Source
    gridPos: Place  # noqa: N815
    fieldConfig: FieldConfig  # noqa: N815
    options: dict[str, Any]
    targets: list[Target]


class Board(msgspec.Struct, forbid_unknown_fields=True):
    """What we write of Grafana's JSON model, and nothing else."""

    uid: str
    title: str
    tags: list[str]
    schemaVersion: int  # noqa: N815
    editable: bool
    refresh: str
    time: dict[str, str]
    timezone: str
    templating: dict[str, list[dict[str, Any]]]
    links: list[dict[str, Any]]
    panels: list[PanelShape]
