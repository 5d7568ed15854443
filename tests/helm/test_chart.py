"""One value, the phase, says everything; what somebody sets wins in every phase; what cannot work is refused with a sentence."""

import json
import re
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

import piggybank
from deploy.helm import sync
from piggybank.appliance import cache_cluster, store_files
from piggybank.capacity import alerts, connections, phases
from piggybank.capacity.connections import Processes
from tests.conftest import require
from tests.helm import api_server, checks
from tests.helm.rendering import (
    EVERYTHING,
    EXTERNAL,
    KEDA,
    NAMESPACE,
    PHASES,
    RECOVERY,
    Document,
    Refused,
    Values,
    containers,
    documents,
    from_file,
    from_set,
    notes,
    of_kind,
    one,
    parsed,
    pod_templates,
    rendered,
)

CRDS = Path(__file__).with_name("crds")
KUBERNETES = ("1.29", "1.37")  # the oldest that the chart says it takes, and the newest with schemas here
PROFILES: dict[str, Values] = {"plain": {}, "everything": EVERYTHING, "keda": KEDA, "external": EXTERNAL, "recovery": RECOVERY}
profiles = pytest.mark.parametrize("profile", PROFILES)
in_every_phase = pytest.mark.parametrize("phase", PHASES)


def environment(found: list[Document], part: str = "web") -> dict[str, Any]:
    """Of the first container of a Deployment."""
    container = one(found, "Deployment", f"-{part}")["spec"]["template"]["spec"]["containers"][0]
    return {variable["name"]: variable.get("value") for variable in container["env"]}


# One source ----------------------------------------------------------------------------------------------------------


def test_what_the_chart_has_from_elsewhere_is_as_it_is_there() -> None:
    made = sync.files()
    there = {str(path.relative_to(sync.CHART / "files")) for path in (sync.CHART / "files").rglob("*") if path.is_file()}
    assert there == set(made), "run: make chart"
    for name, text in made.items():
        assert (sync.CHART / "files" / name).read_text(encoding="utf-8") == text, f"{name} differs; run: make chart"
    assert sync.SCHEMA.read_text(encoding="utf-8") == sync.schema(), "run: make chart"


