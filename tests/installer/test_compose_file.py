"""compose.yaml and the files of its phases, without an engine: counts are the table's, and everybody is as confined as the file promises.

`make test-images` has the engine itself read and run the same file.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from installer import compose
from installer.options import BUILT_PHASES, ENV_NAMES, Options, parse, read_env
from piggybank import settings
from piggybank.appliance import pooler, store_files
from piggybank.appliance.change import COMMANDS
from piggybank.capacity import phases
from piggybank.settings import Settings

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "deploy" / "compose"
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])((?:[^{}]|\$\{[^{}]*\})*))?\}")
STORES = [name for name in SERVICES if name.startswith(("postgres", "cache", "cluster", "queue", "pgbouncer"))]
EVERY_PHASE = pytest.mark.parametrize("number", BUILT_PHASES)


def filled(text: str, values: dict[str, str]) -> str:
    """As compose fills in: `${NAME:-otherwise}`, `${NAME:?why}`."""

    def one(match: re.Match[str]) -> str:
        if values.get(match[1]):
            return values[match[1]]
        assert match[2] == "-", f"{match[1]} is nowhere set"
        return filled(match[3], values)

    return VARIABLE.sub(one, text)


def options(tmp_path: Path, *flags: str) -> Options:
    return parse(["--docker", "--data-dir", str(tmp_path), *flags], {}, "python3")


def values_of(number: int, tmp_path: Path) -> dict[str, str]:
    """What compose knows in a phase: `.env`, then the phase's file."""
    own = read_env(PARTS / "example.env") | dict.fromkeys(compose.SECRETS, "0123456789abcdef")
    return own | {name: filled(value, own) for name, value in compose.phase_values(number, options(tmp_path)).items()}


def environment(service: str, values: dict[str, str]) -> dict[str, str]:
    return {
        name: "" if value == "${WEB_TRUSTS:-}" else filled(str(value), values)
        for name, value in SERVICES[service].get("environment", {}).items()
    }


def of_phase(values: dict[str, str]) -> set[str]:
    active = set(values["COMPOSE_PROFILES"].split(","))
    return {name for name, service in SERVICES.items() if active & set(service["profiles"])}


@EVERY_PHASE
def test_counts_and_sizes_are_those_of_the_table(number: int, tmp_path: Path) -> None:
    phase, values = phases.of(number), values_of(number, tmp_path)
    there = of_phase(values)
    assert values["COMPOSE_PROFILES"].split(",")[0] == phase.profile
    assert (int(filled(SERVICES["web"]["scale"], values)), int(filled(SERVICES["worker"]["scale"], values))) == (phase.web, phase.worker)
    assert len([name for name in there if name.startswith("postgres-")]) == 1 + phase.replicas
    assert len(values.get("STANDBYS", "").split()) == phase.replicas
    assert ("pgbouncer" in there) == phase.pooled
    if phase.pooled:
        assert (int(values["POOLER_CLIENTS"]), int(values["POOLER_CONNECTIONS"])) == (phase.pooler_clients, phase.pooler_connections)
    nodes = [name for name in there if re.fullmatch(r"cache(-\d)?", name)]
    assert len(nodes) == phase.cache_masters + phase.cache_replicas
    assert {f"{name}:6379" for name in nodes} == set(values["CACHE_NODES"].split(","))
    queue = 0 if phase.own_queue else int(values["QUEUE_MIB"])
    assert len(nodes) * int(values["CACHE_MIB"]) + queue == phase.cache_memory_mib
    assert ("months" in there) == phase.partitions
    assert SERVICES["postgres-1"]["mem_limit"] == "${POSTGRES_MEMORY}"
    assert values["POSTGRES_MEMORY"] == f"{phase.postgres_memory_mib}m"
    assert int(values["MAX_CONNECTIONS"]) >= max(phase.max_connections, phase.replica_max_connections)
    for kind in ("CACHE", "QUEUE"):  # a Valkey that is full is not killed
        assert int(values[f"{kind}_LIMIT"].rstrip("m")) >= 1.25 * int(values[f"{kind}_MIB"])


