"""What is there beside the rendered objects: what the operator of PostgreSQL makes of them, and the Secrets that people make.

Facts of CloudNativePG 1.30: Services, the Secret of the owner, and the labels of the pods, by its documents and source. Those labels
win over the template's that a Pooler has.
"""

import re
from typing import Any, NamedTuple

from deploy.helm.sync import CHART
from piggybank.settings import REPLICATED_PHASE
from tests.helm.rendering import NAMESPACE, Document, Rendered, Values, containers, of_kind, pod_templates

POSTGRES_PORT = 5432
STATUS_PORT = 8000  # of each instance's manager
OWNER_KEYS = {"username", "user", "password", "dbname", "host", "port", "pgpass", "uri", "jdbc-uri", "fqdn-uri", "fqdn-jdbc-uri"}

_COMMAND = re.compile(r"kubectl .*(?:create secret generic|patch secret) .*")
_NAME = re.compile(r"(?:create secret generic|patch secret) (\S+)")
_KEY = re.compile(r'--from-literal=([\w-]+)=|\\"stringData\\": \{\\"([\w-]+)\\"')


class Pods(NamedTuple):
    """Pods that are alike: their labels, and the ports that they have by name."""

    name: str
    labels: dict[str, str]
    ports: dict[str, int]
    namespace: str = NAMESPACE


PROMETHEUS = Pods(
    "prometheus", {"app.kubernetes.io/name": "prometheus", "app.kubernetes.io/managed-by": "prometheus-operator"}, {}, "monitoring"
)
POSTGRES_OPERATOR = Pods("the operator of PostgreSQL", {"app.kubernetes.io/name": "cloudnative-pg"}, {}, "cnpg-system")
KEDA_OPERATOR = Pods("the operator of KEDA", {"app": "keda-operator"}, {}, "keda")


def operator_pods(found: list[Document]) -> list[Pods]:
    """Servers and poolers."""
    made = []
    for cluster in of_kind(found, "Cluster"):
        name = cluster["metadata"]["name"]
        for number in range(1, cluster["spec"]["instances"] + 1):
            role = "primary" if number == 1 else "replica"
            labels = _operators(name, "database", "instance")
            labels |= {"cnpg.io/instanceName": f"{name}-{number}", "cnpg.io/instanceRole": role}
            made.append(Pods(f"{name}-{number}", labels, {"postgresql": POSTGRES_PORT, "metrics": 9187, "status": STATUS_PORT}))
    for pooler in of_kind(found, "Pooler"):
        name = pooler["metadata"]["name"]
        given = pooler["spec"]["template"].get("metadata", {}).get("labels", {})
        own = _operators(pooler["spec"]["cluster"]["name"], "pooler", "pooler") | {"cnpg.io/poolerName": name}
        made.append(Pods(name, given | own, {"pgbouncer": POSTGRES_PORT, "metrics": 9127}))
    return made


def _operators(cluster: str, component: str, role: str) -> dict[str, str]:
    """The labels that all pods of a Cluster get."""
    app = {"name": "postgresql", "instance": cluster, "component": component, "managed-by": "cloudnative-pg"}
    return {f"app.kubernetes.io/{name}": value for name, value in app.items()} | {"cnpg.io/cluster": cluster, "cnpg.io/podRole": role}


def operator_services(found: list[Document]) -> list[Document]:
    """`-rw`, `-ro` and `-r` of each cluster, and one for each pooler."""
    made = []
    for cluster in of_kind(found, "Cluster"):
        name = cluster["metadata"]["name"]
        for suffix, more in (("rw", {"cnpg.io/instanceRole": "primary"}), ("ro", {"cnpg.io/instanceRole": "replica"}), ("r", {})):
            made.append(_service(f"{name}-{suffix}", {"cnpg.io/cluster": name, **more}))
    return made + [
        _service(each["metadata"]["name"], {"cnpg.io/poolerName": each["metadata"]["name"]}) for each in of_kind(found, "Pooler")
    ]


def _service(name: str, selector: dict[str, str]) -> Document:
    return {
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": POSTGRES_PORT, "targetPort": POSTGRES_PORT}]},
    }


def chart_pods(found: list[Document]) -> list[Pods]:
    """Those of the chart's own templates."""
    return [
        Pods(
            name,
            pod["metadata"]["labels"],
            {port["name"]: port["containerPort"] for container in containers(pod) for port in container.get("ports", [])},
        )
        for name, pod in pod_templates(found)
    ]


def secrets(found: Rendered) -> dict[str, set[str]]:
    """Keys that a Secret has, by its name: those that NOTES and values.yaml tell people to put there, and the operator's own."""
    made: dict[str, set[str]] = {}
    for command in _COMMAND.findall(found.notes.replace("\\\n", " ")):
        name, keys = _NAME.search(command), _KEY.findall(command)
        assert name, command
        assert keys, command
        made.setdefault(name[1], set()).update(first or second for first, second in keys)
    if own := found.values["existingSecret"]:
        made.setdefault(own, set()).update(told(found.values))
    return made | {f"{cluster['metadata']['name']}-app": OWNER_KEYS for cluster in of_kind(found, "Cluster")}


def told(values: Values) -> set[str]:
    """The keys that values.yaml lists, each line with its condition: `unless valkey.external`, `with provider.mode simulator`."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    table = text[text.index("Its keys:") : text.index("existingSecret:")]
    keys = {each.replace("_", "-") for each in values["secretSettings"]}
    for line in re.findall(r"^#   (.*)$", table, re.MULTILINE)[:-1]:  # the last one is that of secretSettings
        at = re.fullmatch(r"(.*?\S)\s+(unless|with) ([\w.]+) ?(\w*)", line)
        assert at, line
        value: Any = values
        for step in at[3].split("."):
            value = value[step]
        if (value == at[4] if at[4] else bool(value)) == (at[2] == "with"):
            always, _, later = at[1].partition("from phase 2")
            keys |= {*re.findall(r"[a-z]+(?:-[a-z]+)+", always + (later if values["phase"] >= REPLICATED_PHASE else ""))}
    return keys


def all_pods(found: list[Document]) -> list[Pods]:
    return chart_pods(found) + operator_pods(found)


def all_services(found: list[Document]) -> list[Document]:
    return of_kind(found, "Service") + operator_services(found)


def chosen_by(selector: dict[str, Any], pods: list[Pods]) -> list[Pods]:
    """Those that a selector finds."""
    return [each for each in pods if selects(selector, each.labels)]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A label selector as Kubernetes reads it; an empty one takes everybody."""
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        inside = labels.get(rule["key"]) in rule.get("values", [])
        if {"In": not inside, "NotIn": inside, "Exists": rule["key"] not in labels, "DoesNotExist": rule["key"] in labels}[
            rule["operator"]
        ]:
            return False
    return True