def test_the_chart_is_of_this_version_and_helm_has_nothing_to_say() -> None:
    about = yaml.safe_load((sync.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == piggybank.__version__
    for phase in PHASES:
        report = helm.lint(sync.CHART, {"phase": phase}, strict=True)
        assert [message for message in report["messages"] if message["severity"] > 1] == []


@in_every_phase
def test_set_is_the_file_and_the_file_says_nothing_else(phase: int) -> None:
    path = sync.CHART / f"values-phase{phase}.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"phase": phase}
    assert rendered(from_file(path)) == rendered(from_set(f"phase={phase}"))


def leaves(values: Values, *path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= leaves(value, *path, name) if isinstance(value, dict) else {".".join((*path, name)): value}
    return found


PRESET = leaves(sync.preset(phases.of(0)))


def test_what_is_null_is_the_phases_and_the_rest_is_not() -> None:
    defaults = leaves(yaml.safe_load((sync.CHART / "values.yaml").read_text(encoding="utf-8")))
    assert {name for name, value in defaults.items() if value is None} == {*PRESET, "postgres.recovery"}


@in_every_phase
@profiles
def test_who_is_reached_from_outside_may_change_no_table(phase: int, profile: str) -> None:
    """The owner's address is with who migrates and who makes the months."""
    own = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, pod in pod_templates(documents(PROFILES[profile], {"phase": phase}))
        for container in containers(pod)
        if "PIGGYBANK_OWNER_DATABASE_URL" in {variable["name"] for variable in container.get("env", [])}
    }
    assert own == {"migrate", "worker"}


@in_every_phase
def test_counts_are_those_of_the_table(phase: int) -> None:
    wanted, found = phases.of(phase), documents({"phase": phase})
    for part, least, most in (("web", wanted.web, wanted.web_max), ("worker", wanted.worker, wanted.worker_max)):
        spec = one(found, "Deployment", f"-{part}")["spec"]
        if most > least:
            scaler = one(found, "HorizontalPodAutoscaler", f"-{part}")["spec"]
            assert (scaler["minReplicas"], scaler["maxReplicas"]) == (least, most)
            assert [metric["resource"]["target"]["averageUtilization"] for metric in scaler["metrics"]] == [65, 80]
            assert {"scaleUp", "scaleDown"} == scaler["behavior"].keys()
            assert "replicas" not in spec
        else:
            assert spec["replicas"] == least
        assert spec["strategy"]["rollingUpdate"]["maxSurge"] == f"{phases.limits().rollout.surge:.0%}"
    cluster = one(found, "Cluster", "-postgres")["spec"]
    assert cluster["instances"] == 1 + wanted.replicas
    assert ("synchronous" in cluster["postgresql"]) == (wanted.replicas > 0)
    assert int(cluster["postgresql"]["parameters"]["max_connections"]) >= max(wanted.max_connections, wanted.replica_max_connections)
    assert cluster["resources"]["requests"] == {"cpu": str(wanted.postgres_cpus), "memory": f"{wanted.postgres_memory_mib}Mi"}
    assert cluster["storage"]["size"] == f"{wanted.database_gib}Gi"
    poolers = of_kind(found, "Pooler")
    assert [pooler["spec"]["type"] for pooler in poolers] == (["rw", "ro"] if wanted.pooled else [])
    for pooler in poolers[:1]:
        limits, count = pooler["spec"]["pgbouncer"]["parameters"], pooler["spec"]["instances"]
        assert int(limits["max_client_conn"]) * count == wanted.pooler_clients
        assert int(limits["default_pool_size"]) * count == wanted.pooler_connections
        assert pooler["spec"]["pgbouncer"]["poolMode"] == "transaction"
    cache = one(found, "StatefulSet", "-cache-cluster" if wanted.clustered else "-cache")["spec"]
    assert cache["replicas"] == wanted.cache_masters + wanted.cache_replicas
    conf = one(found, "ConfigMap", "-valkey")["data"]["cache-cluster.conf" if wanted.clustered else "cache.conf"]
    assert f"maxmemory {wanted.cache_memory_mib // cache['replicas']}mb" in conf
    assert one(found, "StatefulSet", "-queue")["spec"]["replicas"] == 1
    assert [job for job in of_kind(found, "Job") if "-months-" in job["metadata"]["name"]] != [] or not wanted.partitions
    said = environment(found)
    assert (said["PIGGYBANK_PHASE"], said["PIGGYBANK_POOL_CONNECTIONS"]) == (str(phase), str(wanted.pool))
    assert ("PIGGYBANK_POOLER_URL" in said) == wanted.pooled
    assert len((said.get("PIGGYBANK_REPLICA_URLS") or "").split(",")) == (1 + wanted.replicas if wanted.replicas else 1)


def test_a_cluster_node_is_configured_as_the_supervisor_does_it() -> None:
    node = cache_cluster.cluster_conf(cache_cluster.Node("127.0.0.1", 6379, 16379), "secret", Path("/data"), 2_048)
    ours = dict(line.split(" ", 1) for line in node.splitlines() if line and not line.startswith("#"))
    conf = one(documents({"phase": 3}), "ConfigMap", "-valkey")["data"]["cache-cluster.conf"]
    theirs = dict(line.split(" ", 1) for line in conf.splitlines())
    different = {"dir"}  # in quotes
    for name in theirs.keys() - different:
        assert theirs[name] == ours[name], name
    by_the_start_script = {"requirepass", "masterauth", "cluster-announce-ip"}
    left_to_the_image = {"bind", "port", "cluster-port", "daemonize", "set-proc-title", "logfile", "loglevel"}
    assert ours.keys() - theirs.keys() == by_the_start_script | left_to_the_image


# What somebody sets --------------------------------------------------------------------------------------------------

Where = tuple[str, str, tuple[str | int, ...]]


def at(found: list[Document], kind: str, name: str, *path: str | int) -> Any:
    node: Any = one(found, kind, name)
    for step in path:
        node = node[step]
    return node


PARAMETERS = ("spec", "postgresql", "parameters")
# for each value that a phase sets: another one, what else it takes, and where it shows
OVERRIDES: dict[str, tuple[Any, Values, Any]] = {
    "poolConnections": (3, {}, lambda found: int(environment(found)["PIGGYBANK_POOL_CONNECTIONS"])),
    "postgres.instances": (4, {}, lambda found: at(found, "Cluster", "-postgres", "spec", "instances")),
    "postgres.synchronous": (
        False,
        {"durability": "local"},
        lambda found: "synchronous" in at(found, "Cluster", "-postgres", "spec", "postgresql"),
    ),
    "postgres.maxConnections": (444, {}, lambda found: int(at(found, "Cluster", "-postgres", *PARAMETERS, "max_connections"))),
    "postgres.cpus": (3, {}, lambda found: int(at(found, "Cluster", "-postgres", "spec", "resources", "requests", "cpu"))),
    "postgres.memoryMiB": (4_000, {}, lambda found: int(at(found, "Cluster", "-postgres", *PARAMETERS, "shared_buffers")[:-2]) * 4),
    "postgres.storageGiB": (77, {}, lambda found: int(at(found, "Cluster", "-postgres", "spec", "storage", "size")[:-2])),
    "postgres.pooler.enabled": (True, {}, lambda found: "PIGGYBANK_POOLER_URL" in environment(found)),
    "postgres.pooler.clients": (
        1_400,
        {"postgres": {"pooler": {"enabled": True}}},
        lambda found: 2 * int(at(found, "Pooler", "-rw", "spec", "pgbouncer", "parameters", "max_client_conn")),
    ),
    "postgres.pooler.connections": (
        62,
        {"postgres": {"pooler": {"enabled": True}}},
        lambda found: 2 * int(at(found, "Pooler", "-rw", "spec", "pgbouncer", "parameters", "default_pool_size")),
    ),
    "postgres.pooler.readOnly": (
        False,
        {"postgres": {"pooler": {"enabled": True}}},
        lambda found: len(of_kind(found, "Pooler")) == 2,
    ),
    "months": (True, {}, lambda found: any("-months-" in job["metadata"]["name"] for job in of_kind(found, "Job"))),
    "valkey.cache.masters": (
        4,
        {"valkey": {"cache": {"replicas": 4}}},
        lambda found: at(found, "StatefulSet", "-cache-cluster", "spec", "replicas") - 4,
    ),
    "valkey.cache.replicas": (
        5,
        {"valkey": {"cache": {"masters": 3}}},
        lambda found: at(found, "StatefulSet", "-cache-cluster", "spec", "replicas") - 3,
    ),
    "valkey.cache.memoryMiB": (
        600,
        {"valkey": {"cache": {"masters": 1, "replicas": 0}}},
        lambda found: int(at(found, "ConfigMap", "-valkey", "data", "cache.conf").split()[1][:-2]),
    ),
}
for part in ("web", "worker"):
    scaled: Values = {"poolConnections": 2, part: {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 5}}}

    def scaler(found: list[Document], key: str, part: str = part) -> Any:
        return at(found, "HorizontalPodAutoscaler", f"-{part}", "spec", key)

    OVERRIDES |= {
        f"{part}.replicas": (
            3,
            {"poolConnections": 4},
            lambda found, part=part: at(found, "Deployment", f"-{part}", "spec").get("replicas"),
        ),
        f"{part}.autoscaling.enabled": (
            True,
            {},
            lambda found, part=part: any(each["metadata"]["name"].endswith(part) for each in of_kind(found, "HorizontalPodAutoscaler")),
        ),
        f"{part}.autoscaling.minReplicas": (4, scaled, lambda found, scaler=scaler: scaler(found, "minReplicas")),
        f"{part}.autoscaling.maxReplicas": (6, scaled, lambda found, scaler=scaler: scaler(found, "maxReplicas")),
    }


def nested(path: str, value: Any) -> Values:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def test_every_value_of_a_phase_is_tried() -> None:
    assert set(OVERRIDES) == set(PRESET)


@pytest.mark.parametrize("path", OVERRIDES)
def test_what_somebody_sets_stays_from_phase_to_phase(path: str) -> None:
    value, beside, shown = OVERRIDES[path]
    set_by_somebody = (beside, nested(path, value))
    for phase in (0, 3, 1):
        assert shown(documents({"phase": phase}, *set_by_somebody)) == value, phase
    without = (beside, nested(path, None))
    of_the_phases = [shown(documents({"phase": phase}, *without)) for phase in (0, 3) if _renders({"phase": phase}, *without)]
    assert any(other != value for other in of_the_phases), "the phase would have set something else"


def _renders(*values: Values) -> bool:
    try:
        rendered(*values)
    except Refused:
        return False
    return True


def test_null_is_the_phases_again() -> None:
    for phase in PHASES:
        assert rendered({"phase": phase}, *(nested(path, None) for path in PRESET)) == rendered({"phase": phase})


# What is refused -----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], str]] = {
    "phase 4": (["phase=4"], "phase 4 is not built: phases 0 to 3 are"),
    "a name that no Service may have": (["fullnameOverride=1bank"], "a Service's begins with a letter"),
    "replicas and autoscaling": (
        ["web.replicas=3", "web.autoscaling.enabled=true"],
        "web.replicas is fixed and web.autoscaling.enabled is true",
    ),
    "the same of the worker": (["worker.replicas=3", "worker.autoscaling.enabled=true"], "worker.replicas is fixed"),
    "least above most": (["phase=3", "web.autoscaling.minReplicas=21"], "minReplicas is 21 and maxReplicas 20"),
    "KEDA and autoscaling": (
        ["worker.keda.enabled=true", "worker.autoscaling.enabled=true"],
        "KEDA makes a HorizontalPodAutoscaler of its own",
    ),
    "KEDA and replicas": (["worker.keda.enabled=true", "worker.replicas=2"], "worker.replicas is fixed and worker.keda.enabled"),
    "KEDA without an address": (["worker.keda.enabled=true", "valkey.external=true", "existingSecret=a"], "so KEDA is not told"),
    "no standbys": (["phase=2", "postgres.instances=1"], "phase 2 without standbys"),
    "nobody to wait for": (["postgres.synchronous=true"], "no commit would ever end"),
    "a wait that nobody ends": (["phase=3", "postgres.synchronous=false"], "every write would answer 503"),
    "no fsync": (["postgres.parameters.fsync=off"], "postgres.parameters.fsync is off: writes that were answered would be lost"),
    "torn pages": (["postgres.parameters.full_page_writes=0"], "postgres.parameters.full_page_writes is 0"),
    "a commit that is not written": (["phase=1", "postgres.parameters.synchronous_commit=off"], "so it is on or remote_apply"),
    "a commit that no standby has": (["phase=2", "postgres.parameters.synchronous_commit=remote_write"], "so it is on or remote_apply"),
    "the same in other letters": (["postgres.parameters.FSync=false"], "postgres.parameters.fsync is false"),
    "connections that nobody counted": (["phase=1", "postgres.parameters.max_connections=30"], "set postgres.maxConnections"),
    "too few connections": (["phase=1", "postgres.maxConnections=30"], "PostgreSQL takes 20: lower poolConnections"),
    "no address of the database": (["postgres.external=true"], "name the Secret with database-url"),
    "no addresses of the replicas": (["phase=2", "postgres.external=true"], "replica-urls"),
    "no address of the Valkeys": (["valkey.external=true"], "name the Secret with cache-url"),
    "backups of what is not ours": (["postgres.external=true", "existingSecret=a", "postgres.backup.objectStore=b"], "makes its backups"),
    "restores of what is not ours": (
        ["postgres.external=true", "existingSecret=a", "postgres.recovery.objectStore=b"],
        "piggybank restore begin",
    ),
    "a restore that no moment tells from others": (["postgres.recovery.objectStore=b"], "set startedAt to the time now"),
    "a restore to two moments": (
        [
            "postgres.recovery.objectStore=b",
            "postgres.recovery.targetTime=2026-11-24T09:30:00Z",
            "postgres.recovery.startedAt=2026-11-24T10:00:00Z",
        ],
        "take startedAt out",
    ),
    "an archive over what is restored": (
        ["postgres.backup.objectStore=b", "postgres.recovery.objectStore=b", "postgres.recovery.startedAt=2026-11-24T10:00:00Z"],
        "set postgres.backup.serverName to a name that was not used yet",
    ),
    "two masters": (["valkey.cache.masters=2"], "a cluster has 3 masters or more"),
    "a lonely replica": (["valkey.cache.replicas=1"], "nobody would make one of them take over"),
    "no host": (["ingress.enabled=true"], "ingress.enabled without ingress.host"),
    "no Gateway": (["gateway.enabled=true", "gateway.host=a.example.com"], "gateway.parentRefs"),
    "events to nowhere": (["provider.mode=live"], "nobody knows the public URL"),
    "a range of no ports": (["valkey.externalPorts={6379,13047-11000}"], "externalPorts has 13047-11000"),
    "plain HTTP to everybody": (["trustedProxies=null"], "trustedProxies is empty"),
    "connections": (["phase=1", "poolConnections=10"], "PostgreSQL takes 90: lower poolConnections"),
    "clients of the pooler": (["phase=3", "poolConnections=50"], "postgres.pooler.clients"),
    "servers of the pooler": (["postgres.pooler.enabled=true", "postgres.pooler.connections=95"], "raise postgres.maxConnections"),
    "connections to a standby": (["phase=3", "postgres.maxConnections=100"], "to each standby"),
}
MISSPELT = {
    "a name": (["web.replica=3"], "additional properties 'replica' not allowed"),
    "a setting": (["settings.logg_level=debug"], "invalid propertyName 'logg_level'"),
    "a setting of the chart": (["settings.queue_url=x"], "invalid propertyName 'queue_url'"),
    "a secret in the values": (["settings.revio_key=x"], "invalid propertyName 'revio_key'"),
    "a type": (["phase=two"], "at '/phase': got string, want integer"),
    "a mode": (["provider.mode=test"], "value must be one of 'simulator', 'live'"),
    "a number": (["web.replicas=0"], "minimum: got 0, want 1"),
    "a quantity": (["web.resources.requests.memory=256 MB"], "does not match pattern"),
    "a port": (["postgres.externalPorts={0}"], "minimum: got 0, want 1"),
    "a restore's value": (["postgres.recovery.targetXID=7"], "additional properties 'targetXID' not allowed"),
    "a restore from nowhere": (["postgres.recovery.targetTime=2026-11-24T09:30:00Z"], "missing property 'objectStore'"),
    "a restore's moment": (["postgres.recovery.objectStore=b", "postgres.recovery.targetTime=yesterday"], "does not match pattern"),
}


