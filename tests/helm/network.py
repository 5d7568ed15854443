"""Who asks whom, by the addresses in the rendered environments, and whether the network policies let them."""

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.helm.operators import (
    KEDA_OPERATOR,
    POSTGRES_OPERATOR,
    POSTGRES_PORT,
    PROMETHEUS,
    STATUS_PORT,
    Pods,
    all_pods,
    all_services,
    chart_pods,
    chosen_by,
    selects,
)
from tests.helm.rendering import NAMESPACE, Document, containers, of_kind, pod_templates

OPEN_PORTS = (8080, 8081)  # of the API and of the simulator's page: anybody in the cluster may ask them


class Edge(NamedTuple):
    """Somebody asks somebody."""

    source: Pods
    target: Pods
    port: int


def edges(found: list[Document]) -> tuple[list[Edge], list[str]]:
    """Who asks whom, by the addresses in the environments; and the addresses that lead nowhere."""
    made: list[Edge] = []
    wrong: list[str] = []
    services = {each["metadata"]["name"]: each for each in all_services(found)}
    pods = all_pods(found)
    for source, (name, pod) in zip(chart_pods(found), pod_templates(found), strict=True):
        for host, port in sorted(_addresses(pod)):
            service = services.get(_service_of(host))
            number = next((each["targetPort"] for each in service["spec"]["ports"] if each["port"] == port), None) if service else None
            behind = chosen_by({"matchLabels": service["spec"]["selector"]}, pods) if service else []
            if number is None or not behind:
                wrong.append(f"{name} asks {host}:{port}, where nobody is")
                continue
            made += [Edge(source, target, target.ports.get(number, number)) for target in behind]
    return [*made, *_of_the_operators(found, pods), *_of_prometheus(found, pods)], wrong


def _of_the_operators(found: list[Document], pods: list[Pods]) -> Iterator[Edge]:
    """Servers ask each other and are asked by the poolers and by the operator; KEDA's asks the queue."""
    instances = [each for each in pods if each.labels.get("cnpg.io/podRole") == "instance"]
    poolers = [each for each in pods if each.labels.get("cnpg.io/podRole") == "pooler"]
    for target in instances:
        for port in (POSTGRES_PORT, STATUS_PORT):
            yield from [Edge(source, target, port) for source in (*instances, POSTGRES_OPERATOR) if source is not target]
        yield from [Edge(source, target, POSTGRES_PORT) for source in poolers]
    if of_kind(found, "ScaledObject"):
        yield from [Edge(KEDA_OPERATOR, target, 6379) for target in pods if target.labels.get("app.kubernetes.io/component") == "queue"]


def _of_prometheus(found: list[Document], pods: list[Pods]) -> Iterator[Edge]:
    """What a monitor finds is asked for its metrics."""
    services = of_kind(found, "Service")
    for monitor in of_kind(found, "ServiceMonitor"):
        for service in [each for each in services if selects(monitor["spec"]["selector"], each["metadata"]["labels"])]:
            asked = {each["port"] for each in monitor["spec"]["endpoints"]}
            targets = [port["targetPort"] for port in service["spec"]["ports"] if port["name"] in asked]
            for target in chosen_by({"matchLabels": service["spec"]["selector"]}, pods):
                yield from [Edge(PROMETHEUS, target, target.ports[port]) for port in targets]
    for monitor in of_kind(found, "PodMonitor"):
        for target in chosen_by(monitor["spec"]["selector"], pods):
            yield from [Edge(PROMETHEUS, target, target.ports[each["port"]]) for each in monitor["spec"]["podMetricsEndpoints"]]


