"""Grafana's dashboards: `deploy/grafana/dashboards/*.json` are made from the table of `panels.py`.

Lines are drawn where an alert fires, from the alerts' own table, so a panel and its alert cannot say different things.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from piggybank.capacity import alerts, runbooks
from piggybank.capacity.panels import DASHBOARDS, Dashboard, Panel

FOLDER = Path("deploy/grafana/dashboards")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 39  # of Grafana 10 and later
WIDTH = 24
STAT_WIDTH, STAT_HEIGHT = 4, 4
GRAPH_WIDTH, GRAPH_HEIGHT = 12, 8
GREEN, YELLOW, RED = "green", "yellow", "red"
COLORS = {"warning": YELLOW, "critical": RED}

_LINK = {
    "title": "piggybank",
    "type": "dashboards",
    "tags": ["piggybank"],
    "icon": "external link",
    "tooltip": "the other pages",
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}
_LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}


def document(dashboard: Dashboard) -> dict[str, Any]:
    """As Grafana reads it."""
    return {
        "uid": f"piggybank-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["piggybank"],
        "schemaVersion": SCHEMA,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0, "refresh": 1}]
        },
        "links": [_LINK],
        "panels": _placed(dashboard.panels),
    }


def text(dashboard: Dashboard) -> str:
    """The file."""
    return msgspec.json.format(msgspec.json.encode(document(dashboard)), indent=2).decode() + "\n"


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    placed = []
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        width, wanted = (STAT_WIDTH, STAT_HEIGHT) if panel.stat else (GRAPH_WIDTH, GRAPH_HEIGHT)
        if x + width > WIDTH or (height and wanted != height):
            x, y = 0, y + height
        height = wanted
        placed.append(_panel(number, panel, {"h": height, "w": width, "x": x, "y": y}))
        x += width
    return placed


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps, shown = _thresholds(panel.alert)
    defaults: dict[str, Any] = {"unit": panel.unit, "noValue": "no data", "thresholds": {"mode": "absolute", "steps": steps}}
    if not panel.stat:
        defaults["custom"] = {"thresholdsStyle": {"mode": "line" if shown else "off"}, "spanNulls": False}
        defaults["min"] = 0
    return {
        "id": number,
        "title": panel.title,
        "description": panel.says or f"Alert: {panel.alert}, {runbooks.FOLDER}/{panel.alert}.md",
        "type": "stat" if panel.stat else "timeseries",
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if panel.stat else {"legend": _LEGEND},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for at, (expression, legend) in enumerate(panel.lines)
        ],
    }


def _thresholds(name: str) -> tuple[list[dict[str, Any]], bool]:
    """Steps of colour: up to a threshold and beyond it, or the other way round where less is worse."""
    found = [alert for alert in alerts.table() if alert.name == name]
    if not found:
        return [{"color": GREEN, "value": None}], False
    if found[0].above is not None:
        rising = sorted(found, key=lambda alert: alert.threshold)
        return [{"color": GREEN, "value": None}, *({"color": COLORS[each.severity], "value": each.threshold} for each in rising)], True
    falling = sorted(found, key=lambda alert: alert.threshold)
    steps: list[dict[str, Any]] = [{"color": COLORS[falling[0].severity], "value": None}]
    steps += [{"color": COLORS[after.severity], "value": each.threshold} for each, after in pairwise(falling)]
    return [*steps, {"color": GREEN, "value": falling[-1].threshold}], True


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for each in DASHBOARDS:
        (folder / f"piggybank-{each.name}.json").write_text(text(each), encoding="utf-8")