@pytest.mark.parametrize("value", ["on", "true", True, "remote_apply"])
def test_what_loses_nothing_is_taken(value: str | bool) -> None:
    parameters = {"synchronous_commit": value} | ({} if value == "remote_apply" else {"fsync": value, "full_page_writes": value})
    found = one(documents({"postgres": {"parameters": parameters | {"work_mem": "8MB"}}}), "Cluster", "-postgres")
    given = found["spec"]["postgresql"]["parameters"]
    assert given.items() >= {"work_mem": "8MB", "synchronous_commit": str(value).lower()}.items()


@pytest.mark.parametrize("name", [*REFUSED, *MISSPELT])
def test_what_cannot_work_is_refused_with_a_sentence(name: str) -> None:
    expressions, sentence = (REFUSED | MISSPELT)[name]
    with pytest.raises(Refused) as refused:
        rendered(from_set(*expressions))
    assert sentence in str(refused.value)


def test_every_sentence_of_the_chart_is_tried() -> None:
    text = (sync.CHART / "templates" / "_check.tpl").read_text(encoding="utf-8")
    elsewhere, without_rules = 1, 1  # phase 4; a chart that has lost its rules
    said_twice = 3 + 4 + 1  # web and worker, replicas, pooler or none; five parameters, connections twice
    looked_up = 2  # what runs beside a restore: below
    assert text.count("{{- fail ") == len(REFUSED) - elsewhere - said_twice + without_rules + looked_up


