"""What no schema sees: whether the parts of a rendered chart fit together. Each check returns what is wrong, in words."""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from piggybank import settings as settings_file
from piggybank.cli.serving import DRAIN_S
from piggybank.worker import DRAIN_S as WORKER_DRAIN_S
from tests.helm.network import network
from tests.helm.operators import all_pods, all_services, chosen_by, secrets, selects
from tests.helm.rendering import Document, Rendered, containers, of_kind, pod_templates

SCALES = {"": 1, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|Ki|Mi|Gi|Ti)?$")
_REFERENCE = re.compile(r"\$\(([A-Za-z_]+)\)")
POINTS_ELSEWHERE = {"company-ca", "rds-ca", "cloudsql-ca"}  # ConfigMaps that people make


def quantity(text: str | float) -> float | None:
    """A quantity in its base unit; None: it is none."""
    found = _QUANTITY.match(str(text))
    return float(found[1]) * SCALES[found[2] or ""] if found else None


# Labels and names ----------------------------------------------------------------------------------------------------


def selectors(found: Rendered) -> Iterator[str]:
    """Whoever selects pods finds some, and a workload its own."""
    pods = all_pods(found)
    chosen = [(_name(each), {"matchLabels": each["spec"]["selector"]}) for each in of_kind(found, "Service")]
    chosen += [(_name(each), each["spec"]["selector"]) for each in of_kind(found, "PodDisruptionBudget")]
    for document in of_kind(found, "NetworkPolicy"):
        spec = document["spec"]
        chosen.append((_name(document), spec["podSelector"]))
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            peers = [peer for peer in [*rule.get("from", []), *rule.get("to", [])] if "namespaceSelector" not in peer]
            chosen += [(f"a peer of {_name(document)}", peer["podSelector"]) for peer in peers]
    yield from [f"{name} selects no pod: {selector}" for name, selector in chosen if not chosen_by(selector, pods)]
    for document in of_kind(found, "ServiceMonitor"):
        if not any(selects(document["spec"]["selector"], each["metadata"].get("labels", {})) for each in of_kind(found, "Service")):
            yield f"{_name(document)} selects no Service"
    yield from [f"{_name(each)} selects no pod" for each in of_kind(found, "PodMonitor") if not chosen_by(each["spec"]["selector"], pods)]


def their_own(found: Rendered) -> Iterator[str]:
    """A workload selects its own pods, and they are spread among themselves."""
    for document in of_kind(found, "Deployment", "StatefulSet"):
        spec = document["spec"]
        if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
            yield f"{_name(document)} does not select its own pods"
    for name, pod in pod_templates(found):
        for spread in pod["spec"].get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], pod["metadata"]["labels"]):
                yield f"{name} is spread among others than itself"


def targets(found: Rendered) -> Iterator[str]:
    """What is named is there: scaled workloads, Services behind a route, accounts, volumes, clusters."""
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    services = {each["metadata"]["name"] for each in all_services(found)}
    yield from [f"{kind} {name} twice" for (kind, name), count in _counts(found).items() if count > 1]
    for document in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]
        if (target.get("kind", "Deployment"), target["name"]) not in names:
            yield f"{_name(document)} scales {target['name']}, which is not there"
    for document in of_kind(found, "StatefulSet"):
        if document["spec"]["serviceName"] not in services:
            yield f"{_name(document)}: there is no Service {document['spec']['serviceName']}"
    clusters = {each["metadata"]["name"] for each in of_kind(found, "Cluster")}
    for document in of_kind(found, "Pooler", "ScheduledBackup"):
        if document["spec"]["cluster"]["name"] not in clusters:
            yield f"{_name(document)}: there is no Cluster {document['spec']['cluster']['name']}"
    for name, pod in pod_templates(found):
        if ("ServiceAccount", pod["spec"]["serviceAccountName"]) not in names:
            yield f"{name}: there is no ServiceAccount {pod['spec']['serviceAccountName']}"
        for volume in pod["spec"].get("volumes", []):
            wanted = volume.get("configMap", {}).get("name")
            if wanted and ("ConfigMap", wanted) not in names and wanted not in POINTS_ELSEWHERE:
                yield f"{name}: there is no ConfigMap {wanted}"
        given = {volume["name"] for volume in pod["spec"].get("volumes", [])} | _claims(found, name)
        for container in containers(pod):
            mounts = container.get("volumeMounts", [])
            yield from [f"{name}: no volume {mount['name']}" for mount in mounts if mount["name"] not in given]


