"""Rendered containers, executed on this machine: their exact command, arguments and environment, with real stores behind the Services.

What stands for Kubernetes: Secrets are filled, each Service is a port of loopback, a mounted folder is a folder here, and `piggybank`
is this checkout's. The operator's part of PostgreSQL is done by hand: roles and database as its source has them.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import msgspec

from piggybank.appliance import binaries, store_files
from tests.conftest import ROOT, run_apart
from tests.helm.rendering import NAMESPACE, RELEASE, Document, containers, of_kind, one, pod_templates
from tests.poolers import pooled
from tests.standbys import Replicated, replicated

NAME = f"{RELEASE}-piggybank"
JOB_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
POLL_S = 0.1
PASSWORDS = {"application": "applications0word", "owner": "owners0word", "valkey": "valkeys0word"}
SECRETS = {
    (f"{NAME}-secrets", "valkey-password"): PASSWORDS["valkey"],
    (f"{NAME}-secrets", "simulator-key"): "simulators0key",
    (f"{NAME}-application", "username"): store_files.APPLICATION_ROLE,
    (f"{NAME}-application", "password"): PASSWORDS["application"],
    (f"{NAME}-postgres-app", "uri"): f"postgresql://piggybank_owner:{PASSWORDS['owner']}@{NAME}-postgres-rw.{NAMESPACE}:5432/piggybank",
}
_REFERENCE = re.compile(r"\$\(([A-Za-z_]+)\)")


class Pods:
    """The release's containers, by name, once they run."""

    def __init__(self, found: list[Document], folder: Path) -> None:
        self.found = found
        self.folder = folder
        self.services: dict[str, int] = {}  # "host:port" of a Service -> port here
        self.listening: dict[str, int] = {}  # "part:port" of a container -> port here
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.executed: list[Document] = []
        folder.joinpath("bin").mkdir(parents=True)
        program = folder / "bin" / "piggybank"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m piggybank "$@"\n')
        program.chmod(0o755)

    def listen(self, part: str, container_port: int, service: str, service_port: int) -> int:
        """Give a container's port, and the Service before it, a port of this machine."""
        port = store_files.free_ports(1)[0]
        self.listening[f"{part}:{container_port}"] = self.services[f"{service}:{service_port}"] = port
        return port

    def environment(self, part: str, container: Document) -> dict[str, str]:
        """As the kubelet makes it, with loopback for the Services."""
        given: dict[str, str] = {}
        for variable in container["env"]:
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                value = SECRETS[source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]]
            elif "fieldRef" in source:
                value = {"status.podIP": "127.0.0.1"}[source["fieldRef"]["fieldPath"]]
            else:
                value = _REFERENCE.sub(lambda match: given[match[1]], str(variable["value"]))
            given[variable["name"]] = value
        made = {name: self.here(part, value) for name, value in given.items()}
        for name in ("", "SIMULATOR_", "WORKER_METRICS_"):
            host, port = f"PIGGYBANK_{name}LISTEN", f"PIGGYBANK_{name}PORT"
            if host in given:
                at = f"{given[host]}:{given[port]}"
                here = self.listening.get(f"{part}:{given[port]}") if given[host] == "0.0.0.0" else self.services[at]
                made |= {host: "127.0.0.1", port: str(here)}
        return made

    def here(self, part: str, text: str) -> str:
        """Addresses and folders of this machine in the place of the cluster's."""
        for at, port in self.services.items():
            text = text.replace(at, f"127.0.0.1:{port}")
        return text.replace("/var/lib/piggybank", str(self.folder / part / "data"))

    def start(self, part: str, container: Document) -> subprocess.Popen[bytes]:
        """Start it; its output goes to a log."""
        words = [self.here(part, str(word)) for word in [*container["command"], *container.get("args", [])]]
        (self.folder / part / "data").mkdir(parents=True, exist_ok=True)
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        with self.log(part, container).open("ab") as log:
            process = subprocess.Popen(
                words,
                env={"PATH": path, **self.environment(part, container)},
                executable=str(self.folder / "bin" / words[0]) if words[0] == "piggybank" else None,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.running[f"{part} {container['name']}"] = process
        self.executed.append(container)
        return process

    def not_executed(self) -> list[str]:
        """Containers of the chart's own pods that nobody has started: as they are rendered, not as a test changed them."""
        return [
            f"{name}: {container['name']}"
            for name, pod in pod_templates(self.found)
            for container in containers(pod)
            if not any(container is each for each in self.executed)
        ]

    def run(self, part: str, container: Document) -> str:
        """Run it to its end, which must be a good one; what it said."""
        process = self.start(part, container)
        code = process.wait(JOB_TIMEOUT_S)
        said = self.log(part, container).read_text()
        assert code == 0, f"{part} {container['name']} ended with {code}:\n{said[-4_000:]}"
        return said

    def log(self, part: str, container: Document) -> Path:
        (self.folder / part).mkdir(parents=True, exist_ok=True)
        return self.folder / part / f"{container['name']}.log"

    def wait_started(self, part: str, container: Document) -> None:
        """Ask its startup probe until it is content, then each other one once."""
        probe = container["startupProbe"]
        end = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while not self.probe(part, container, "startupProbe"):
            process = self.running[f"{part} {container['name']}"]
            assert process.poll() is None and time.monotonic() < end, self.log(part, container).read_text()[-4_000:]  # noqa: PT018
            time.sleep(POLL_S)

    def wait_ready(self, part: str, container: Document) -> None:
        end = time.monotonic() + JOB_TIMEOUT_S
        while not self.probe(part, container, "readinessProbe"):
            assert time.monotonic() < end, self.log(part, container).read_text()[-4_000:]
            time.sleep(POLL_S)

    def probe(self, part: str, container: Document, kind: str) -> bool:
        """Ask it as the kubelet would."""
        asked = container[kind]["httpGet"]
        number = next(port["containerPort"] for port in container["ports"] if port["name"] == asked["port"])
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.listening[f'{part}:{number}']}{asked['path']}", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return 200 <= answer.status_code < 400

    def said(self, part: str, container: Document, words: str) -> None:
        """Wait until its log has these words."""
        end = time.monotonic() + JOB_TIMEOUT_S
        while words not in (log := self.log(part, container).read_text()):
            assert time.monotonic() < end, log[-4_000:]
            time.sleep(POLL_S)

    def terminate(self, part: str, container: Document) -> int:
        """SIGTERM, as the kubelet does; the exit code."""
        process = self.running.pop(f"{part} {container['name']}")
        process.send_signal(signal.SIGTERM)
        return process.wait(STOP_TIMEOUT_S)

    def kill_all(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def template(found: list[Document], kind: str, name: str) -> Document:
    """The spec of a pod."""
    document = one(found, kind, name)
    spec: Document = document["spec"] if kind == "Pod" else document["spec"]["template"]["spec"]
    return spec


@contextmanager
def release(found: list[Document], folder: Path) -> Iterator[Pods]:
    """Everything that the release's own pods need: PostgreSQL as the operator makes it, and the rendered Valkeys."""
    pods = Pods(found, folder / "pods")
    cluster = one(found, "Cluster", "-postgres")["spec"]
    with ExitStack() as stack:
        stack.callback(pods.kill_all)
        servers = stack.enter_context(
            replicated(folder / "postgres", cluster["instances"] - 1, synchronous="synchronous" in cluster["postgresql"])
        )
        run_apart(lambda: _as_the_operator_does(servers, cluster))
        primary = servers.embedded.secrets.postgres_port
        here = {"rw": primary, f"rw.{NAMESPACE}": primary, "instance-1": primary}
        here |= {f"instance-{number}": standby.port for number, standby in enumerate(servers.standbys, 2)}
        pods.services |= {f"{NAME}-postgres-{name}:5432": port for name, port in here.items()}
        for pooler in [each for each in of_kind(found, "Pooler") if each["spec"]["type"] == "rw"]:
            limits = pooler["spec"]["pgbouncer"]["parameters"]
            url = f"postgresql://{store_files.APPLICATION_ROLE}:{PASSWORDS['application']}@127.0.0.1:{primary}/piggybank"
            settings = msgspec.structs.replace(servers.settings, database_url=url)
            clients, size = int(limits["max_client_conn"]), int(limits["default_pool_size"])
            through = stack.enter_context(pooled(settings, folder / "pooler", clients=clients, servers=size))
            pods.services[f"{pooler['metadata']['name']}:5432"] = urlsplit(through.pooler_url).port or 0
        pods.listen("web", 8080, f"{NAME}-web", 80)
        pods.listen("simulator", 8081, f"{NAME}-simulator", 8081)
        [pods.listening["worker:8082"]] = store_files.free_ports(1)
        for document in of_kind(found, "StatefulSet"):
            if document["metadata"]["name"] != f"{NAME}-simulator":
                _start_valkeys(pods, document)
        yield pods


async def _as_the_operator_does(servers: Replicated, cluster: Document) -> None:
    """CloudNativePG's initdb: the owner, the SQL after it as the superuser, the database; then the managed roles with their passwords."""
    admin = await asyncpg.connect(servers.embedded.secrets.admin_url.rpartition("/")[0] + "/postgres")
    try:
        for name in (store_files.APPLICATION_ROLE, store_files.OWNER_ROLE):  # the embedded server has made its own
            await admin.execute(f"ALTER ROLE {name} RENAME TO unused_{name}")
        await admin.execute(f"ALTER DATABASE {store_files.DATABASE} RENAME TO unused")
        bootstrap = cluster["bootstrap"]["initdb"]
        await admin.execute(f"CREATE ROLE {bootstrap['owner']} LOGIN PASSWORD '{PASSWORDS['owner']}'")
        for statement in bootstrap["postInitSQL"]:
            await admin.execute(statement)
        await admin.execute(f"CREATE DATABASE {bootstrap['database']} OWNER {bootstrap['owner']}")
        for role in cluster["managed"]["roles"]:
            password = SECRETS[role["passwordSecret"]["name"], "password"]
            await admin.execute(f"ALTER ROLE {role['name']} LOGIN PASSWORD '{password}'")
            for group in role["inRoles"]:
                await admin.execute(f"GRANT {group} TO {role['name']}")
    finally:
        await admin.close()


def _start_valkeys(pods: Pods, document: Document) -> None:
    """The rendered start script and configuration; only ports and folders are this machine's."""
    name, spec = document["metadata"]["name"], document["spec"]
    part = name.removeprefix(f"{NAME}-")
    [container] = spec["template"]["spec"]["containers"]
    data = one(pods.found, "ConfigMap", "-valkey")["data"]
    ports = _bus_ports(spec["replicas"])
    for number, port in enumerate(ports):
        place = pods.folder / f"{part}-{number}"
        mounts = {mount["mountPath"]: place / mount["name"] for mount in container["volumeMounts"]}
        for folder in mounts.values():
            folder.mkdir(parents=True)

        def here(text: str, mounts: dict[str, Path] = mounts) -> str:
            for path, folder in mounts.items():
                text = re.sub(rf"(?<![\w/]){path}\b", str(folder), text)
            return text

        for file, text in data.items():
            extra = "" if file.endswith(".sh") else f"port {port}\nbind 127.0.0.1\n"
            (mounts["/etc/valkey"] / file).write_text(here(text) + extra)
        server = pods.folder / "bin" / "valkey-server"
        if not server.exists():
            server.symlink_to(binaries.valkey(pods.folder, None))
        started: dict[str, Any] = {**container, "command": [here(word) for word in container["command"]]}
        pods.start(f"{part}-{number}", {**started, "name": f"valkey-{port}"})
        pods.executed.append(container)
        pods.services[f"{name}-{number}.{name}:6379" if spec["replicas"] > 1 else f"{name}:6379"] = port


def _bus_ports(count: int) -> list[int]:
    """Free ports whose bus port, 10,000 above, is one, too."""
    found: list[int] = []
    while len(found) < count:
        port = store_files.free_ports(1, found)[0]
        if port + 10_000 < 65_536 and store_files.is_free(port + 10_000):
            found.append(port)
    return found
