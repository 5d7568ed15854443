"""The chart, rendered by Helm itself."""

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from deploy.helm.sync import CHART

RELEASE = "bank"
NAMESPACE = "money"
PHASES = (0, 1, 2, 3)
Values = dict[str, Any]
Document = dict[str, Any]

# Every switch that makes something appear, so that all of it is looked at.
EVERYTHING: Values = {
    "provider": {"mode": "live"},
    "publicUrl": "https://money.example.com",
    "secretSettings": ["smtp_url"],
    "settings": {"sign_up": "open", "cache_pages": False, "rate_user_per_minute": 600},
    "trustedCA": {"configMap": "company-ca"},
    "image": {"tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
    "postgres": {"backup": {"objectStore": "bank-backups"}, "storageClass": "fast"},
    "valkey": {"storageClass": "fast"},
    "ingress": {"enabled": True, "className": "nginx", "host": "money.example.com", "tlsSecret": "money-tls"},
    "gateway": {"enabled": True, "host": "money.example.com", "parentRefs": [{"name": "outside", "namespace": "gateways"}]},
    "networkPolicy": {
        "webFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}],
        "egress": [{"ports": [{"protocol": "TCP", "port": 8443}]}],
    },
    "metrics": {"serviceMonitor": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "web": {"nodeSelector": {"pool": "web"}, "tolerations": [{"key": "web", "operator": "Exists"}], "podAnnotations": {"a": "b"}},
}
KEDA: Values = {"worker": {"keda": {"enabled": True}}}
RECOVERY: Values = {
    "postgres": {
        "backup": {"objectStore": "bank-backups", "serverName": "bank-piggybank-postgres-2"},
        "recovery": {"objectStore": "bank-backups", "targetTime": "2026-11-24T09:30:00Z", "backupID": "20261124T020000"},
    }
}
EXTERNAL: Values = {
    "existingSecret": "stores",
    "postgres": {"external": True, "maxConnections": 1_000, "pooler": {"enabled": False}},
    "valkey": {"external": True},
    "durability": "local",
}


class Rendered(list[Document]):
    """The objects; beside them what is said to people, the values, and the numbers of replicas that ran before."""

    notes: str = ""
    values: Values = {}
    replicas: dict[str, int] = {}


class Refused(Exception):
    """What Helm said instead of rendering."""


@cache
def _chart() -> helm.Chart:
    return helm.Chart.load(CHART)


def rendered(*values: Values) -> dict[str, str]:
    """Each template's text, with these values merged, the later over the earlier."""
    return _rendered(json.dumps(merged(*values)))


@cache
def _rendered(values: str) -> dict[str, str]:
    try:
        return _chart().render(json.loads(values), name=RELEASE, namespace=NAMESPACE)
    except helm.HelmError as cause:
        raise Refused(str(cause)) from cause


def documents(*values: Values) -> Rendered:
    """Every object that is rendered; of tests and hooks, too."""
    return parsed(rendered(*values), *values)


def parsed(templates: dict[str, str], *values: Values) -> Rendered:
    found = Rendered(
        document
        for name, text in templates.items()
        if not name.endswith("NOTES.txt")
        for document in yaml.load_all(text, yaml.CSafeLoader)
        if document
    )
    found.notes = next(text for name, text in templates.items() if name.endswith("NOTES.txt"))
    found.values = merged(from_file(CHART / "values.yaml"), *values)
    return found


def notes(*values: Values) -> str:
    """What is said after an install."""
    return documents(*values).notes


def from_set(*expressions: str) -> Values:
    """What `--set` makes of them."""
    made: Values = {}
    for expression in expressions:
        merge(made, helm.parse_set_string(expression))
    return made


def from_file(path: Path) -> Values:
    """What `--values` makes of it."""
    return helm.values_from_yaml(path.read_text(encoding="utf-8"))


def merged(*values: Values) -> Values:
    made: Values = {}
    for each in values:
        merge(made, each)
    return made


def merge(into: Values, over: Values) -> None:
    """As Helm merges value files: maps are merged, everything else is replaced."""
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = deepcopy(value)


def of_kind(found: list[Document], *kinds: str) -> list[Document]:
    return [document for document in found if document["kind"] in kinds]


def one(found: list[Document], kind: str, name: str) -> Document:
    """The object of that kind whose name ends so."""
    [document] = [each for each in of_kind(found, kind) if each["metadata"]["name"].endswith(name)]
    return document


def pod_templates(found: list[Document]) -> Iterator[tuple[str, Document]]:
    """(what has it, metadata and spec) of every pod that the chart itself makes."""
    for document in found:
        if document["kind"] == "Pod":
            yield f"Pod {document['metadata']['name']}", document
        elif document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield f"{document['kind']} {document['metadata']['name']}", document["spec"]["template"]


def containers(pod: Document) -> list[Document]:
    """Its init containers, and the others."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