OFTEN = ((1, False), (3, True))


@pytest.mark.parametrize(
    ("phase", "pooled"),
    [
        pytest.param(phase, pooled, marks=() if (phase, pooled) in OFTEN else pytest.mark.deep)
        for phase in PHASES
        for pooled in (False, True)
    ],
)
def test_connections_are_counted_as_the_product_counts_them(phase: int, pooled: bool) -> None:
    """Around the bound: what `piggybank phase plan` takes the chart takes, and what it refuses the chart refuses."""
    answers = set()
    for pool in (2, 7, 25, 40):
        for web in (2, 20):
            table = phases.of(phase)
            most = max(table.max_connections, table.replica_max_connections)
            values = {
                "phase": phase,
                "poolConnections": pool,
                "web": {"replicas": web},
                "worker": {"replicas": 4},
                "postgres": {"pooler": {"enabled": pooled}},
            }
            short = connections.shortages(table, Processes(web, 4, pool), max_connections=most, pooled=pooled)
            # the table gives a standby its own number, the chart all servers the same, less those that are reserved
            assert _renders(values) == (not short), (pool, web, short)
            answers.add(not short)
    assert answers == {True, False}


# What runs wins ------------------------------------------------------------------------------------------------------


def there(api_version: str, kind: str, part: str, spec: Values) -> Document:
    metadata = {"name": f"bank-piggybank-{part}", "namespace": "money"}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("values", [{"phase": 3}, {"phase": 3, **KEDA}])
def test_what_was_scaled_up_is_not_thrown_back(values: Values) -> None:
    """Helm makes 1 of a number that the last release named and this one does not: of ten web pods, or of twenty that had to be."""
    running = [there("apps/v1", "Deployment", part, {"replicas": count}) for part, count in (("web", 17), ("worker", 3))]
    found, before = parsed(api_server.upgraded(values, *running)), documents(values)
    for part, count in (("web", 17), ("worker", 3)):
        assert one(found, "Deployment", f"-{part}")["spec"]["replicas"] == count
        assert "replicas" not in one(before, "Deployment", f"-{part}")["spec"], "there is none yet"


def test_who_is_not_scaled_by_itself_has_the_phases_number() -> None:
    found = parsed(api_server.upgraded({"phase": 2}, there("apps/v1", "Deployment", "web", {"replicas": 17})))
    assert one(found, "Deployment", "-web")["spec"]["replicas"] == phases.of(2).web


@pytest.mark.parametrize(
    ("phase", "size", "set_by_somebody", "size_then"),
    [
        (1, "1000Gi", None, "1000Gi"),  # down from phase 3
        (3, "500Gi", None, "1000Gi"),  # up from phase 2
        (1, "1Ti", None, "1024Gi"),
        (3, "1000Gi", 77, "1000Gi"),
        (0, "10Gi", 20, "20Gi"),
    ],
)
def test_a_disk_does_not_shrink(phase: int, size: str, set_by_somebody: int | None, size_then: str) -> None:
    cluster = there("postgresql.cnpg.io/v1", "Cluster", "postgres", {"storage": {"size": size}})
    texts = api_server.upgraded({"phase": phase, "postgres": {"storageGiB": set_by_somebody}}, cluster)
    assert one(parsed(texts), "Cluster", "-postgres")["spec"]["storage"]["size"] == size_then
    said = next(text for name, text in texts.items() if name.endswith("NOTES.txt"))
    assert (f"keeps its disk of {size_then[:-2]} GiB" in said) == (size_then in ("1000Gi", "1024Gi") and size != "500Gi")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["2", "4", "5"], ["2", "4", "5"]),  # two were replaced
        (["2"], ["1", "2", "3"]),  # the others are being made
        ([], ["1", "2", "3"]),
    ],
)
def test_every_server_that_is_there_is_read_from(names: list[str], numbers: list[str]) -> None:
    cluster = there("postgresql.cnpg.io/v1", "Cluster", "postgres", {"storage": {"size": "500Gi"}})
    cluster["status"] = {"instanceNames": [f"bank-piggybank-postgres-{name}" for name in names]}
    found = parsed(api_server.upgraded({"phase": 2}, cluster))
    services = [each for each in of_kind(found, "Service") if "-instance-" in each["metadata"]["name"]]
    assert [each["spec"]["selector"]["cnpg.io/instanceName"].rpartition("-")[2] for each in services] == numbers
    hosts = [url.rpartition("@")[2] for url in environment(found)["PIGGYBANK_REPLICA_URLS"].split(",")]
    assert hosts == [f"{each['metadata']['name']}:5432/piggybank" for each in services]


