"""deploy/compose/postgres.sh itself, with the embedded programs in the place of the containers': a primary whose volume is gone."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from piggybank.appliance import binaries, store_files, system_user
from tests.appliance.bank import wait_until
from tests.conftest import ROOT

PARTS = ROOT / "deploy" / "compose"
STANDBYS = ("postgres-2", "postgres-3")
PASSWORDS = {f"{name}_PASSWORD": name.lower() for name in ("OWNER", "APPLICATION", "REPLICATION")}
END_S = 30


class Node:
    """One container: its volume, its place for temporary files, its port."""

    def __init__(self, folder: Path, name: str, port: int, primary_port: int) -> None:
        self.name, self.port = name, port
        self.user = system_user.chosen()
        self.volume, self.place = folder / "volumes" / name, folder / name
        for made in (self.volume, self.place):
            system_user.make_folder(made, self.user)
        self.data = self.volume / "18" / "piggybank"
        self.log = self.place / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.bin = binaries.postgres(folder, self.user)
        script = (PARTS / "postgres.sh").read_text(encoding="utf-8")
        instead = {
            "/var/lib/postgresql/": f"{self.volume}/",
            "/tmp": str(self.place),
            "/piggybank/": f"{self.place}/",
            "/from/": f"{folder}/volumes/",
            '-h "$PRIMARY"': f"-h 127.0.0.1 -p {primary_port}",
            '--host="$PRIMARY"': f"--host=127.0.0.1 --port={primary_port}",
            "host=$PRIMARY": f"host=127.0.0.1 port={primary_port}",
            '--host="$name"': "--host=127.0.0.1 --port=1",
            "--auth=peer": "--auth=trust",  # the programs run as another user than `postgres` here
            "$((limit / 4))MB": "32MB",
        }
        assert all(words in script for words in instead)
        script = re.sub("|".join(re.escape(words) for words in instead), lambda found: instead[found[0]], script)
        settings = (PARTS / "postgresql.conf").read_text(encoding="utf-8").replace("'/tmp'", f"'{self.place}'")
        files = {
            "postgres.sh": script,
            "postgresql.conf": settings.replace("port = 5432", f"port = {port}").replace("'*'", "'127.0.0.1'"),
            "pg_hba.conf": (PARTS / "pg_hba.conf").read_text(encoding="utf-8").replace("peer", "trust"),
        }
        for file, text in files.items():
            (self.place / file).write_text(text, encoding="utf-8")
            (self.place / file).chmod(0o644)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {
            **PASSWORDS,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "NODE": self.name,
            "STANDBYS": " ".join(STANDBYS),
            "MAX_CONNECTIONS": "40",
            "PGPORT": str(self.port),
        }
        with self.log.open("wb") as said:
            self.process = subprocess.Popen(
                ["/bin/sh", str(self.place / "postgres.sh"), *words],
                env=environment,
                cwd="/",
                stdout=said,
                stderr=said,
                start_new_session=True,
                **system_user.as_user(self.user),
            )
        return self.process

    def runs(self) -> bool:
        """Raises where it ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, self.said
        return self.healthy()

    def healthy(self) -> bool:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "NODE": self.name, "PGPORT": str(self.port)}
        command = ["/bin/sh", str(self.place / "postgres.sh"), "healthy"]
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, check=False).returncode == 0

    def ends(self, *words: str) -> int:
        started = self.start(*words)
        try:
            return started.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(END_S)
            pytest.fail(self.said)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(END_S)
                raise

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def sql(self, statement: str) -> str:
        words = ("--no-psqlrc", "-qAt", "-h", str(self.place), "-p", str(self.port), "-U", "postgres", "-d", "piggybank", "-c", statement)
        return system_user.run(self.user, str(self.bin / "psql"), *words).stdout.strip()


@pytest.fixture
def nodes(open_path: Path) -> Iterator[list[Node]]:
    ports = store_files.free_ports(3)
    made = [Node(open_path, name, port, ports[0]) for name, port in zip(("postgres-1", *STANDBYS), ports, strict=True)]
    try:
        yield made
    finally:
        for node in reversed(made):
            node.stop()


@pytest.mark.deep
def test_a_primary_that_was_made_anew_takes_nothing_from_its_standbys_and_one_of_them_is_promoted(nodes: list[Node]) -> None:
    primary, near, far = nodes
    for node in nodes:
        node.start()
        wait_until(node.runs)
    primary.sql("CREATE TABLE installation (epoch text); INSERT INTO installation VALUES ('before')")
    near.stop()
    primary.sql("CREATE TABLE kept AS SELECT 42 AS answer")  # one standby has it
    for node in (far, primary):
        node.stop()

    gone = primary.volume.with_name("gone")
    primary.volume.rename(gone)  # not mounted
    system_user.make_folder(primary.volume, primary.user)
    primary.start()
    wait_until(primary.runs)
    for node in (near, far):
        assert node.ends() == 1
        assert "is no copy of postgres-1, but of another database" in node.said
        assert (node.data / "standby.signal").exists()
    primary.stop()

    away = far.volume.rename(far.volume.with_name("away"))
    assert primary.ends("promote") == 1, "the other one may have what this one lacks"
    assert "postgres-3: an answered write may be there alone" in primary.said
    away.rename(far.volume)
    assert primary.ends("promote") == 0, primary.said
    assert "postgres-1 has what postgres-3" in primary.said
    for node in nodes:
        node.start()
        wait_until(node.runs)
        assert node.sql("SELECT answer FROM kept") == "42"
    assert primary.sql("SELECT epoch FROM installation") != "before", "caches know what may never have been"
