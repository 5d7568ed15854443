"""A compose project to throw away, and a client that pays into it: the same key again until it has an answer."""

import json
import secrets
import subprocess
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx

from installer.compose import SECRETS
from tests.installer.test_look import a_free_port

ROOT = Path(__file__).parents[2]
UP_TIMEOUT_S = 900
COMMAND_TIMEOUT_S = 300
ANSWER_WITHIN_S = 300
SCOPES = "users:write,accounts:write,accounts:read,ledger:write"
# as many processes as a machine of two cores runs beside its stores; everything else is the phase's
FEWER = {"WEB": "2", "WORKER": "1", "CACHE_MIB": "64", "CACHE_LIMIT": "128m", "POSTGRES_MEMORY": "1024m"}


class Client:
    """Of one installation's API. `unanswered`: how many tries were refused or cut off, `most_tries`: how many one payment took."""

    def __init__(self, port: int) -> None:
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self.unanswered = 0
        self.most_tries = 0

    def cli(self, *words: str) -> str:
        """The command of this installation; what it printed."""
        raise NotImplementedError

    def account(self) -> str:
        """An account to pay into; the client is signed in from now on."""
        token = self.cli("apikeys", "create", "--name", "test", "--scopes", SCOPES, "--token-only").strip()
        self.http.headers["Authorization"] = f"Bearer {token}"
        user = self.post("/v1/users", "user", {"external_id": "customer-2"})["id"]
        return str(self.post("/v1/accounts", "account", {"user_id": user, "currency": "ZAR"})["id"])

    def post(self, path: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
        """Until it is answered with 2xx: what may be tried again is, with its key."""
        until = time.monotonic() + ANSWER_WITHIN_S
        tries = 0
        while True:
            tries += 1
            self.most_tries = max(self.most_tries, tries)
            try:
                answer = self.http.post(path, json=body, headers={"Idempotency-Key": key})
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
                assert answer.status_code >= 500 or answer.status_code == 409, answer.text
            except httpx.TransportError:
                pass
            self.unanswered += 1
            assert time.monotonic() < until, f"{path} {key} is not answered"
            time.sleep(0.2)

    def balance(self, account: str) -> int:
        found = self.http.get(f"/v1/accounts/{account}/balance", params={"min_version": 0})
        assert found.status_code == 200, found.text
        return int(found.json()["balance"])


class Installed(Client):
    """What `install.sh --docker` made."""

    def __init__(self, port: int, command: str) -> None:
        super().__init__(port)
        self.command = command

    def cli(self, *words: str) -> str:
        done = subprocess.run([self.command, *words], capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout


class Project(Client):
    """`compose.yaml` as it is, with secrets of its own. `missing`: images that nobody could give."""

    def __init__(self, folder: Path, image: str, missing: set[str]) -> None:
        self.name = f"pbtest-{secrets.token_hex(3)}"
        self.port = a_free_port()
        second, third = secrets.randbelow(64) + 64, secrets.randbelow(254)
        self.ports = {name: a_free_port() for name in ("SIMULATOR_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
        self.running: list[str] = []
        self.env = folder / ".env"
        self.missing = missing
        values = {
            "COMPOSE_PROJECT_NAME": self.name,
            "PIGGYBANK_IMAGE": image,
            "PORT": self.port,
            "PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "DOOR_SUBNET": f"10.{second}.{third}.0/24",
            "EDGE_SUBNET": f"10.{second}.{third + 1}.0/24",
            **self.ports,
            **{name: secrets.token_hex(24) for name in SECRETS},
            **FEWER,
        }
        self.env.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
        self.phase = 0
        super().__init__(self.port)

    def compose(self, *words: str, said: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        command = ["docker", "compose", "--project-directory", str(ROOT), "--env-file", str(self.env)]
        command += ["--env-file", str(ROOT / f"deploy/compose/phase-{self.phase}.env"), *words]
        done = subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=ROOT)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-3000:]}"
        return done.stdout

    def up(self, phase: int) -> None:
        self.phase = phase
        services: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))["services"]
        wanted = [name for name, service in services.items() if service["image"] not in self.missing]
        self.compose("up", "--detach", "--no-build", *wanted, timeout_s=UP_TIMEOUT_S)
        self.running = wanted
        self.wait_ready()

    def wait_ready(self) -> None:
        until = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                if self.http.get("/health/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < until, self.compose("ps", "--all")
            time.sleep(1)

    def cli(self, *words: str, said: str = "") -> str:
        return self.compose("--progress", "quiet", "run", "--rm", "--no-deps", "-T", "cli", *words, said=said)

    def container(self, service: str, number: int = 1) -> str:
        return f"{self.name}-{service}-{number}"

    def destroy(self) -> None:
        self.http.close()
        for phase in (3, self.phase):
            self.phase = phase
            self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")


class Payer(Thread):
    """Pays one unit after the other into an account until it is told to stop."""

    def __init__(self, client: Client, account: str) -> None:
        super().__init__(name="payer", daemon=True)
        self.client, self.account_id = client, account
        self.paid = 0
        self.told_to_stop = Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.told_to_stop.is_set():
                path = f"/v1/accounts/{self.account_id}/deposits"
                self.client.post(path, f"pay-{self.paid}", {"amount": 1, "method": "direct"})
                self.paid += 1
        except BaseException as cause:
            self.failure = cause

    def stop(self) -> int:
        """How many were answered."""
        self.told_to_stop.set()
        self.join()
        if self.failure is not None:
            raise self.failure
        return self.paid