def test_a_first_install_does_not_ask_for_what_the_operator_has_not_brought() -> None:
    """Helm itself says that it is missing, before it makes anything; `lookup` would say less."""
    without_operator = {key: plural for key, plural in api_server.PLURALS.items() if key[1] != "Cluster"}
    assert api_server.upgraded({"phase": 3}, first=True, plurals=without_operator)


# Restores ------------------------------------------------------------------------------------------------------------


def containers_of(found: list[Document], kind: str, name: str) -> list[Values]:
    [document] = [each for each in of_kind(found, kind) if name in each["metadata"]["name"]]
    return containers(document["spec"]["template"])


@in_every_phase
def test_nobody_writes_to_what_is_restored_before_it_is_in_recovery(phase: int) -> None:
    found, since = documents({"phase": phase}, RECOVERY), "2026-11-24T09:30:00Z"
    spec = one(found, "Cluster", "-postgres")["spec"]
    target = {"targetTime": since, "backupID": "20261124T020000"}
    recovery = {"source": "before", "database": "piggybank", "owner": "piggybank_owner", "recoveryTarget": target}
    assert spec["bootstrap"] == {"recovery": recovery}, "and no empty one"
    [before] = spec["externalClusters"]
    assert before["name"] == "before"
    lost = {"barmanObjectName": "bank-backups", "serverName": "bank-piggybank-postgres"}
    assert before["plugin"] == {"name": "barman-cloud.cloudnative-pg.io", "parameters": lost}
    archives = {"barmanObjectName": "bank-backups", "serverName": "bank-piggybank-postgres-2"}
    assert [each["parameters"] for each in spec["plugins"]] == [archives]
    [job] = of_kind(found, "Job")
    migrate, begin = containers(job["spec"]["template"])
    assert migrate["args"][0] == "migrate"
    assert job["spec"]["template"]["spec"]["initContainers"] == [migrate], "it comes first: an old schema knows no restores"
    assert begin["args"] == ["restore", "begin", "--by", "cloudnative-pg", "--since", since, "--point", since]
    for kind, part in (("Deployment", "-web"), ("Deployment", "-worker"), ("StatefulSet", "-simulator")):
        first = containers_of(found, kind, part)[0]
        assert first["args"] == ["migrate", "--wait", "--within", "900", "--restored-since", since], part


def test_the_newest_is_restored_up_to_what_it_knows_itself() -> None:
    started: Values = {"postgres": {"recovery": {"targetTime": "", "backupID": "", "startedAt": "2026-11-24T10:00:00Z"}}}
    found = documents(RECOVERY, started, {"postgres": {"recovery": {"serverName": "the-lost-one"}}})
    spec = one(found, "Cluster", "-postgres")["spec"]
    assert "recoveryTarget" not in spec["bootstrap"]["recovery"]
    assert spec["externalClusters"][0]["plugin"]["parameters"]["serverName"] == "the-lost-one"
    begin = containers_of(found, "Job", "-migrate-")[-1]
    assert begin["args"] == ["restore", "begin", "--by", "cloudnative-pg", "--since", "2026-11-24T10:00:00Z"]


def test_a_restore_waits_for_nothing_of_before() -> None:
    web = there("apps/v1", "Deployment", "web", {"replicas": 2})
    with pytest.raises(helm.HelmError, match="Delete the Deployment bank-piggybank-web first"):
        api_server.upgraded(RECOVERY, web)
    cluster = there("postgresql.cnpg.io/v1", "Cluster", "postgres", {"storage": {"size": "10Gi"}})
    with pytest.raises(helm.HelmError, match="bank-piggybank-postgres is there: it would not be restored, only closed to writes"):
        api_server.upgraded(RECOVERY, cluster)
    cluster["metadata"]["annotations"] = one(documents(RECOVERY), "Cluster", "-postgres")["metadata"]["annotations"]
    assert api_server.upgraded(RECOVERY, cluster, web), "the same again, while it is restored"
    assert api_server.upgraded(RECOVERY)
    other: Values = {"postgres": {"recovery": {"objectStore": "b", "startedAt": "2026-11-24T10:00:00Z"}}}
    with pytest.raises(helm.HelmError, match="it would not be restored"):
        api_server.upgraded(other, cluster)


# Names ---------------------------------------------------------------------------------------------------------------

LONG_RELEASE = "a-name-that-is-as-long-as-helm-takes-it.of-53-letters"
LABEL_CHARACTERS = 63
CLUSTER_CHARACTERS = 50  # CloudNativePG's webhook
REVISION_CHARACTERS = 11  # a StatefulSet's pods have its name and this as a label