def network(found: list[Document]) -> Iterator[str]:
    """Every address leads to somebody, and the policies let the question out and in; what nobody needs, they do not."""
    made, wrong = edges(found)
    yield from wrong
    policies = of_kind(found, "NetworkPolicy")
    for edge in made:
        if not _allowed(policies, edge.source, edge.target, edge.port, "Egress"):
            yield f"{edge.source.name} may not ask {edge.target.name}:{edge.port}"
        if not _allowed(policies, edge.target, edge.source, edge.port, "Ingress"):
            yield f"{edge.target.name}:{edge.port} may not be asked by {edge.source.name}"
    stranger = Pods("a stranger", {"app": "stranger"}, {})
    for pods in all_pods(found) if policies else ():
        for port in pods.ports.values():
            for somebody in (stranger, stranger._replace(namespace="elsewhere")):
                if port not in OPEN_PORTS and _allowed(policies, pods, somebody, port, "Ingress"):
                    yield f"{pods.name}:{port} may be asked by anybody in {somebody.namespace}"


def _addresses(pod: Document) -> set[tuple[str, int]]:
    found = set()
    for container in containers(pod):
        listens = "serve" in container.get("args", [])
        if container.get("args", []) == ["worker"]:
            web = {variable["name"]: str(variable.get("value", "")) for variable in container["env"]}
            found.add((web["PIGGYBANK_LISTEN"], int(web["PIGGYBANK_PORT"])))  # `piggybank doctor` is run here
        for word in container.get("args", []):
            if word.startswith("http://"):
                found.add((urlsplit(word).hostname or "", urlsplit(word).port or 80))
        values = {variable["name"].removeprefix("PIGGYBANK_"): str(variable.get("value", "")) for variable in container.get("env", [])}
        if values.get("PROVIDER_MODE") == "simulator" and values.get("SIMULATOR_LISTEN") != "0.0.0.0":
            found.add((values["SIMULATOR_LISTEN"], int(values["SIMULATOR_PORT"])))
        if "simulator" in container.get("args", []) and not listens:
            found.add((values["LISTEN"], int(values["PORT"])))  # its events
        for name in ("DATABASE_URL", "REPLICA_URLS", "POOLER_URL", "CACHE_URL", "QUEUE_URL"):
            for url in values.get(name, "").split(","):
                if at := url.rpartition("@")[2] or url:
                    host, _, port = at.partition("/")[0].partition(":")
                    found.add((host, int(port)))
        if any(variable["name"] == "PIGGYBANK_OWNER_DATABASE_URL" for variable in container.get("env", [])):
            owner = next(v for v in container["env"] if v["name"] == "PIGGYBANK_OWNER_DATABASE_URL")["valueFrom"]["secretKeyRef"]["name"]
            if owner.endswith("-app"):
                found.add((f"{owner.removesuffix('-app')}-rw", 5432))
    return found


def _service_of(host: str) -> str:
    """`name`, `name.namespace`, and `pod.service` of a StatefulSet."""
    first, _, rest = host.partition(".")
    return first if rest in ("", NAMESPACE) or rest.startswith(f"{NAMESPACE}.") else rest


def _allowed(policies: list[Document], subject: Pods, peer: Pods, port: int, direction: str) -> bool:
    """Nobody forbids it, or somebody allows it."""
    if subject.namespace != NAMESPACE:
        return True  # whose policies are not ours
    mine = [
        each["spec"]
        for each in policies
        if direction in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], subject.labels)
    ]
    side = "from" if direction == "Ingress" else "to"
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    return not mine or any(_matches(rule, side, peer, port) for rule in rules)


def _matches(rule: dict[str, Any], side: str, peer: Pods, port: int) -> bool:
    if "ports" in rule and all(each["port"] != port for each in rule["ports"]):
        return False
    if side not in rule:
        return True
    return any(_is_one(each, peer) for each in rule[side])


def _is_one(described: dict[str, Any], peer: Pods) -> bool:
    """As a policy describes its peers; one without a namespace is of the policy's own."""
    if "ipBlock" in described:
        return False
    namespace = described.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}})
    return selects(namespace, {"kubernetes.io/metadata.name": peer.namespace}) and selects(described.get("podSelector", {}), peer.labels)