@EVERY_PHASE
def test_the_containers_get_settings_that_load_and_are_the_phases(number: int, tmp_path: Path) -> None:
    phase, values = phases.of(number), values_of(number, tmp_path)
    for service in ("web", "worker", "migrate", "simulator", "backup", "cli"):
        told = settings.load(tmp_path, environment(service, values))
        assert (told.phase, told.web_processes, told.worker_processes, told.pool_connections) == (
            number,
            phase.web,
            phase.worker,
            phase.pool,
        )
        assert len(told.read_replicas) == phase.replicas
        assert told.pooling == ("transaction" if phase.pooled else "none")
        assert settings.embedded_stores(tmp_path, environment(service, values)) == ()


@EVERY_PHASE
def test_who_is_waited_for_is_there_or_may_be_missing(number: int, tmp_path: Path) -> None:
    there = of_phase(values_of(number, tmp_path))
    for name in there:
        for other, how in (SERVICES[name].get("depends_on") or {}).items():
            assert other in there or how.get("required") is False, f"{name} waits for {other}"
            condition = how["condition"]
            assert condition != "service_healthy" or SERVICES[other]["healthcheck"] != {"disable": True}, f"{other} has no check"


def test_overrides_win_over_the_phase(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WEB=3\n", encoding="utf-8")
    for number in BUILT_PHASES:
        assert compose.phase_values(number, options(tmp_path))["WEB"] == "3"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["profiles"]
    assert service["restart"] == (
        "no"
        if name in ("cli", "promote")
        else "on-failure:5"
        if name == "migrate"
        else "on-failure"
        if name == "months"
        else "unless-stopped"
    )
    assert service["image"].startswith("${PIGGYBANK_IMAGE") or (
        service.get("user") and str(service["user"]).split(":")[0] not in ("root", "0")
    )
    assert "privileged" not in service
    assert "network_mode" not in service


def test_stores_are_reached_from_within_only() -> None:
    assert FILE["networks"]["stores"]["internal"] is True
    for name, service in SERVICES.items():
        if name.startswith(("postgres", "cache", "queue", "pgbouncer")):
            assert service["networks"] == ["stores"], name
            assert "ports" not in service, name
    published = {port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])}
    assert all(place.startswith(("127.0.0.1:", "${LISTEN:-127.0.0.1}:")) for place in published), published


def test_no_secret_is_in_the_files() -> None:
    example = read_env(PARTS / "example.env")
    assert {name: example[name] for name in compose.SECRETS} == dict.fromkeys(compose.SECRETS, "")
    for secret in compose.SECRETS:
        assert f"${{{secret}:?}}" in TEXT, f"{secret} may be forgotten"
    known = {*example, *ENV_NAMES.values(), "TLS_FOLDER", "DOOR_TLS", "DOOR_TRUSTS", "WEB_TRUSTS", "SIMULATOR_URL"}
    known |= {name for number in BUILT_PHASES for name in read_env(PARTS / f"phase-{number}.env")}
    assert {match[1] for match in VARIABLE.finditer(TEXT)} <= known


def test_each_has_the_passwords_that_it_needs(tmp_path: Path) -> None:
    values = values_of(3, tmp_path) | {name: name.lower() for name in compose.SECRETS}
    has = {name: {secret for secret in compose.SECRETS if secret.lower() in str(environment(name, values))} for name in STORES}
    assert has["postgres-1"] == {"OWNER_PASSWORD", "APPLICATION_PASSWORD", "REPLICATION_PASSWORD"}
    assert has["postgres-2"] == has["postgres-3"] == {"REPLICATION_PASSWORD"}
    assert has["pgbouncer"] == {"APPLICATION_PASSWORD"}
    assert has["queue"] == {"QUEUE_PASSWORD"}
    assert all(has[name] == {"CACHE_PASSWORD"} for name in STORES if name.startswith(("cache", "cluster")))
    own = {name for name in SERVICES if "owner_password" in str(environment(name, values))}
    assert own == {"postgres-1", "worker", "migrate", "months", "backup", "cli"}  # nobody who is reached from outside


