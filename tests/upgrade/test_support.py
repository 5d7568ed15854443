"""A token, an address and a key, planted in the logs, the settings and the database, are nowhere in the support bundle."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from piggybank import ids
from piggybank import settings as settings_file
from piggybank.appliance import store_files
from piggybank.appliance.support import LOG_TAIL_BYTES, Redaction, parts, shown_settings
from piggybank.cli.support import elsewhere
from piggybank.identity.tokens import API_KEY_PREFIX, new_token
from piggybank.settings import Settings
from tests.appliance.bank import Bank
from tests.conftest import run_apart

EMAIL = "ada.lovelace@example.com"
KEY = "sk_0f9e8d7c6b5a49382716"
SHORT_KEY = "hunter22"  # nothing about it looks like a key
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----"


@pytest.fixture(scope="module")
def bank(open_folder: Path) -> Iterator[Bank]:
    made = Bank(open_folder / "support", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    made.data_dir.mkdir()
    (made.data_dir / "piggybank.toml").write_text(
        f'revio_key = "{KEY}"\nsmtp_url = "smtp://ada:{SHORT_KEY}@mail.example.com:587"\n'
        f'mail_from = "{EMAIL}"\nrevio_fallback_email = "{EMAIL}"\n'
    )
    made.do("up", "--detach")
    yield made
    made.run("down")


async def _plant(owner_url: str) -> None:
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute("INSERT INTO users (id, email, name) VALUES ($1, $2, $3)", ids.new_id(0), EMAIL, f"{KEY} {SHORT_KEY}")
        await connection.execute(f"COMMENT ON TABLE accounts IS '{KEY} of {EMAIL}'")
    finally:
        await connection.close()


def test_nothing_that_was_planted_is_in_it(bank: Bank, tmp_path: Path) -> None:
    token = new_token(API_KEY_PREFIX)
    run_apart(lambda: _plant(bank.stores.addresses()["owner_database_url"]))
    made = json.loads(bank.do("apikeys", "create", "--name", EMAIL, "--scopes", "all", "--json"))["token"]
    for name in ("web-1.log", "postgres.log", "supervisor.log"):
        with (bank.data_dir / "logs" / name).open("a") as log:
            log.write(f"{token} {EMAIL} key={KEY} {SHORT_KEY} Authorization: Bearer {token}\n{PEM}\nplanted here\n")
    path = tmp_path / "bundle.tar.gz"
    said = bank.do("support-bundle", "--yes", "--output", str(path))
    assert path.stat().st_mode & 0o077 == 0
    with tarfile.open(path) as bundle:
        texts = {member.name.partition("/")[2]: bundle.extractfile(member).read().decode() for member in bundle.getmembers()}  # type: ignore[union-attr]
    assert set(texts) >= {f"{name}.json" for name in ("versions", "settings", "hardware", "status", "doctor", "phase", "database")}
    assert all(name in said for name in texts)
    whole = "\n".join([*texts, *texts.values()])
    secrets = [value for value in bank.stores.__struct_fields__ if "password" in value or value == "simulator_key"]
    planted = [token, made, EMAIL, KEY, SHORT_KEY, "MIIEvQIBADANBg", *(getattr(bank.stores, name) for name in secrets)]
    assert [secret for secret in planted if secret in whole] == []
    # and it is of use
    assert "planted here" in texts["logs/web-1.log"]
    assert json.loads(texts["database.json"])["revision"]
    assert {table["relation"] for table in json.loads(texts["database.json"])["tables"]} >= {"accounts", "transactions"}
    assert json.loads(texts["settings.json"])["revio_key"] == "(set)"
    assert json.loads(texts["status.json"])["ok"]
    assert bank.run("support-bundle", "--yes", "--output", str(path)).returncode == 1  # another file's place is not taken


def test_a_link_among_the_logs_is_not_followed_and_keeps_nothing_else_out(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("somebody else's")
    link = bank.data_dir / "logs" / "planted.log"
    link.symlink_to(tmp_path / "elsewhere")
    try:
        found = {part.name: part.text for part in parts(settings_file.load(bank.data_dir, {}))}
    finally:
        link.unlink()
    assert "leads to somewhere else" in found["logs/planted.log"]
    assert "somebody else's" not in "".join(found.values())
    assert "logs/web-1.log" in found


def test_it_is_listed_and_not_written(bank: Bank) -> None:
    said = bank.ask("support-bundle", "--list")
    assert said.exit_code == 0, said.output
    assert "doctor.json" in said.output
    assert not list(Path.cwd().glob("piggybank-support-*"))


def test_ids_stay_and_keys_of_others_go(tmp_path: Path) -> None:
    redacted = Redaction(Settings(data_dir=tmp_path))
    known = "id 01a20640-e7fc-7ed8-999b-7d1939c9d4c9 at 2026-11-24T16:36:20.123456Z in no_synchronous_standby with valkey: 9.0.1"
    assert redacted(known) == known
    assert "AKIA" not in redacted("AKIAIOSFODNN7EXAMPLE0000 AKIAIOSFODNN7EXAMPLE+0000=")


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("POST https://hooks.example.com/services/T0A/B0B/sEcReT failed", "sEcReT"),
        ("GET https://ping.example.com/01a20640-e7fc-7ed8-999b-7d1939c9d4c9 ended with 502", "01a20640"),
        ("GET /v1/users?email=ada%40example.com", "ada"),
        ("DETAIL:  Failing row contains (7, Ada Lovelace, +49 170 1234567).", "Ada"),
        ("DETAIL:  Key (external_id)=(customer 4711) already exists.", "4711"),
        ("DETAIL:  Key (email, bucket)=(ada@example.com, 7) already exists.", "ada"),
        ("secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr"),
        ("read wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY from it", "wJalr"),
        ("host=db user=app password=hunter33 dbname=bank", "hunter33"),
        ("PIGGYBANK_EFT_CLIENT_SECRET='abc123' in the environment", "abc123"),
        ('{"password": "tiny1"}', "tiny1"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmVk", "eyJzdWIiOiIxIn0"),
        ("paid to DE89370400440532013000", "DE8937"),
    ],
)
def test_what_says_that_it_is_secret_goes(tmp_path: Path, line: str, secret: str) -> None:
    settings = Settings(
        data_dir=tmp_path,
        alert_webhook_url="https://hooks.example.com/services/T0A/B0B/sEcReT",
        alert_ping_url="https://ping.example.com/01a20640-e7fc-7ed8-999b-7d1939c9d4c9",
    )
    assert secret not in Redaction(settings)(line)


@pytest.mark.parametrize("letter", ["a", "7", "a/", "%"])
def test_a_long_word_is_read_in_no_time(tmp_path: Path, letter: str) -> None:
    word = letter * LOG_TAIL_BYTES  # it took hours
    assert len(Redaction(Settings(data_dir=tmp_path))(f"{word} {EMAIL}")) >= len(word)


def test_a_setting_is_shown_by_its_kind(tmp_path: Path) -> None:
    shown = shown_settings(Settings(data_dir=tmp_path, port=9000, revio_brand_id="brand", replica_urls=["postgresql://a:b@c/d"]))
    assert (shown["port"], shown["provider_mode"], shown["revio_brand_id"]) == (9000, "simulator", "(set)")
    assert shown["replica_urls"] == "(set)"


def test_in_a_container_it_says_how_the_file_comes_out_and_where_the_logs_are(tmp_path: Path) -> None:
    assert elsewhere(tmp_path / "x.tar.gz", tmp_path, None) == []
    copy, logs = elsewhere(tmp_path / "x.tar.gz", tmp_path, "compose")
    assert f"bin/compose cp web:{tmp_path}/x.tar.gz ." in copy
    assert "bin/compose logs" in logs
    assert "gone with it" in elsewhere(Path("/tmp/x.tar.gz"), tmp_path, "compose")[0]
