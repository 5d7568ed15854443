"""The parts fit together in every phase; and each check sees the fault that it is there for."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from deploy.helm import sync
from tests.helm import api_server, checks, network
from tests.helm.checks import CHECKS, Check
from tests.helm.rendering import (
    EVERYTHING,
    EXTERNAL,
    KEDA,
    PHASES,
    RECOVERY,
    Document,
    Rendered,
    Values,
    documents,
    from_file,
    merged,
    of_kind,
    one,
    parsed,
)

PROFILES: dict[str, Values] = {
    "plain": {},
    "everything": EVERYTHING,
    "keda": KEDA,
    "external": EXTERNAL,
    "recovery": RECOVERY,
    "eks": from_file(sync.CHART / "values-eks.yaml"),
    "gke": from_file(sync.CHART / "values-gke.yaml"),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("phase", PHASES)
def test_the_parts_fit_together(phase: int, profile: str) -> None:
    found = documents({"phase": phase}, PROFILES[profile])
    assert [(check.__name__, wrong) for check in CHECKS for wrong in check(found)] == []


def upgrade(*values: Values) -> Rendered:
    """As it is rendered where 17 web and 3 worker pods run."""
    replicas = {"bank-piggybank-web": 17, "bank-piggybank-worker": 3}
    running = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": count}}
        for name, count in replicas.items()
    ]
    found = parsed(api_server.upgraded(merged(*values), *running), *values)
    found.replicas = replicas
    return found


@pytest.mark.parametrize("profile", ["plain", "everything", "keda", "external"])
@pytest.mark.parametrize("phase", [2, 3])
def test_the_parts_fit_together_on_an_upgrade(phase: int, profile: str) -> None:
    found = upgrade({"phase": phase}, PROFILES[profile])
    assert [(check.__name__, wrong) for check in CHECKS for wrong in check(found)] == []


@pytest.mark.parametrize("seed", [lambda web: web.pop("replicas"), lambda web: web.update(replicas=10)], ids=["none", "the least"])
def test_pods_that_an_upgrade_takes_away_are_seen(seed: Callable[[Document], Any]) -> None:
    found = upgrade({"phase": 3})
    seed(one(found, "Deployment", "-web")["spec"])
    assert [wrong.split()[0] for wrong in checks.scaled_once(found)] == ["bank-piggybank-web"]


def test_the_network_is_asked_about_every_address() -> None:
    made, _ = network.edges(documents({"phase": 3}))
    asked = {(edge.source.name.removeprefix("Deployment bank-piggybank-"), edge.target.name, edge.port) for edge in made}
    for target, port in (
        ("bank-piggybank-postgres-1", 5432),
        ("bank-piggybank-postgres-3", 5432),
        ("bank-piggybank-postgres-pooler-rw", 5432),
        ("StatefulSet bank-piggybank-queue", 6379),
        ("StatefulSet bank-piggybank-cache-cluster", 6379),
        ("StatefulSet bank-piggybank-simulator", 8081),
    ):
        assert ("web", target, port) in asked
    assert ("Pod bank-piggybank-test-deposit", "Deployment bank-piggybank-web", 8080) in asked
    assert ("StatefulSet bank-piggybank-simulator", "Deployment bank-piggybank-web", 8080) in asked


Seed = Callable[[Rendered], Any]


def container_of(found: Rendered, name: str) -> Document:
    container: Document = one(found, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    return container


def web(found: Rendered) -> Document:
    return container_of(found, "-web")


def variable(found: Rendered, name: str, of: str = "-web") -> Document:
    return next(each for each in container_of(found, of)["env"] if each["name"] == name)


def policy(found: Rendered, name: str) -> Document:
    spec: Document = one(found, "NetworkPolicy", name)["spec"]
    return spec


def without(found: Rendered, *policies: str) -> None:
    for name in policies:
        found.remove(one(found, "NetworkPolicy", name))


FAULTS: list[tuple[Check, Seed]] = [
    (checks.selectors, lambda found: one(found, "Service", "-web")["spec"]["selector"].update({"app.kubernetes.io/component": "api"})),
    (checks.their_own, lambda found: one(found, "Deployment", "-web")["spec"]["selector"]["matchLabels"].update(a="b")),
    (checks.selectors, lambda found: one(found, "PodDisruptionBudget", "-web")["spec"]["selector"]["matchLabels"].update(a="b")),
    (
        checks.their_own,
        lambda found: one(found, "Deployment", "-web")["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"].update(
            matchLabels={"a": "b"}
        ),
    ),
    (checks.selectors, lambda found: policy(found, "-queue")["podSelector"]["matchLabels"].update(a="b")),
    (checks.selectors, lambda found: one(found, "ServiceMonitor", "-web")["spec"]["selector"]["matchLabels"].update(a="b")),
    (checks.selectors, lambda found: one(found, "Service", "-instance-2")["spec"]["selector"].update({"cnpg.io/instanceName": "other"})),
    (checks.targets, lambda found: one(found, "HorizontalPodAutoscaler", "-web")["spec"]["scaleTargetRef"].update(name="other")),
    (checks.targets, lambda found: one(found, "Pooler", "-rw")["spec"]["cluster"].update(name="other")),
    (checks.targets, lambda found: one(found, "ServiceAccount", "bank-piggybank")["metadata"].update(name="other")),
    (checks.targets, lambda found: one(found, "ConfigMap", "-valkey")["metadata"].update(name="other")),
    (checks.targets, lambda found: web(found)["volumeMounts"].append({"name": "other", "mountPath": "/other"})),
    (checks.targets, lambda found: one(found, "StatefulSet", "-queue")["spec"].update(serviceName="other")),
    (checks.targets, lambda found: found.append(deepcopy(one(found, "Service", "-web")))),
    (checks.scaled_once, lambda found: one(found, "Deployment", "-web")["spec"].update(replicas=3)),
    (checks.scaled_once, lambda found: found.append(deepcopy(one(found, "HorizontalPodAutoscaler", "-web")))),
    (checks.ports, lambda found: web(found)["readinessProbe"]["httpGet"].update(port="https")),
    (checks.ports, lambda found: one(found, "Service", "-web")["spec"]["ports"][0].update(targetPort="https")),
    (checks.ports, lambda found: one(found, "Service", "-instance-1")["spec"]["ports"][0].update(targetPort=5433)),
    (
        checks.ports,
        lambda found: one(found, "Ingress", "-web")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
            port={"name": "https"}
        ),
    ),
    (checks.ports, lambda found: one(found, "HTTPRoute", "-web")["spec"]["rules"][0]["backendRefs"][0].update(port=8080)),
    (checks.ports, lambda found: one(found, "ServiceMonitor", "-web")["spec"]["endpoints"][0].update(port="metrics")),
    (checks.ports, lambda found: one(found, "PodMonitor", "-worker")["spec"]["podMetricsEndpoints"][0].update(port="http")),
    (checks.selectors, lambda found: one(found, "PodMonitor", "-pooler-ro")["spec"]["selector"]["matchLabels"].update(a="b")),
    (checks.secret_keys, lambda found: setattr(found, "notes", found.notes.replace("valkey-password", "valkey"))),
    (checks.secret_keys, lambda found: setattr(found, "notes", found.notes.replace("metrics-token", "token"))),
    (checks.secret_keys, lambda found: variable(found, "PIGGYBANK_REVIO_KEY")["valueFrom"]["secretKeyRef"].update(key="revio_key")),
    (checks.secret_keys, lambda found: variable(found, "APPLICATION_PASSWORD")["valueFrom"]["secretKeyRef"].update(name="other")),
    (
        checks.secret_keys,
        lambda found: variable(found, "PIGGYBANK_OWNER_DATABASE_URL", "-worker")["valueFrom"]["secretKeyRef"].update(key="connection"),
    ),
    (
        checks.secret_keys,
        lambda found: one(found, "Cluster", "-postgres")["spec"]["managed"]["roles"][0]["passwordSecret"].update(name="x"),
    ),
    (checks.nothing_secret, lambda found: found.append({"kind": "Secret", "metadata": {"name": "a"}})),
    (checks.nothing_secret, lambda found: variable(found, "VALKEY_PASSWORD").update(value="hunter2")),
    (checks.nothing_secret, lambda found: variable(found, "PIGGYBANK_DATABASE_URL").update(value="postgresql://a:hunter2@b:5432/c")),
    (checks.environment, lambda found: web(found)["env"].append({"name": "PIGGYBANK_LOGLEVEL", "value": "info"})),
    (checks.environment, lambda found: variable(found, "PIGGYBANK_PORT").update(value="http")),
    (checks.environment, lambda found: variable(found, "PIGGYBANK_CACHE_URL").update(value="redis+cluster://:$(VALKEY)@a:1")),
    (checks.environment, lambda found: variable(found, "PIGGYBANK_TRUSTED_PROXIES").update(value="")),
    (checks.environment, lambda found: web(found)["env"].append(web(found)["env"][-1])),
    (checks.quantities, lambda found: web(found)["resources"]["requests"].update(memory="256MB")),
    (checks.quantities, lambda found: web(found)["resources"]["requests"].update(memory="1Gi")),
    (checks.quantities, lambda found: one(found, "Cluster", "-postgres")["spec"]["storage"].update(size="a lot")),
    (checks.scalable, lambda found: web(found)["resources"]["requests"].pop("memory")),
    (checks.scalable, lambda found: one(found, "HorizontalPodAutoscaler", "-worker")["spec"]["metrics"].pop()),
    (
        checks.scalable,
        lambda found: one(found, "Deployment", "-web")["spec"]["template"]["spec"]["initContainers"][0].pop("resources"),
    ),
    (checks.restricted, lambda found: web(found)["securityContext"].update(readOnlyRootFilesystem=False)),
    (checks.restricted, lambda found: web(found)["securityContext"].pop("capabilities")),
    (
        checks.restricted,
        lambda found: one(found, "StatefulSet", "-queue")["spec"]["template"]["spec"]["securityContext"].pop("runAsNonRoot"),
    ),
    (checks.restricted, lambda found: of_kind(found, "Job")[0]["spec"]["template"]["spec"].pop("automountServiceAccountToken")),
    (checks.patience, lambda found: one(found, "Deployment", "-web")["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=35)),
    (
        checks.patience,
        lambda found: (
            one(found, "Deployment", "-worker")["spec"]["template"]["spec"].pop("terminationGracePeriodSeconds")
            and one(found, "Deployment", "-worker")["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=20)
        ),
    ),
    (network.network, lambda found: variable(found, "PIGGYBANK_QUEUE_URL").update(value="redis://:$(VALKEY_PASSWORD)@bank-queue:6379/0")),
    (
        network.network,
        lambda found: variable(found, "PIGGYBANK_POOLER_URL").update(value="postgresql://a@bank-piggybank-postgres-pooler-rw:6432/a"),
    ),
    (network.network, lambda found: policy(found, "-stores")["egress"].pop(0)),
    (network.network, lambda found: policy(found, "-stores")["podSelector"]["matchExpressions"][0]["values"].remove("worker")),
    (network.network, lambda found: policy(found, "-cache-cluster")["ingress"].pop(0)),
    (network.network, lambda found: policy(found, "-postgres")["ingress"][0]["from"].pop(0)),
    (network.network, lambda found: policy(found, "-pooler-rw")["ingress"][0]["ports"][0].update(port=6432)),
    (network.network, lambda found: policy(found, "-pooler-rw")["egress"].pop(1)),
    (network.network, lambda found: policy(found, "-pooler-ro")["podSelector"]["matchLabels"].update({"cnpg.io/poolerName": "bank"})),
    (network.network, lambda found: policy(found, "-postgres")["ingress"].pop(2)),
    (
        network.network,
        lambda found: policy(found, "-worker")["ingress"][0]["from"][0].update(namespaceSelector={"matchLabels": {"a": "b"}}),
    ),
    (network.network, lambda found: policy(found, "-worker")["ingress"][0]["from"][0].pop("podSelector")),
    (network.network, lambda found: policy(found, "-askers")["podSelector"]["matchExpressions"][0]["values"].remove("worker")),
    (network.network, lambda found: policy(found, "-web")["ingress"].pop(1)),
    (network.network, lambda found: policy(found, "-queue")["ingress"][0].pop("from")),
    (network.network, lambda found: without(found, "-default-deny", "-queue")),
]


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: f"{FAULTS[number][0].__name__}-{number}")
def test_a_fault_is_seen(number: int) -> None:
    check, seed = FAULTS[number]
    found = documents({"phase": 3}, EVERYTHING)
    assert list(check(found)) == []
    seed(found)
    assert list(check(found)) != []


def test_a_key_that_nobody_was_told_of_is_seen() -> None:
    found = documents({"phase": 2}, EXTERNAL)
    assert list(checks.secret_keys(found)) == []
    found.values["phase"] = 1
    assert any("has no replica-urls" in wrong for wrong in checks.secret_keys(found))
    found.values["valkey"]["external"] = False
    assert any("has no queue-url" in wrong for wrong in checks.secret_keys(found))


def test_every_check_has_a_fault() -> None:
    assert {check for check, _ in FAULTS} == set(CHECKS)
