"""What no schema sees: whether the parts of a rendered chart fit together. Each check returns what is wrong, in words."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from piggybank import settings as settings_file
from piggybank.cli.serving import DRAIN_S
from piggybank.worker import DRAIN_S as WORKER_DRAIN_S
from tests.helm.operators import Pods, all_pods, all_services, chart_pods, secrets, selects
from tests.helm.rendering import NAMESPACE, Document, containers, of_kind, pod_templates

SCALES = {"": 1, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi|Ti)?$")
_REFERENCE = re.compile(r"\$\(([A-Za-z_]+)\)")
POINTS_ELSEWHERE = {"company-ca", "rds-ca", "cloudsql-ca"}  # ConfigMaps that people make


def quantity(text: str | float) -> float:
    """A quantity in its base unit; raises ValueError."""
    found = _QUANTITY.match(str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * SCALES[found[2] or ""]


# Labels and names ----------------------------------------------------------------------------------------------------


def selectors(found: list[Document]) -> list[str]:
    """Whoever selects pods finds some, and a workload its own."""
    pods = all_pods(found)
    wrong = []
    for document in of_kind(found, "Deployment", "StatefulSet"):
        spec = document["spec"]
        if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
            wrong.append(f"{_name(document)} does not select its own pods")
    for name, pod in pod_templates(found):
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], pod["metadata"]["labels"]):
                wrong.append(f"{name} is spread among others than itself")
    for document in of_kind(found, "Service"):
        if not _found(pods, {"matchLabels": document["spec"]["selector"]}):
            wrong.append(f"{_name(document)} selects no pod")
    for document in of_kind(found, "PodDisruptionBudget"):
        if not _found(pods, document["spec"]["selector"]):
            wrong.append(f"{_name(document)} selects no pod")
    for document in of_kind(found, "NetworkPolicy"):
        spec = document["spec"]
        if not _found(pods, spec["podSelector"]):
            wrong.append(f"{_name(document)} selects no pod")
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            peers = [peer for peer in [*rule.get("from", []), *rule.get("to", [])] if "namespaceSelector" not in peer]
            wrong += [f"{_name(document)}: nobody is {peer}" for peer in peers if not _found(pods, peer["podSelector"])]
    for document in of_kind(found, "ServiceMonitor"):
        if not any(selects(document["spec"]["selector"], each["metadata"].get("labels", {})) for each in of_kind(found, "Service")):
            wrong.append(f"{_name(document)} selects no Service")
    return wrong


def targets(found: list[Document]) -> list[str]:
    """What is named is there: scaled workloads, Services behind a route, accounts, volumes, clusters."""
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    services = {each["metadata"]["name"] for each in all_services(found)}
    wrong = [f"{kind} {name} twice" for (kind, name), count in _counts(found).items() if count > 1]
    for document in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]
        if (target.get("kind", "Deployment"), target["name"]) not in names:
            wrong.append(f"{_name(document)} scales {target['name']}, which is not there")
    for document in of_kind(found, "StatefulSet"):
        if document["spec"]["serviceName"] not in services:
            wrong.append(f"{_name(document)}: there is no Service {document['spec']['serviceName']}")
    clusters = {each["metadata"]["name"] for each in of_kind(found, "Cluster")}
    for document in of_kind(found, "Pooler", "ScheduledBackup"):
        if document["spec"]["cluster"]["name"] not in clusters:
            wrong.append(f"{_name(document)}: there is no Cluster {document['spec']['cluster']['name']}")
    for name, pod in pod_templates(found):
        if ("ServiceAccount", pod["spec"]["serviceAccountName"]) not in names:
            wrong.append(f"{name}: there is no ServiceAccount {pod['spec']['serviceAccountName']}")
        for volume in pod["spec"].get("volumes", []):
            wanted = volume.get("configMap", {}).get("name")
            if wanted and ("ConfigMap", wanted) not in names and wanted not in POINTS_ELSEWHERE:
                wrong.append(f"{name}: there is no ConfigMap {wanted}")
        given = {volume["name"] for volume in pod["spec"].get("volumes", [])} | _claims(found, name)
        for container in containers(pod):
            mounts = container.get("volumeMounts", [])
            wrong += [f"{name}: no volume {mount['name']}" for mount in mounts if mount["name"] not in given]
    return wrong


def scaled_once(found: list[Document]) -> list[str]:
    """Whoever is scaled has no fixed number, and one scaler."""
    wrong, scalers = [], Counter[str]()
    for scaler in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject"):
        scalers[scaler["spec"]["scaleTargetRef"]["name"]] += 1
    for document in of_kind(found, "Deployment"):
        name = document["metadata"]["name"]
        if scalers[name] > 1:
            wrong.append(f"{name} has {scalers[name]} scalers")
        if bool(scalers[name]) == ("replicas" in document["spec"]):
            wrong.append(f"{name} has a number of replicas and a scaler, or neither")
    return wrong


# Ports ---------------------------------------------------------------------------------------------------------------


def ports(found: list[Document]) -> list[str]:
    """Every port that is named is there: of probes, Services, routes and monitors."""
    wrong = []
    for name, pod in pod_templates(found):
        for container in containers(pod):
            own = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
                if port is not None and port not in own:
                    wrong.append(f"{name}: the {probe} of {container['name']} asks port {port}, which it does not have")
    for service in of_kind(found, "Service"):
        behind = _found(all_pods(found), {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in {*pods.ports, *pods.ports.values()} for pods in behind):
                wrong.append(f"{_name(service)} leads to port {port['targetPort']}, which its pods do not have")
    services = {each["metadata"]["name"]: each for each in of_kind(found, "Service")}
    for name, service_name, port in _routes(found):
        known = {
            key for each in services.get(service_name, {"spec": {"ports": []}})["spec"]["ports"] for key in (each["name"], each["port"])
        }
        if port not in known:
            wrong.append(f"{name} leads to {service_name}:{port}, which is not there")
    for monitor in of_kind(found, "ServiceMonitor"):
        chosen = [each for each in services.values() if selects(monitor["spec"]["selector"], each["metadata"].get("labels", {}))]
        known = {port["name"] for each in chosen for port in each["spec"]["ports"]}
        wrong += [f"{_name(monitor)} asks port {each['port']}" for each in monitor["spec"]["endpoints"] if each["port"] not in known]
    return wrong


def _routes(found: list[Document]) -> Iterator[tuple[str, str, str | int]]:
    for document in of_kind(found, "Ingress"):
        for rule in document["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield _name(document), service["name"], service["port"].get("name") or service["port"]["number"]
    for document in of_kind(found, "HTTPRoute"):
        for rule in document["spec"]["rules"]:
            for each in rule["backendRefs"]:
                yield _name(document), each["name"], each["port"]


# Environment ---------------------------------------------------------------------------------------------------------


def secret_keys(found: list[Document]) -> list[str]:
    """Every key that is taken from a Secret is in it."""
    known = secrets(found)
    asked = [
        (name, variable["valueFrom"]["secretKeyRef"])
        for name, pod in pod_templates(found)
        for container in containers(pod)
        for variable in container.get("env", [])
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    for document in of_kind(found, "TriggerAuthentication"):
        asked += [(_name(document), each) for each in document["spec"]["secretTargetRef"]]
    for document in of_kind(found, "Cluster"):
        asked += [(_name(document), {**role["passwordSecret"], "key": "password"}) for role in document["spec"]["managed"]["roles"]]
    return [
        f"{name}: Secret {each['name']} has no {each['key']}" for name, each in asked if each["key"] not in known.get(each["name"], set())
    ]


def nothing_secret(found: list[Document]) -> list[str]:
    """No Secret is rendered, and nothing that is one stands in an environment."""
    wrong = [f"{_name(document)} is rendered" for document in of_kind(found, "Secret")]
    secret = re.compile(r"PASSWORD$|_KEY$|SECRET$|SMTP_URL$")
    for name, pod in pod_templates(found):
        for container in containers(pod):
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if secret.search(variable["name"]) and value:
                    wrong.append(f"{name}: {variable['name']} is written out")
                password = re.search(r"://[^/@]*:([^/@]+)@", value)
                if password and not _REFERENCE.fullmatch(password[1]):
                    wrong.append(f"{name}: {variable['name']} has a password in it")
    return wrong


def environment(found: list[Document]) -> list[str]:
    """Every variable of ours is a setting with a value that it takes, and a reference is to one that stands before it."""
    wrong = []
    for name, pod in pod_templates(found):
        for container in containers(pod):
            before: set[str] = set()
            given: dict[str, str] = {}
            for variable in container.get("env", []):
                value = str(variable.get("value", ""))
                wrong += [f"{name}: {variable['name']} needs {each} before it" for each in _REFERENCE.findall(value) if each not in before]
                if variable["name"] in before:
                    wrong.append(f"{name}: {variable['name']} twice")
                before.add(variable["name"])
                given[variable["name"]] = value
            ours = {key: value for key, value in given.items() if key.startswith(settings_file.PREFIX) and value}
            known = {f"{settings_file.PREFIX}{field.upper()}" for field in settings_file.Settings.__struct_fields__}
            wrong += [f"{name}: {key} is no setting" for key in given if key.startswith(settings_file.PREFIX) and key not in known]
            try:
                settings_file.load(environment={key: _REFERENCE.sub("x", value) for key, value in ours.items() if key in known})
            except Exception as cause:  # whatever it says is the finding
                wrong.append(f"{name}: {cause}")
    return wrong


# Resources -----------------------------------------------------------------------------------------------------------


def quantities(found: list[Document]) -> list[str]:
    """Every quantity is one, and a request is no more than its limit."""
    wrong = []
    for where, resources in _resources(found):
        asked, limits = resources.get("requests", {}), resources.get("limits", {})
        for name, text in [*asked.items(), *limits.items()]:
            try:
                quantity(text)
            except ValueError as cause:
                wrong.append(f"{where}: {name}: {cause}")
        for name in asked.keys() & limits.keys():
            if not any(where in line for line in wrong) and quantity(asked[name]) > quantity(limits[name]):
                wrong.append(f"{where} asks for more {name} than its limit")
    return wrong


def scalable(found: list[Document]) -> list[str]:
    """An autoscaler measures against requests, so each container of its target has one of each kind that it looks at."""
    wrong = []
    pods = {document["metadata"]["name"]: document["spec"]["template"] for document in of_kind(found, "Deployment")}
    for scaler in of_kind(found, "HorizontalPodAutoscaler"):
        looked_at = {metric["resource"]["name"] for metric in scaler["spec"]["metrics"]}
        if looked_at != {"cpu", "memory"}:
            wrong.append(f"{_name(scaler)} looks at {', '.join(sorted(looked_at))}")
        target = pods.get(scaler["spec"]["scaleTargetRef"]["name"])
        for container in containers(target) if target else []:
            missing = {"cpu", "memory"} - container.get("resources", {}).get("requests", {}).keys()
            if missing:
                wrong.append(f"{_name(scaler)}: {container['name']} has no request of {', '.join(sorted(missing))}")
    return wrong


def _resources(found: list[Document]) -> Iterator[tuple[str, Document]]:
    for name, pod in pod_templates(found):
        for container in containers(pod):
            yield f"{name} {container['name']}", container.get("resources", {})
    for document in of_kind(found, "Cluster"):
        yield _name(document), document["spec"]["resources"]
        yield _name(document), {"requests": {"storage": document["spec"]["storage"]["size"]}}
    for document in of_kind(found, "StatefulSet"):
        for claim in document["spec"].get("volumeClaimTemplates", []):
            yield _name(document), claim["spec"]["resources"]


# Security ------------------------------------------------------------------------------------------------------------


def restricted(found: list[Document]) -> list[str]:
    """The pods fit Pod Security's `restricted`, with a read-only root and no token of the API server."""
    wrong = []
    for name, pod in pod_templates(found):
        context = pod["spec"].get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("seccompProfile", {}).get("type") == "RuntimeDefault"):
            wrong.append(f"{name} may be root, or has no seccomp profile")
        if pod["spec"].get("automountServiceAccountToken") is not False:
            wrong.append(f"{name} has a token of the API server")
        for container in containers(pod):
            own = container.get("securityContext", {})
            closed = own.get("allowPrivilegeEscalation") is False and own.get("readOnlyRootFilesystem") is True
            if not (closed and own.get("capabilities", {}).get("drop") == ["ALL"]):
                wrong.append(f"{name} {container['name']} is not closed")
    return wrong


