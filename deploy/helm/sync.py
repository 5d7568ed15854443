"""Make what the chart has from elsewhere: the phases from `phases.toml`, the names of the settings, the rules, copies of the dashboards
(Helm reads nothing outside a chart).

Run it after changing one of them: `make chart`. A test compares.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from piggybank.capacity import alerts, phases
from piggybank.capacity.phases import Phase
from piggybank.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "piggybank"
MATCHERS = "__MATCHERS__"  # in the chart's rules, for `metrics.ruleMatchers`: one Prometheus may look after several releases
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
MADE_FROM = "Made from piggybank/capacity/phases.toml by `make chart`. Your own values win over these."
SCHEMA = CHART / "values.schema.json"
# Settings that the chart has values of its own for.
OWN_SETTINGS = {
    "data_dir",
    "phase",
    *("listen", "port", "tls_cert", "tls_key", "insecure", "trusted_proxies", "public_url"),
    *("web_processes", "worker_processes", "pool_connections", "durability"),
    *("database_url", "owner_database_url", "replica_urls", "pooler_url", "cache_url", "queue_url"),
    *("worker_metrics_listen", "worker_metrics_port"),
    *("provider_mode", "simulator_listen", "simulator_port", "simulator_url", "simulator_key"),
}
_SECRET = re.compile("key|secret|password|token$|smtp_url")  # these come from a Secret, not from the values


def preset(phase: Phase) -> dict[str, Any]:
    """What a phase sets of the chart's values."""
    replicated = phase.replicas > 0
    return {
        "poolConnections": phase.pool,
        "web": scaled(phase.web, phase.web_max),
        "worker": scaled(phase.worker, phase.worker_max),
        "postgres": {
            "instances": 1 + phase.replicas,
            "synchronous": replicated,
            "maxConnections": max(phase.max_connections, phase.replica_max_connections),  # a standby takes as many as its primary
            "cpus": phase.postgres_cpus,
            "memoryMiB": phase.postgres_memory_mib,
            "storageGiB": phase.database_gib,
            "pooler": {
                "enabled": phase.pooled,
                "clients": phase.pooler_clients or _first_pooled().pooler_clients,
                "connections": phase.pooler_connections or _first_pooled().pooler_connections,
                "readOnly": phase.pooled and replicated,
            },
        },
        "valkey": {"cache": {"masters": phase.cache_masters, "replicas": phase.cache_replicas, "memoryMiB": phase.cache_memory_mib}},
        "months": phase.partitions,
    }


def scaled(least: int, most: int) -> dict[str, Any]:
    """One part's replicas: `replicas` counts where it is not scaled by itself."""
    return {"replicas": least, "autoscaling": {"enabled": most > least, "minReplicas": least, "maxReplicas": most}}


def files() -> dict[str, str]:
    """Every file below `files/` that is made, by its path there."""
    made = {"phases.json": _phases()}
    made["rules.yml"] = alerts.rules(matchers=MATCHERS)
    for path in sorted(DASHBOARDS.glob("*.json")):
        made[f"dashboards/{path.name}"] = path.read_text(encoding="utf-8")
    return made


def schema() -> str:
    """`values.schema.json` with the settings of this version in it."""
    made = json.loads(SCHEMA.read_text(encoding="utf-8"))
    names = sorted({field.name for field in msgspec.structs.fields(Settings)} - OWN_SETTINGS)
    made["$defs"] |= {"anySetting": {"enum": names}, "openSetting": {"enum": [name for name in names if not _SECRET.search(name)]}}
    return json.dumps(made, indent=1) + "\n"


def _phases() -> str:
    rollout = phases.limits().rollout
    table: dict[str, Any] = {"//": MADE_FROM} | {str(number): preset(phases.of(number)) for number in phases.BUILT_PHASES}
    table["autoscaling"] = {"cpuPercent": round(100 * rollout.cpu_used), "memoryPercent": round(100 * rollout.memory_used)}
    table["surgePercent"] = round(100 * rollout.surge)
    return json.dumps(table, indent=1) + "\n"  # JSON: Helm reads it ten times as fast as YAML


def _first_pooled() -> Phase:
    """For somebody who puts a pooler there earlier."""
    return next(phase for phase in phases.table() if phase.pooled)


def main() -> None:
    """Write what differs, and take away what has no source any more."""
    wanted = files()
    folder = CHART / "files"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