@in_every_phase
@pytest.mark.parametrize("fullname", ["", "a-name-that-is-long.and-longer-than-53-letters-because-nobody-says-no"])
def test_names_fit_with_everything_that_is_added_to_them(phase: int, fullname: str) -> None:
    assert len(LONG_RELEASE) == 53
    with helm.Chart.load(sync.CHART) as chart:
        tag = {"image": {"tag": "2026.11.30-rc1_a-branch-of-somebody-who-likes-long-names-of-branches.0123456789abcdef"}}
        everything = {**EVERYTHING, **tag, "phase": phase, "fullnameOverride": fullname, "valkey": {"cache": {"masters": 3, "replicas": 8}}}
        found = parsed(chart.render(everything, name=LONG_RELEASE, namespace="money"))
    for document in found:
        name, kind = document["metadata"]["name"], document["kind"]
        room = {"Cluster": CLUSTER_CHARACTERS, "StatefulSet": LABEL_CHARACTERS - REVISION_CHARACTERS}.get(kind, LABEL_CHARACTERS)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
        assert len(name) <= room, f"{kind} {name}: {len(name)}"
        labels = (
            document["metadata"]["labels"] | document["spec"].get("template", {}).get("metadata", {}).get("labels", {})
            if "spec" in document
            else {}
        )
        for value in labels.values():
            assert re.fullmatch(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?", value), value
    assert [(check.__name__, wrong) for check in (checks.targets, checks.ports) for wrong in check(found)] == []


def test_a_private_registry_may_have_all_images() -> None:
    found = documents({"phase": 3}, EVERYTHING)
    secrets = [pod["spec"]["imagePullSecrets"] for _, pod in pod_templates(found)] + [
        one(found, "Cluster", "-postgres")["spec"]["imagePullSecrets"]
    ]
    assert all(each == [{"name": "registry"}] for each in secrets)


def test_only_one_keeper_forms_the_cluster() -> None:
    assert one(documents({"phase": 3}), "Deployment", "-cache-keeper")["spec"]["strategy"] == {"type": "Recreate"}


def test_an_image_may_be_named_by_its_digest() -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    found = documents({"phase": 3, "image": {"repository": "registry.example.com/piggybank", "tag": "1.2.3", "digest": digest}})
    images = {each["image"] for _, pod in pod_templates(found) for each in containers(pod)}
    assert f"registry.example.com/piggybank:1.2.3@{digest}" in images
    assert {misshapen_of for each in found for misshapen_of in misshapen(each)} == set()


# The network ---------------------------------------------------------------------------------------------------------

LIVE = {"provider": {"mode": "live"}, "publicUrl": "https://money.example.com"}


@pytest.mark.parametrize(
    ("values", "open_ports"),
    [
        ({}, set()),
        (LIVE, {443}),
        ({**LIVE, "secretSettings": ["smtp_url"]}, {443, 25, 465, 587}),
        ({"settings": {"alert_webhook_url": "https://hooks.example.com:8443/x", "otlp_url": "http://traces:4318/v1/traces"}}, {8443, 4318}),
        ({"settings": {"alert_ping_url": "http://ping.example.com/x", "revio_proxy": "http://proxy:3128"}}, {80, 3128}),
        ({"settings": {"alert_ping_url": "https://[2001:db8::1]/x"}}, {443}),
        ({"settings": {"alert_ping_url": ""}}, set()),
        ({"secretSettings": ["alert_webhook_url"], "networkPolicy": {"externalPorts": [9443]}}, {443, 9443}),
    ],
)
def test_the_ports_of_urls_are_open(values: Values, open_ports: set[int]) -> None:
    policies = [each for each in of_kind(documents(values), "NetworkPolicy") if each["metadata"]["name"].endswith("-outside")]
    assert {port["port"] for each in policies for rule in each["spec"]["egress"] for port in rule["ports"]} == open_ports


def test_stores_elsewhere_may_have_many_ports() -> None:
    ports = {"postgres": {"externalPorts": [5432, 6432]}, "valkey": {"externalPorts": [6379, "11000-13047"]}}
    found = documents(EXTERNAL, ports)
    first, second = one(found, "NetworkPolicy", "-stores")["spec"]["egress"][:2]
    assert [port["port"] for port in first["ports"]] == [5432, 6432]
    assert [(port["port"], port.get("endPort")) for port in second["ports"]] == [(6379, None), (11_000, 13_047)]


@pytest.mark.parametrize("peers", ["metricsFrom", "dns"])
def test_nobody_is_not_taken_for_everybody(peers: str) -> None:
    with pytest.raises(Refused, match="minItems: got 0, want 1"):
        rendered({"networkPolicy": {peers: []}})


def test_who_makes_reports_may_ask_the_pooler_before_the_standbys_and_nobody_else() -> None:
    reporter = {"podSelector": {"matchLabels": {"app": "reports"}}}
    found = documents({"phase": 2, "networkPolicy": {"reportsFrom": [reporter]}})
    assert [rule["from"] for rule in one(found, "NetworkPolicy", "-pooler-ro")["spec"]["ingress"]] == [[reporter]]
    assert one(documents({"phase": 2}), "NetworkPolicy", "-pooler-ro")["spec"]["ingress"] == []


# PostgreSQL ----------------------------------------------------------------------------------------------------------


@in_every_phase
def test_machines_can_be_drained_and_the_book_outlives_the_release(phase: int) -> None:
    cluster = one(documents({"phase": phase}), "Cluster", "-postgres")
    assert cluster["spec"]["enablePDB"] == (cluster["spec"]["instances"] > 1), "a budget of one instance refuses every drain"
    assert cluster["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_budgets_can_be_turned_off() -> None:
    assert len(of_kind(documents({"phase": 3}), "PodDisruptionBudget")) == 5  # web, worker, two poolers, the cache's nodes
    found = documents({"phase": 3, "podDisruptionBudget": False})
    assert of_kind(found, "PodDisruptionBudget") == []
    assert one(found, "Cluster", "-postgres")["spec"]["enablePDB"] is False


def test_the_image_of_postgresql_is_a_version_of_the_operators() -> None:
    image = one(documents({}), "Cluster", "-postgres")["spec"]["imageName"]
    assert re.fullmatch(r"ghcr\.io/cloudnative-pg/postgresql:18\.\d+-(minimal|standard|system)-(trixie|bookworm)", image), image


def test_the_log_is_archived_as_often_as_by_piggybank_up() -> None:
    """CloudNativePG's own default is 5 minutes."""
    stores: Values = {"postgres": {"backup": {"objectStore": "bank-backups"}}}
    assert at(documents(stores), "Cluster", "-postgres", *PARAMETERS, "archive_timeout") == f"{store_files.WAL_EVERY_S}s"
    assert "archive_timeout" not in at(documents({}), "Cluster", "-postgres", *PARAMETERS), "nothing is archived"


def test_a_valkey_restarts_when_its_own_configuration_changes() -> None:
    def sums(values: Values) -> dict[str, str]:
        found = of_kind(documents(values), "StatefulSet")
        annotations = {each["metadata"]["name"]: each["spec"]["template"]["metadata"].get("annotations", {}) for each in found}
        return {name.rpartition("-")[2]: given["checksum/config"] for name, given in annotations.items() if given}

    before, after = sums({}), sums({"valkey": {"cache": {"memoryMiB": 600}}})
    assert before["queue"] == after["queue"]
    assert before["cache"] != after["cache"]


def test_another_version_of_the_application_leaves_the_valkeys_alone() -> None:
    before, after = documents({"phase": 3}), documents({"phase": 3, "image": {"tag": "2.0.0"}})
    for part in ("queue", "cache-cluster"):
        assert one(before, "StatefulSet", f"-{part}")["spec"] == one(after, "StatefulSet", f"-{part}")["spec"]


@pytest.mark.parametrize(
    ("values", "affinity"),
    [({"phase": 1}, "preferred"), ({"phase": 2}, "required"), ({"phase": 2, "postgres": {"antiAffinity": "preferred"}}, "preferred")],
)
def test_two_copies_are_on_two_machines(values: Values, affinity: str) -> None:
    assert one(documents(values), "Cluster", "-postgres")["spec"]["affinity"]["podAntiAffinityType"] == affinity


@in_every_phase
def test_stores_run_where_they_are_sent(phase: int) -> None:
    where: dict[str, Values] = {
        part: {"nodeSelector": {"disk": part}, "tolerations": [{"key": part, "operator": "Exists"}]} for part in ("postgres", "valkey")
    }
    found = documents({"phase": phase}, where)
    assert [misshapen(each) for each in found if misshapen(each)] == []
    stores = [one(found, "Cluster", "-postgres")["spec"]["affinity"]]
    stores += [each["spec"]["template"]["spec"] for each in of_kind(found, "StatefulSet") if "-simulator" not in each["metadata"]["name"]]
    given = [{name: store.get(name) for name in ("nodeSelector", "tolerations")} for store in stores]
    assert given == [where["postgres"], where["valkey"], where["valkey"]]
    assert stores[0]["enablePodAntiAffinity"], "and two copies are on two machines still"
    plain = documents({"phase": phase})
    assert not {"nodeSelector", "tolerations"} & one(plain, "Cluster", "-postgres")["spec"]["affinity"].keys()


# Shapes --------------------------------------------------------------------------------------------------------------


@cache
def crds() -> dict[tuple[str, str], Any]:
    """Strict: what is not in the schema would be dropped in silence."""
    found = {}
    for path in CRDS.glob("*.json"):
        crd = json.loads(path.read_text(encoding="utf-8"))
        found[f"{crd['group']}/{crd['version']}", crd["kind"]] = jsonschema.Draft202012Validator(_closed(crd["schema"]))
    return found


def _closed(node: Any, *, top: bool = True) -> Any:
    if isinstance(node, list):
        return [_closed(each, top=False) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: _closed(value, top=False) for name, value in node.items()}
    if "x-kubernetes-int-or-string" in node:
        made["type"] = ["integer", "string"]
    if top:
        made["properties"] = {**made["properties"], "metadata": {}}
    if (
        isinstance(node.get("properties"), dict)
        and "additionalProperties" not in node
        and "x-kubernetes-preserve-unknown-fields" not in node
    ):
        made["additionalProperties"] = False
    return made


@cache
def kubernetes(version: str, kind: str, api_version: str) -> Any:
    """The strict schema of a kind that Kubernetes has itself. (kubernetes-validate alone would read all definitions for each object.)"""
    folder = f"v{version}.0-local-strict"
    group, _, number = api_version.rpartition("/")
    name = "-".join([kind.lower(), *([group.partition(".")[0]] if group else []), number])
    schema = _schema_file(folder, f"{name}.json")
    registry = Resource.from_contents(_schema_file(folder, "_definitions.json")) @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _schema_file(folder: str, name: str) -> Any:
    path = files("kubernetes_validate") / "kubernetes-json-schema" / folder / name
    return json.loads(path.read_text(encoding="utf-8"))


def misshapen(document: Document) -> list[str]:
    return _misshapen(json.dumps(document))


@cache
def _misshapen(text: str) -> list[str]:
    document = json.loads(text)
    key = document["apiVersion"], document["kind"]
    validators = [crds()[key]] if key in crds() else [kubernetes(version, key[1], key[0]) for version in KUBERNETES]
    return [f"{error.json_path}: {error.message}" for validator in validators for error in validator.iter_errors(document)]


@profiles
@in_every_phase
def test_every_object_has_the_shape_that_kubernetes_takes(phase: int, profile: str) -> None:
    found = documents({"phase": phase}, PROFILES[profile])
    wrong = {f"{each['kind']} {each['metadata']['name']}": misshapen(each) for each in found}
    assert {name: said for name, said in wrong.items() if said} == {}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replica"), 2),
        ("StatefulSet", ("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "http"),
        ("HorizontalPodAutoscaler", ("spec", "maxReplicas"), "many"),
        ("NetworkPolicy", ("spec", "policyType"), ["Ingress"]),
        ("Job", ("spec", "template", "spec", "restartPolicies"), "OnFailure"),
        ("Cluster", ("spec", "postgresql", "synchronous", "dataDurability"), "always"),
        ("Cluster", ("spec", "instance"), 3),
        ("Pooler", ("spec", "pgbouncer", "poolMode"), "statement"),
        ("ScheduledBackup", ("spec", "method"), "dump"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "intervall"), "15s"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "ports"), "metrics"),
        ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0, "port"), "http"),
    ],
)
def test_a_wrong_shape_is_seen(kind: str, path: tuple[str | int, ...], value: Any) -> None:
    document = of_kind(documents({"phase": 3}, EVERYTHING), kind)[0]
    assert misshapen(document) == []
    node: Any = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert misshapen(document) != []