def scaled_once(found: Rendered) -> Iterator[str]:
    """Whoever is scaled has one scaler, and no number but the one that runs: without that Helm would make 1 of it."""
    scalers = Counter[str]()
    for scaler in of_kind(found, "HorizontalPodAutoscaler", "ScaledObject"):
        scalers[scaler["spec"]["scaleTargetRef"]["name"]] += 1
    for document in of_kind(found, "Deployment"):
        name = document["metadata"]["name"]
        if scalers[name] > 1:
            yield f"{name} has {scalers[name]} scalers"
        given, running = document["spec"].get("replicas"), found.replicas.get(name)
        if given != running if scalers[name] else given is None:
            yield f"{name} has {given} replicas, {running} running and {scalers[name]} scalers"


# Ports ---------------------------------------------------------------------------------------------------------------


def ports(found: Rendered) -> Iterator[str]:
    """Every port that is named is there: of probes, Services, routes and monitors."""
    for name, pod in pod_templates(found):
        for container in containers(pod):
            own = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
                if port is not None and port not in own:
                    yield f"{name}: the {probe} of {container['name']} asks port {port}, which it does not have"
    for service in of_kind(found, "Service"):
        behind = chosen_by({"matchLabels": service["spec"]["selector"]}, all_pods(found))
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in {*pods.ports, *pods.ports.values()} for pods in behind):
                yield f"{_name(service)} leads to port {port['targetPort']}, which its pods do not have"
    services = {each["metadata"]["name"]: each for each in of_kind(found, "Service")}
    for name, service_name, port in _routes(found):
        known = {
            key for each in services.get(service_name, {"spec": {"ports": []}})["spec"]["ports"] for key in (each["name"], each["port"])
        }
        if port not in known:
            yield f"{name} leads to {service_name}:{port}, which is not there"
    for monitor in of_kind(found, "ServiceMonitor"):
        chosen = [each for each in services.values() if selects(monitor["spec"]["selector"], each["metadata"].get("labels", {}))]
        known = {port["name"] for each in chosen for port in each["spec"]["ports"]}
        yield from [f"{_name(monitor)} asks port {each['port']}" for each in monitor["spec"]["endpoints"] if each["port"] not in known]
    for monitor in of_kind(found, "PodMonitor"):
        asked = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
        for pods in chosen_by(monitor["spec"]["selector"], all_pods(found)):
            yield from [f"{_name(monitor)} asks port {port} of {pods.name}" for port in sorted(asked - pods.ports.keys())]


def _routes(found: Rendered) -> Iterator[tuple[str, str, str | int]]:
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


def secret_keys(found: Rendered) -> Iterator[str]:
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
    for document in of_kind(found, "ServiceMonitor"):
        asked += [(_name(document), each["authorization"]["credentials"]) for each in document["spec"]["endpoints"]]
    for document in of_kind(found, "Cluster"):
        asked += [(_name(document), {**role["passwordSecret"], "key": "password"}) for role in document["spec"]["managed"]["roles"]]
    yield from [
        f"{name}: Secret {each['name']} has no {each['key']}" for name, each in asked if each["key"] not in known.get(each["name"], set())
    ]


def nothing_secret(found: Rendered) -> Iterator[str]:
    """No Secret is rendered, and nothing that is one stands in an environment."""
    yield from [f"{_name(document)} is rendered" for document in of_kind(found, "Secret")]
    secret = re.compile(r"PASSWORD$|_KEY$|SECRET$|SMTP_URL$")
    for name, pod in pod_templates(found):
        for container in containers(pod):
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if secret.search(variable["name"]) and value:
                    yield f"{name}: {variable['name']} is written out"
                password = re.search(r"://[^/@]*:([^/@]+)@", value)
                if password and not _REFERENCE.fullmatch(password[1]):
                    yield f"{name}: {variable['name']} has a password in it"


