"""New passwords while people pay: nobody is refused, the old ones open nothing afterwards, and new ones for an old database are refused."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
from redis import Redis
from redis.exceptions import RedisError

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import rotation, store_files
from piggybank.appliance.embedded import Embedded
from piggybank.db import roles
from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES, require, run_apart
from tests.phases.load import Load

CLIENTS = 4
PAUSE_S = 0.02
STEADY_S = 1.0


@pytest.fixture(scope="module")
def bank(open_folder: Path) -> Iterator[Bank]:
    made = Bank(open_folder / "secrets", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    made.do("up", "--detach")
    yield made
    made.run("down")


async def _opens(url: str) -> bool:
    try:
        await (await asyncpg.connect(url)).close()
    except asyncpg.InvalidPasswordError:
        return False
    return True


def _takes(url: str) -> bool:
    with Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


async def _written(url: str) -> set[tuple[str, str]]:
    connection = await asyncpg.connect(url)
    try:
        return {tuple(row) for row in await connection.fetch("SELECT actor, target FROM audit_log WHERE action = 'secret.rotate'")}
    finally:
        await connection.close()


def rotate_under_load(bank: Bank) -> None:
    async def run() -> None:
        token = json.loads(bank.do("apikeys", "create", "--name", "load", "--scopes", ALL_SCOPES, "--json"))["token"]
        load = Load(bank.url, token, CLIENTS, PAUSE_S)
        try:
            await load.open_accounts()
            running = load.start()
            try:
                await asyncio.sleep(STEADY_S)
                await asyncio.to_thread(bank.do, "secrets", "rotate")
                await asyncio.sleep(STEADY_S)
            finally:
                load.stop()
                await running
            await load.compare()
            print(f"{len(load.done)} answers, tried again: {dict(load.retries)}")
        finally:
            await load.close()

    before = bank.stores
    addresses = settings_file.load(bank.data_dir, {})
    run_apart(run)
    after = bank.stores
    old, new = before.addresses(), after.addresses()
    for name in ("admin_password", "owner_password", "application_password", "replication_password", "cache_password", "queue_password"):
        assert getattr(before, name) != getattr(after, name), name
    for name in ("database_url", "owner_database_url"):
        assert not run_apart(lambda url=old[name]: _opens(url))  # type: ignore[misc]
        assert run_apart(lambda url=new[name]: _opens(url))  # type: ignore[misc]
    assert run_apart(lambda: _written(new["owner_database_url"])) >= {("cli", f"secret:{name}") for name in ("database", "cache", "queue")}
    if not addresses.cache_url.startswith("redis+cluster"):
        assert (_takes(old["cache_url"]), _takes(new["cache_url"])) == (False, True)
    assert (_takes(old["queue_url"]), _takes(new["queue_url"])) == (False, True)
    assert json.loads(bank.do("status", "--json"))["ok"]


@pytest.mark.deep
def test_no_request_fails_and_a_restart_finds_the_new_ones(bank: Bank) -> None:
    rotate_under_load(bank)
    logs = "".join(path.read_text(errors="replace") for path in (bank.data_dir / "logs").glob("*.log"))
    assert bank.stores.application_password not in logs
    bank.do("down")
    bank.do("up", "--detach")
    assert json.loads(bank.do("status", "--json"))["ok"]
    bank.do("verify")


@pytest.mark.deep
def test_with_replicas_a_pooler_and_a_cluster(bank: Bank) -> None:
    require("pgbouncer")
    bank.do("phase", "apply", "3")
    rotate_under_load(bank)
    assert json.loads(bank.do("phase", "show", "--observed", "--json"))["differences"] == []


@pytest.mark.deep
def test_the_old_callback_is_good_until_it_is_dropped(bank: Bank) -> None:
    def good() -> list[str]:
        return settings_file.load(bank.data_dir, {}).eft_callback_secrets

    bank.do("secrets", "rotate", "eft_callback_secret")
    [first] = good()
    bank.do("secrets", "rotate", "eft_callback_secret")
    assert good()[1] == first
    assert bank.run("secrets", "rotate", "eft_callback_secret").returncode == 1
    bank.do("secrets", "rotate", "eft_callback_secret", "--drop-old")
    assert first not in good()


def test_an_exchange_that_was_killed_is_settled_by_the_next_start(open_path: Path) -> None:
    stores = Embedded(open_path / "bank")
    stores.start()
    try:
        old = stores.secrets
        for told in (False, True):
            fresh = store_files.load_secrets(stores.dir, stores.user)
            fresh = type(fresh)(**{name: getattr(fresh, name) for name in fresh.__struct_fields__} | {"admin_password": f"fresh{told}"})
            store_files.save_next(stores.dir, fresh, stores.user)
            if told:
                stores.postgres.set_passwords(fresh)
            again = Embedded(open_path / "bank")
            again.start()
            assert again.secrets.admin_password == (f"fresh{told}" if told else old.admin_password)
            assert store_files.take_next(stores.dir) is None
            stores = again
        known = stores.secrets
        store_files.save_next(stores.dir, msgspec.structs.replace(known, admin_password="next"), stores.user)
        stores.postgres.secrets = stores.secrets = msgspec.structs.replace(known, admin_password="neither")
        with pytest.raises(errors.StoreFailed, match="neither"):
            stores.settle_passwords()
        assert store_files.take_next(stores.dir) is not None  # whoever looks into it has both
        assert store_files.load_secrets(stores.dir, stores.user) == known
        stores.postgres.secrets = stores.secrets = known
    finally:
        stores.stop()


class Killed(BaseException):
    """Nobody catches it, as nobody catches kill -9."""


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_rotation_that_was_killed_while_processes_moved_over_is_made_good_by_the_next_one(open_path: Path, at: int) -> None:
    """While they are asked to begin anew, to sign in as the stand-in, and to sign in as themselves again."""
    stores = Embedded(open_path / "bank")
    stores.start()
    rolls = 0

    def roll() -> None:
        nonlocal rolls
        rolls += 1
        if rolls == at:
            raise Killed

    def url() -> str:
        return settings_file.load(stores.data_dir, {}).database_url

    try:
        first = url()
        with pytest.raises(Killed):
            rotation.rotate(stores, rotation.DATABASE, roll, lambda _: None)
        assert run_apart(lambda: _opens(url()))  # as whatever is written down now
        left = "1" if at > 1 else ""
        assert stores.psql(f"SELECT 1 FROM pg_roles WHERE rolname = '{rotation.STAND_IN}'").strip() == left
        stores = Embedded(open_path / "bank")
        stores.start()  # the next start
        assert roles.role_of(url()) == store_files.APPLICATION_ROLE
        assert run_apart(lambda: _opens(url()))
        rotation.rotate(stores, rotation.DATABASE, lambda: None, lambda _: None)
        assert not run_apart(lambda: _opens(first))
        assert run_apart(lambda: _opens(url()))
        assert stores.psql(f"SELECT 1 FROM pg_roles WHERE rolname = '{rotation.STAND_IN}'").strip() == ""
    finally:
        stores.stop()


def test_new_passwords_for_an_old_database_are_refused(open_path: Path) -> None:
    stores = Embedded(open_path / "bank")
    stores.prepare()
    (stores.dir / "secrets.toml").rename(open_path / "kept.toml")
    with pytest.raises(errors.CannotProceed, match="would not open the database"):
        Embedded(open_path / "bank").start()
    assert not (stores.dir / "secrets.toml").exists()
    (open_path / "kept.toml").rename(stores.dir / "secrets.toml")
    assert store_files.load_secrets(stores.dir, stores.user) == stores.secrets