def patience(found: list[Document]) -> list[str]:
    """Whoever is stopped has the time to drain."""
    wrong = []
    for name, pod in pod_templates(found):
        for container in containers(pod):
            drain = {"serve": DRAIN_S, "worker": WORKER_DRAIN_S, "simulator": DRAIN_S}.get((container.get("args") or [""])[0], 0)
            pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            if grace <= drain + int(pause[1]):
                wrong.append(f"{name} has {grace} s to stop and drains for {drain} after {pause[1]}")
    return wrong


# Network -------------------------------------------------------------------------------------------------------------


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
            behind = _found(pods, {"matchLabels": service["spec"]["selector"]}) if service else []
            if number is None or not behind:
                wrong.append(f"{name} asks {host}:{port}, where nobody is")
                continue
            made += [Edge(source, target, target.ports.get(number, number)) for target in behind]
    return made, wrong


def network(found: list[Document]) -> list[str]:
    """Every address leads to somebody, and the policies let the question out and in; what nobody needs, they do not."""
    made, wrong = edges(found)
    policies = of_kind(found, "NetworkPolicy")
    if not policies:
        return wrong
    for edge in made:
        if not _allowed(policies, edge.source, edge.target, edge.port, "Egress"):
            wrong.append(f"{edge.source.name} may not ask {edge.target.name}:{edge.port}")
        if not _allowed(policies, edge.target, edge.source, edge.port, "Ingress"):
            wrong.append(f"{edge.target.name}:{edge.port} may not be asked by {edge.source.name}")
    stranger = Pods("a stranger", {"app": "stranger"}, {})
    for pods in all_pods(found):
        for port in pods.ports.values():
            if port != 8080 and port not in (8081, 9187, 9127) and _allowed(policies, pods, stranger, port, "Ingress"):
                wrong.append(f"{pods.name}:{port} may be asked by anybody")
    return wrong


def _addresses(pod: Document) -> set[tuple[str, int]]:
    found = set()
    for container in containers(pod):
        listens = "serve" in container.get("args", [])
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
    return any(
        "namespaceSelector" not in each and selects(each["podSelector"], peer.labels) for each in rule[side] if "podSelector" in each
    )


def _found(pods: list[Pods], selector: dict[str, Any]) -> list[Pods]:
    return [each for each in pods if selects(selector, each.labels)]


def _counts(found: list[Document]) -> Counter[tuple[str, str]]:
    return Counter((document["kind"], document["metadata"]["name"]) for document in found)


def _claims(found: list[Document], name: str) -> set[str]:
    return {
        claim["metadata"]["name"]
        for document in of_kind(found, "StatefulSet")
        if name == f"StatefulSet {document['metadata']['name']}"
        for claim in document["spec"].get("volumeClaimTemplates", [])
    }


def _name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


Check = Callable[[list[Document]], list[str]]
CHECKS: tuple[Check, ...] = (
    selectors,
    targets,
    scaled_once,
    ports,
    secret_keys,
    nothing_secret,
    environment,
    quantities,
    scalable,
    restricted,
    patience,
    network,
)