def environment(found: Rendered) -> Iterator[str]:
    """Every variable of ours is a setting with a value that it takes, and a reference is to one that stands before it."""
    for name, pod in pod_templates(found):
        for container in containers(pod):
            before: set[str] = set()
            given: dict[str, str] = {}
            for variable in container.get("env", []):
                value = str(variable.get("value", ""))
                yield from [
                    f"{name}: {variable['name']} needs {each} before it" for each in _REFERENCE.findall(value) if each not in before
                ]
                if variable["name"] in before:
                    yield f"{name}: {variable['name']} twice"
                before.add(variable["name"])
                given[variable["name"]] = value
            ours = {key: value for key, value in given.items() if key.startswith(settings_file.PREFIX) and value}
            known = {f"{settings_file.PREFIX}{field.upper()}" for field in settings_file.Settings.__struct_fields__}
            yield from [f"{name}: {key} is no setting" for key in given if key.startswith(settings_file.PREFIX) and key not in known]
            try:
                settings_file.load(environment={key: _REFERENCE.sub("x", value) for key, value in ours.items() if key in known})
            except Exception as cause:  # whatever it says is the finding
                yield f"{name}: {cause}"


# Resources -----------------------------------------------------------------------------------------------------------


def quantities(found: Rendered) -> Iterator[str]:
    """Every quantity is one, and a request is no more than its limit."""
    for where, resources in _resources(found):
        asked, limits = resources.get("requests", {}), resources.get("limits", {})
        wrong = [f"{where}: {name}: {text!r} is no quantity" for name, text in [*asked.items(), *limits.items()] if quantity(text) is None]
        yield from wrong
        for name in asked.keys() & limits.keys() if not wrong else ():
            if (quantity(asked[name]) or 0) > (quantity(limits[name]) or 0):
                yield f"{where} asks for more {name} than its limit"


def scalable(found: Rendered) -> Iterator[str]:
    """An autoscaler measures against requests, so each container of its target has one of each kind that it looks at."""
    pods = {document["metadata"]["name"]: document["spec"]["template"] for document in of_kind(found, "Deployment")}
    for scaler in of_kind(found, "HorizontalPodAutoscaler"):
        looked_at = {metric["resource"]["name"] for metric in scaler["spec"]["metrics"]}
        if looked_at != {"cpu", "memory"}:
            yield f"{_name(scaler)} looks at {', '.join(sorted(looked_at))}"
        target = pods.get(scaler["spec"]["scaleTargetRef"]["name"])
        for container in containers(target) if target else []:
            missing = {"cpu", "memory"} - container.get("resources", {}).get("requests", {}).keys()
            if missing:
                yield f"{_name(scaler)}: {container['name']} has no request of {', '.join(sorted(missing))}"


def _resources(found: Rendered) -> Iterator[tuple[str, Document]]:
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


def restricted(found: Rendered) -> Iterator[str]:
    """The pods fit Pod Security's `restricted`, with a read-only root and no token of the API server."""
    for name, pod in pod_templates(found):
        context = pod["spec"].get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("seccompProfile", {}).get("type") == "RuntimeDefault"):
            yield f"{name} may be root, or has no seccomp profile"
        if pod["spec"].get("automountServiceAccountToken") is not False:
            yield f"{name} has a token of the API server"
        for container in containers(pod):
            own = container.get("securityContext", {})
            closed = own.get("allowPrivilegeEscalation") is False and own.get("readOnlyRootFilesystem") is True
            if not (closed and own.get("capabilities", {}).get("drop") == ["ALL"]):
                yield f"{name} {container['name']} is not closed"


def patience(found: Rendered) -> Iterator[str]:
    """Whoever is stopped has the time to drain."""
    for name, pod in pod_templates(found):
        for container in containers(pod):
            drain = {"serve": DRAIN_S, "worker": WORKER_DRAIN_S, "simulator": DRAIN_S}.get((container.get("args") or [""])[0], 0)
            pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            if grace <= drain + int(pause[1]):
                yield f"{name} has {grace} s to stop and drains for {drain} after {pause[1]}"


def _counts(found: Rendered) -> Counter[tuple[str, str]]:
    return Counter((document["kind"], document["metadata"]["name"]) for document in found)


def _claims(found: Rendered, name: str) -> set[str]:
    return {
        claim["metadata"]["name"]
        for document in of_kind(found, "StatefulSet")
        if name == f"StatefulSet {document['metadata']['name']}"
        for claim in document["spec"].get("volumeClaimTemplates", [])
    }


def _name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


Check = Callable[[Rendered], Iterator[str]]
CHECKS: tuple[Check, ...] = (
    selectors,
    their_own,
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
