"""A server that takes nothing but TLS, of another version than ours: Debian's own PostgreSQL, with a certificate."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec
import pytest
import trustme

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, dumps, move, processes, store_files, system_user
from piggybank.appliance.backups.making import client_program
from piggybank.appliance.processes import Program
from piggybank.db import migrate, revisions, roles
from piggybank.settings import Settings
from tests.conftest import require, run_apart

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
ADMIN = "postgres"


class Encrypted(NamedTuple):
    """A server with TLS: the address of a database on it, as its administrator."""

    port: int
    authority: Path

    def url(self, database: str, mode: str) -> str:
        ending = f"&sslrootcert={self.authority}" if mode.startswith("verify") else ""
        return f"postgresql://{ADMIN}:secret@localhost:{self.port}/{database}?sslmode={mode}{ending}"


@pytest.fixture
def encrypted(open_path: Path) -> Iterator[Encrypted]:
    require("PostgreSQL of Debian", bool(BINARIES))
    binaries, folder, user = BINARIES[-1], open_path / "debian", system_user.chosen()
    authority, port = trustme.CA(), store_files.free_ports(1)[0]
    authority.cert_pem.write_to_path(str(open_path / "authority.pem"))
    (open_path / "password").write_text("secret\n")
    system_user.make_folder(folder, user)
    system_user.run(
        user, str(binaries / "initdb"), f"--pgdata={folder}", f"--username={ADMIN}", "--encoding=UTF8", "--locale=C.UTF-8",
        "--auth=scram-sha-256", f"--pwfile={open_path / 'password'}",
    )  # fmt: skip
    certificate = authority.issue_cert("localhost")
    processes.write_file(folder / "server.key", certificate.private_key_pem.bytes().decode(), 0o600, user)
    processes.write_file(folder / "server.crt", certificate.cert_chain_pems[0].bytes().decode(), 0o600, user)
    processes.write_file(folder / "pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n", 0o600, user)
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    running = processes.start(
        Program(
            name="debian", argv=(str(binaries / "postgres"), "-D", str(folder), *words), run_dir=open_path,
            log=open_path / "debian.log", user=user, stop_signal=signal.SIGINT,
        )
    )  # fmt: skip
    try:
        made = Encrypted(port, open_path / "authority.pem")
        run_apart(lambda: _make_databases(made))
        yield made
    finally:
        running.stop()


async def _make_databases(server: Encrypted) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                connection = await asyncpg.connect(server.url(ADMIN, "require"))
                break
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.05)
    await connection.execute("CREATE ROLE application LOGIN PASSWORD 'secret'")
    for name in ("old", "new"):
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


async def test_rows_go_over_tls_and_the_certificate_is_looked_at(
    encrypted: Encrypted, settings: Settings, open_path: Path, tmp_path: Path
) -> None:
    old, new = encrypted.url("old", "verify-full"), encrypted.url("new", "verify-full")
    application = old.replace(f"//{ADMIN}:", "//application:")
    await migrate.upgrade(old, "application")
    await roles.limit_role(old, "application")
    data_dir = open_path / "bank"
    data_dir.mkdir()
    (data_dir / ".piggybank").touch()
    values = {"database_url": application, "owner_database_url": old, "cache_url": settings.cache_url, "queue_url": settings.queue_url}
    (data_dir / "piggybank.toml").write_text(settings_file.with_values("", values))
    here = settings_file.load(data_dir, {})

    plain = await move.look(here, encrypted.url("new", "disable"))
    assert "does not answer" in plain.problems[0].what
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    distrusted = await move.look(here, new.replace(str(encrypted.authority), str(stranger)))
    assert "certificate" in distrusted.problems[0].what
    assert "the connection is encrypted" in (await move.look(here, new)).facts

    older = await move.look(settings, new)
    assert "is older than the 18 here" in older.problems[0].what

    await asyncio.to_thread(move.move, here, new, "", lambda _: None, was_running=False)
    changed = settings_file.load(data_dir, {})
    connection = await asyncpg.connect(changed.database_url)
    try:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == revisions.head()
    finally:
        await connection.close()
    assert "sslmode=verify-full" in changed.database_url


async def test_a_database_over_tls_is_backed_up_before_an_upgrade(encrypted: Encrypted, settings: Settings, open_path: Path) -> None:
    url = encrypted.url("old", "verify-full")
    await migrate.upgrade(url, "application")
    (open_path / "bank").mkdir()
    here = msgspec.structs.replace(settings, data_dir=open_path / "bank", owner_database_url=url)
    made = await asyncio.to_thread(dumps.dump, here, "0.2.0")
    assert b"transactions" in made.read_bytes()


def test_a_program_without_tls_is_not_taken_by_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the image there is a link to it on the PATH."""
    require("pg_dump of Debian", Path("/usr/bin/pg_dump").exists())
    major = int(BINARIES[-1].parent.name)
    brought, url = binaries.client("pg_dump"), "postgresql://owner@db/bank"
    (tmp_path / "pg_dump").symlink_to(brought)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.CannotProceed, match="speaks no TLS") as refused:
        client_program("pg_dump", f"{url}?sslmode=verify-full", 18)
    assert "postgresql-client-18" in refused.value.details["do"]
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client_program("pg_dump", f"{url}?sslmode=verify-full", major) == Path("/usr/bin/pg_dump")
    assert client_program("pg_dump", url, 18) == brought