def test_every_kind_is_looked_at() -> None:
    kinds = {document["kind"] for values in (EVERYTHING, KEDA) for document in documents({"phase": 3}, values)}
    looked_at = {kind for _, kind in crds()} & kinds
    assert looked_at >= {
        "Cluster",
        "HTTPRoute",
        "PodMonitor",
        "Pooler",
        "ScaledObject",
        "ScheduledBackup",
        "ServiceMonitor",
        "TriggerAuthentication",
    }


# The migration -------------------------------------------------------------------------------------------------------


def test_the_migration_is_a_job_of_its_own_name_and_no_hook() -> None:
    names = set()
    for values in ({}, {"image": {"tag": "2.0.0"}}, {"settings": {"log_level": "debug"}}, {"phase": 1}):
        job = next(job for job in of_kind(documents(values), "Job"))
        assert "annotations" not in job["metadata"]
        names.add(job["metadata"]["name"])
        assert len(job["metadata"]["name"]) <= 63
    assert len(names) == 4, "a Job cannot be changed: another spec is another Job"
    assert rendered({}) == rendered({}), "and the same is the same"
    for _, pod in pod_templates(documents({"phase": 3})):
        waits = [container["args"] for container in containers(pod) if container["name"] == "wait-for-schema"]
        serves = {"web", "worker", "simulator", "months"} & {container["name"] for container in containers(pod)}
        assert bool(waits) == bool(serves)
        assert all(args[:2] == ["migrate", "--wait"] for args in waits)