@EVERY_PHASE
def test_who_watches_may_stay_away_and_backups_are_always_made(number: int, tmp_path: Path) -> None:
    watching = {"prometheus", "grafana"}
    assert of_phase(values_of(number, tmp_path)) >= watching | {"backup"}
    without = values_of(number, tmp_path) | {"WATCH": "none"}
    text = read_env(PARTS / f"phase-{number}.env")["COMPOSE_PROFILES"]
    assert not of_phase(without | {"COMPOSE_PROFILES": filled(text, without)}) & watching


def test_prometheus_reaches_what_it_scrapes(tmp_path: Path) -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    asked = {name: found["port"] for job in jobs for found in job["dns_sd_configs"] for name in found["names"]}
    assert asked.keys() == {"web", "worker"}
    for name in asked:
        # by that network alone: it is the one that the web takes for near
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"]) == {"door"}
    web, worker = (settings.load(tmp_path, environment(name, values_of(0, tmp_path))) for name in ("web", "worker"))
    assert (web.port, worker.worker_metrics_port) == (asked["web"], asked["worker"])
    assert worker.worker_metrics_listen == "0.0.0.0"
    assert values_of(0, tmp_path)["DOOR_SUBNET"] in web.metrics_networks


def test_images_are_chosen_in_env() -> None:
    example = read_env(PARTS / "example.env")
    images = {match[1]: match[3] for each in SERVICES.values() if (match := VARIABLE.fullmatch(each["image"])) is not None}
    assert images == {name: value for name, value in example.items() if name.endswith("_IMAGE")}


def test_what_is_mounted_is_there() -> None:
    volumes = {volume for service in SERVICES.values() for volume in service.get("volumes", [])}
    for volume in volumes:
        source = re.sub(r"^\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
        assert (ROOT / source).exists() if source.startswith("./") else source in FILE["volumes"], volume


def test_settings_of_containers_are_known() -> None:
    fields = {f"PIGGYBANK_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}
    for name, service in SERVICES.items():
        told = {variable for variable in service.get("environment", {}) if variable.startswith("PIGGYBANK_")}
        assert told <= fields, name


def test_postgresql_is_configured_as_the_embedded_one() -> None:
    server = store_files.Server(name="x", port=5432, shared_buffers_mib=1, effective_cache_mib=1, max_connections=1, keeps_wal="512MB")
    line = re.compile(r"^(\w+) = '?(.*?)'?$", re.MULTILINE)
    embedded = dict(line.findall(store_files.postgres_conf(server)))
    here = dict(line.findall((PARTS / "postgresql.conf").read_text(encoding="utf-8")))
    by_server = {
        "cluster_name",
        "max_connections",
        "shared_buffers",
        "effective_cache_size",
        "maintenance_work_mem",
        "synchronous_standby_names",
    }
    by_supervisor = {"archive_mode", "archive_command", "archive_timeout"}  # it ships the log; containers are backed up by dumps
    assert embedded.keys() - here.keys() == by_server | by_supervisor
    differ = {name for name in here if here[name] != embedded[name]}
    assert differ == {"listen_addresses", "unix_socket_directories"}
    script = (PARTS / "postgres.sh").read_text(encoding="utf-8")
    for name in by_server - {"synchronous_standby_names"}:
        assert f'"{name}=' in script


def test_pgbouncer_is_configured_as_the_embedded_one() -> None:
    target = pooler.Target(host="postgres-1", port=5432, role="piggybank_app", password="x", listen_port=6432)
    line = re.compile(r"^(\w+) =\s*(.*)$", re.MULTILINE)
    embedded = dict(line.findall(pooler.ini(target, Path("/tmp"))))
    here = dict(line.findall((PARTS / "pgbouncer.sh").read_text(encoding="utf-8")))
    assert here.keys() == embedded.keys()
    own = {"listen_addr", "max_client_conn", "default_pool_size", "max_user_connections"}
    assert {name for name in here if here[name] != embedded[name]} == own


def test_what_phase_apply_prints_is_a_command_of_the_installer(tmp_path: Path) -> None:
    for number in BUILT_PHASES:
        program, *flags = COMMANDS["compose"].format(number=number, profile="x").split()
        assert (ROOT / program).is_file()
        asked = parse([*flags, "--data-dir", str(tmp_path)], {}, "python3")
        assert (asked.docker, asked.phase) == (True, number)