# Notes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expressions", "said"),
    [
        ([], "SIMULATOR: no real money moves"),
        ([], "No backup"),
        ([], "One copy of the database, and no archive"),
        ([], "Nobody reaches it from outside"),
        ([], "create secret generic bank-piggybank-application --type=kubernetes.io/basic-auth"),
        (["phase=3"], "never in a pod"),
        (["postgres.recovery.objectStore=b", "postgres.recovery.startedAt=2026-11-24T10:00:00Z"], "piggybank restore finish"),
        (["web.replicas=1"], "One web pod"),
        (["web.replicas=1"], "web has 1 at most; phase 0 is made for 2"),
        (["phase=3", "postgres.storageGiB=50"], "postgres.storageGiB is 50; phase 3 is made for 1000"),
        (["phase=2", "durability=local"], "losing the primary may lose answered writes"),
        (["ingress.enabled=true", "ingress.host=a.example.com"], "tokens and passwords travel in clear"),
        (["networkPolicy.enabled=false"], "networkPolicy is off"),
        ([], "name your ingress controller in networkPolicy.webFrom"),
        (["networkPolicy.enabled=false", "networkPolicy.webFrom[0].podSelector.matchLabels.a=b"], "name your ingress controller"),
        (["postgres.external=true", "existingSecret=a"], "`piggybank doctor` says whether"),
    ],
)
def test_notes_judge(expressions: list[str], said: str) -> None:
    assert said in notes(from_set(*expressions))


def test_the_readme_makes_the_secrets_that_pods_and_notes_name() -> None:
    readme = (sync.ROOT / "README.md").read_text(encoding="utf-8")
    made = set(re.findall(r"create secret generic (piggybank-\S+)", readme))
    with helm.Chart.load(sync.CHART) as chart:
        said = chart.render({}, name="piggybank", namespace="bank")
    assert made == set(re.findall(r"create secret generic (\S+)", said["piggybank/templates/NOTES.txt"]))
    web = said["piggybank/templates/web.yaml"]
    assert made == set(re.findall(r"secretKeyRef: {name: (piggybank-(?!postgres)\S+),", web))
    keys = set(re.findall(r"--from-literal=([\w-]+)=", readme))
    assert keys == {"username", "password", "valkey-password", "simulator-key"}


def test_notes_are_quiet_where_all_is_well() -> None:
    assert [line for line in notes({"phase": 3}, EVERYTHING).splitlines() if line.startswith("!")] == []


# Alerts and dashboards -----------------------------------------------------------------------------------------------


def test_promtool_takes_the_rules_as_they_are_rendered(tmp_path: Path) -> None:
    require("promtool")
    rule = one(documents({"metrics": {"prometheusRule": True}}), "PrometheusRule", "bank-piggybank")
    assert misshapen(rule) == []
    for name, groups, well in (("rules.yml", rule["spec"], True), ("broken.yml", _broken(rule["spec"]), False)):
        (tmp_path / name).write_text(yaml.safe_dump(groups))
        done = subprocess.run(["promtool", "check", "rules", str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == well, done.stdout + done.stderr
    assert rule["spec"] == yaml.safe_load(alerts.rules(matchers=f"namespace='{NAMESPACE}'"))


def test_two_releases_under_one_prometheus_do_not_hide_each_other(tmp_path: Path) -> None:
    require("promtool")
    rule = one(documents({"metrics": {"prometheusRule": True}}), "PrometheusRule", "bank-piggybank")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    names = ("app_phase_info", "app_phase")  # what the neighbour still answers
    there = [{"series": f'{name}{{namespace="neighbour"}}', "values": "1x20"} for name in names]
    gone = 'count by (alertname) (ALERTS{alertstate="firing"})'
    fired = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in ("NothingRecorded", "WebGone")]
    asked = [{"expr": gone, "eval_time": "15m", "exp_samples": fired}]
    tests = {"rule_files": ["rules.yml"], "tests": [{"interval": "1m", "input_series": there, "promql_expr_test": asked}]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    everybody = one(documents({"metrics": {"prometheusRule": True, "ruleMatchers": ""}}), "PrometheusRule", "bank-piggybank")
    assert "namespace=" not in json.dumps(everybody)
    (tmp_path / "everybody.yml").write_text(yaml.safe_dump(everybody["spec"]))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "everybody.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _broken(groups: Values) -> Values:
    broken: Values = json.loads(json.dumps(groups))
    broken["groups"][0]["rules"][0]["expr"] = "sum by (le"
    return broken


def test_dashboards_are_carried_whole() -> None:
    config = one(documents({"metrics": {"dashboards": True}}), "ConfigMap", "-dashboards")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"] == {path.name: path.read_text(encoding="utf-8") for path in sync.DASHBOARDS.glob("*.json")}


# Managed clouds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", ["eks", "gke"])
@in_every_phase
def test_managed_clouds_bring_their_own_stores(cloud: str, phase: int) -> None:
    found = documents({"phase": phase}, from_file(sync.CHART / f"values-{cloud}.yaml"))
    assert of_kind(found, "Cluster", "Pooler", "StatefulSet") == of_kind(found, "StatefulSet")
    assert [each["metadata"]["name"] for each in of_kind(found, "StatefulSet")] == ["bank-piggybank-simulator"]
    said = environment(found)
    assert said["PIGGYBANK_DURABILITY"] == "local"
    assert ("PIGGYBANK_REPLICA_URLS" in said) == (phase >= 2)
    assert [misshapen(each) for each in found if misshapen(each)] == []


@pytest.mark.parametrize("cloud", ["eks", "gke"])
def test_the_ports_of_a_clouds_addresses_are_open(cloud: str) -> None:
    text = (sync.CHART / f"values-{cloud}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    opened = {5432, *values["valkey"].get("externalPorts", [6379])}
    assert set(map(int, re.findall(r"^#.*?://\S+?:(\d+)[/?;\s]", text, re.MULTILINE))) <= opened
