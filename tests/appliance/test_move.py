"""The database moves to another server: nothing is lost, nothing doubled, and never do two databases take writes."""

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from piggybank import checks, errors, ids
from piggybank import settings as settings_file
from piggybank.appliance import doctor, move, store_files
from piggybank.appliance.embedded import Embedded
from piggybank.db import copies, roles, writes
from piggybank.settings import Settings
from tests.appliance.bank import Bank
from tests.conftest import ROOT, Server, Stores, environment, run_apart, start_server
from tests.ledger.conftest import new_account

pytestmark = pytest.mark.deep

WAIT_S = 60
CLIENTS = 6
ROUNDS = 30
PAUSE_S = 0.05


@pytest.fixture
def elsewhere(stores: Stores) -> Iterator[str]:
    """The owner's address of an empty database on a server that is not the bank's."""
    name = f"there_{uuid4().hex[:12]}"
    run_apart(lambda: _sql(stores.admin_url, f"CREATE DATABASE {name} OWNER {store_files.OWNER_ROLE}"))
    owner_url = stores.secrets.addresses()["owner_database_url"].rpartition("/")[0] + "/" + name
    yield owner_url
    run_apart(lambda: _sql(stores.admin_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def here(fresh_settings: Settings, open_path: Path) -> Settings:
    """An installation that uses a database of its own on an external server, by its file."""
    data_dir = open_path / "bank"
    data_dir.mkdir()
    names = ("database_url", "owner_database_url", "cache_url", "queue_url")
    text = settings_file.with_values("port = 8089 # ours\n", {name: getattr(fresh_settings, name) for name in names})
    (data_dir / "piggybank.toml").write_text(text)
    (data_dir / ".piggybank").touch()
    return settings_file.load(data_dir, {})


async def _sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _value(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def fill(owner_url: str, rows: int) -> UUID:
    """An account with so many deposits of 1; the books are right."""
    connection = await asyncpg.connect(owner_url)
    try:
        account = await new_account(connection)
        last = None
        made = []
        metadata = '{"name": "é"}'
        for sequence in range(1, rows + 1):
            last = ids.following_id(last, ids.bucket_of(account), time.time_ns())
            made.append((last, account, 1, sequence, sequence, ids.bucket_of(account), "deposit", "clearing", metadata))
        columns = ("id", "account_id", "amount", "balance_after", "sequence", "bucket", "kind", "system_account", "metadata")
        await connection.copy_records_to_table("transactions", records=made, columns=columns)
        await connection.execute(
            """
            UPDATE accounts
            SET balance = $2, clearing = -$2::bigint, sequence = $2, transactions_count = $2, version = $2, last_transaction_id = $3
            WHERE id = $1
            """,
            account,
            rows,
            last,
        )
        return account
    finally:
        await connection.close()


async def differences(owner_url: str) -> list[checks.Finding]:
    return [finding async for progress in checks.verify(owner_url) for finding in progress.findings]


async def takes_writes(owner_url: str) -> bool:
    """As any session finds it."""
    try:
        await _sql(owner_url, "UPDATE installation SET epoch = epoch")
    except asyncpg.ReadOnlySQLTransactionError:
        return False
    return True


async def wait_until(true: Callable[[], Awaitable[bool]]) -> None:
    until = time.monotonic() + WAIT_S
    while not await true():
        assert time.monotonic() < until, "it did not happen"
        await asyncio.sleep(0.05)


def silent(_: str) -> None:
    """Nobody watches."""


async def moved(settings: Settings, to: str) -> move.Settled:
    return await asyncio.to_thread(move.move, settings, to, "", silent, was_running=False)


# Under load -----------------------------------------------------------------------------------------------------------


class Depositors:
    """Clients that pay 1 in again and again, each with its own keys, and ask again with the same key until they know."""

    def __init__(self, url: str, token: str, account: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30)
        self._account = account
        self.answered = 0
        self.retries = 0
        self.statuses: set[int] = set()
        self.reads = 0
        self.stopping = False

    async def run(self) -> None:
        await asyncio.gather(*(self._deposit_for_ever(number) for number in range(CLIENTS)), self._read_for_ever())
        await self._http.aclose()

    async def goes_on(self, running: asyncio.Task[None]) -> None:
        """Wait until more was answered."""
        before = self.answered

        async def more() -> bool:
            assert not running.done(), running.result()
            return self.answered > before + 20

        await wait_until(more)

    async def _deposit_for_ever(self, number: int) -> None:
        for count in itertools.count():
            if self.stopping:
                return
            await self._deposit(f"{number}-{count}")
            self.answered += 1

    async def _deposit(self, key: str) -> None:
        path = f"{self._url}/v1/accounts/{self._account}/deposits"
        while True:
            try:
                response = await self._http.post(path, json={"amount": 1, "method": "direct"}, headers={"Idempotency-Key": key})
            except httpx.TransportError:  # it is being started again
                self.retries += 1
                await asyncio.sleep(PAUSE_S)
                continue
            self.statuses.add(response.status_code)
            if response.status_code == 201:
                return
            assert response.json()["retryable"], response.text
            assert "retry-after" in response.headers
            self.retries += 1
            await asyncio.sleep(PAUSE_S)

    async def _read_for_ever(self) -> None:
        while not self.stopping:
            try:
                response = await self._http.get(f"{self._url}/v1/accounts/{self._account}/transactions?limit=1")
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
                continue
            if response.status_code == 503:  # its session was ended under it
                assert "retry-after" in response.headers
            else:
                assert response.status_code == 200, response.text
                self.reads += 1
            await asyncio.sleep(PAUSE_S)


@pytest.fixture
async def bank(open_path: Path) -> AsyncIterator[Bank]:
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    started = await asyncio.to_thread(made.run, "up", "--detach")
    assert started.returncode == 0, started.stderr
    yield made
    await asyncio.to_thread(made.run, "down")


async def test_nothing_is_lost_or_doubled_under_load(here: Settings, elsewhere: str) -> None:
    """One server here until the copy is there, then one over there."""
    account = str(await fill(here.owner_database_url, 20_000))
    server = await asyncio.to_thread(start_server, here)
    try:
        load = Depositors(server.url, server.token, account)
        running = asyncio.create_task(load.run())
        await load.goes_on(running)
        await moved(here, elsewhere)
        assert load.reads
        answered = load.answered
        await asyncio.to_thread(server.stop)
        server = await asyncio.to_thread(start_server, settings_file.load(here.data_dir, {}), server.settings.port)
        await load.goes_on(running)
        load.stopping = True
        await running
    finally:
        await asyncio.to_thread(server.stop)
    assert load.statuses <= {201, 503}
    assert load.answered > answered
    assert await _value(elsewhere, f"SELECT balance FROM accounts WHERE id = '{account}'") == 20_000 + load.answered
    assert await _value(elsewhere, "SELECT count(*) FROM idempotency_keys") == load.answered
    assert await _value(here.owner_database_url, "SELECT count(*) FROM idempotency_keys") <= answered + CLIENTS
    assert await differences(elsewhere) == []


@pytest.mark.deep
async def test_a_running_bank_moves_under_load_and_nothing_is_lost_or_doubled(bank: Bank, elsewhere: str) -> None:
    scopes = "users:write,accounts:write,accounts:read,ledger:write"
    token = bank.ask("apikeys", "create", "--name", "load", "--scopes", scopes, "--token-only").stdout.strip()
    account = str(await fill(bank.stores.addresses()["owner_database_url"], 20_000))
    load = Depositors(bank.url, token, account)
    running = asyncio.create_task(load.run())
    await load.goes_on(running)
    did = await asyncio.to_thread(bank.run, "move", "--to", elsewhere)
    assert did.returncode == 0, did.stdout + did.stderr
    await load.goes_on(running)
    load.stopping = True
    await running
    assert load.statuses <= {201, 503}
    assert await _value(elsewhere, f"SELECT balance FROM accounts WHERE id = '{account}'") == 20_000 + load.answered
    assert await _value(elsewhere, "SELECT count(*) FROM idempotency_keys") == load.answered
    assert await differences(elsewhere) == []
    written = await _value(elsewhere, "SELECT target FROM audit_log WHERE actor = 'cli' AND action = 'move'")
    assert written == f"database:{move._shown(elsewhere)}"

    assert set(bank.pids()) == {"supervisor", "cache", "queue", "web-1", "simulator"}, "the Valkeys stay here"
    assert bank.ask("status").exit_code == 0
    again = bank.ask("move", "--to", elsewhere)
    assert (again.exit_code, again.stdout) == (0, "the database is there already\n")
    with pytest.raises(errors.CannotProceed, match=r"moved to 127\.0\.0\.1"):
        await asyncio.to_thread(Embedded(bank.data_dir).prepare)


@pytest.mark.deep
async def test_a_bank_that_was_failed_over_before_is_not_started_where_it_was(bank: Bank, elsewhere: str) -> None:
    """After a failover and `phase apply 1` the only folder is the second server's: what is left there is old all the same."""
    await asyncio.to_thread(bank.do, "down")
    stores = bank.data_dir / "stores"
    (stores / "postgres").rename(stores / "postgres-2")
    (stores / "primary").write_text("postgres-2\n")
    await asyncio.to_thread(bank.do, "up", "--detach")
    assert "postgres-2" in bank.pids()
    await asyncio.to_thread(bank.do, "move", "--to", elsewhere)
    with pytest.raises(errors.CannotProceed, match=r"moved to 127\.0\.0\.1"):
        await asyncio.to_thread(Embedded(bank.data_dir).prepare)


async def test_while_writes_are_stopped_reads_go_on_and_every_write_waits_or_is_503(server: Server) -> None:
    settings = server.settings
    role = roles.role_of(settings.database_url)
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as client:
        made = await client.post("/v1/users", json={"external_id": uuid4().hex})
        account = (await client.post("/v1/accounts", json={"user_id": made.json()["id"], "currency": "EUR"})).json()["id"]
        deposit = f"/v1/accounts/{account}/deposits"
        money = {"json": {"amount": 5, "method": "direct"}, "headers": {"Idempotency-Key": uuid4().hex}}
        connection = await writes.open_mover(settings.owner_database_url)
        try:
            await writes.stop(connection)
            await writes.end_sessions(connection, role)
            waiting = asyncio.create_task(client.post(deposit, **money))  # type: ignore[arg-type]
            for method, path, body in (
                ("POST", "/v1/users", {"external_id": uuid4().hex}),
                ("POST", "/v1/users", {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex, "invite": "x"}),
                ("POST", "/v1/accounts", {"user_id": made.json()["id"], "currency": "EUR"}),
                ("POST", "/v1/sessions", {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}),
                ("PATCH", f"/v1/accounts/{account}", {"name": "new"}),
            ):
                refused = await client.request(method, path, json=body)
                assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable"), (path, refused.text)
                assert refused.headers["retry-after"]
            for path in (f"/v1/accounts/{account}", f"/v1/accounts/{account}/transactions", "/v1/currencies", "/health/ready"):
                assert (await client.get(path)).status_code == 200
            assert not waiting.done()
        finally:
            await writes.allow(connection)
            await writes.end_sessions(connection, role)
            await connection.close()
        assert (await waiting).status_code == 201
        assert (await client.post("/v1/users", json={"external_id": uuid4().hex})).status_code == 201


@pytest.mark.deep
async def test_sessions_that_are_ended_again_and_again_cost_a_retry_and_no_more(here: Settings) -> None:
    account = str(await fill(here.owner_database_url, 10))
    role = roles.role_of(here.database_url)
    server = await asyncio.to_thread(start_server, here)
    connection = await writes.open_mover(here.owner_database_url)
    try:
        load = Depositors(server.url, server.token, account)
        running = asyncio.create_task(load.run())
        for _ in range(ROUNDS):
            await writes.stop(connection)
            await writes.end_sessions(connection, role)
            await writes.allow(connection)
            await writes.end_sessions(connection, role)
            await load.goes_on(running)
        load.stopping = True
        await running
    finally:
        await connection.close()
        await asyncio.to_thread(server.stop)
    assert load.statuses <= {201, 503}
    assert await _value(here.owner_database_url, f"SELECT balance FROM accounts WHERE id = '{account}'") == 10 + load.answered
    assert await differences(here.owner_database_url) == []


@pytest.mark.deep
async def test_a_movement_that_waits_too_long_is_503_with_retry_after(server: Server) -> None:
    role = roles.role_of(server.settings.database_url)
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        user = await client.post("/v1/users", json={"external_id": uuid4().hex})
        account = (await client.post("/v1/accounts", json={"user_id": user.json()["id"], "currency": "EUR"})).json()["id"]
        connection = await writes.open_mover(server.settings.owner_database_url)
        try:
            await writes.stop(connection)
            await writes.end_sessions(connection, role)
            refused = await client.post(
                f"/v1/accounts/{account}/deposits", json={"amount": 5, "method": "direct"}, headers={"Idempotency-Key": "k"}
            )
        finally:
            await writes.allow(connection)
            await writes.end_sessions(connection, role)
            await connection.close()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]


# The copy -------------------------------------------------------------------------------------------------------------


async def test_everything_is_over_there_as_it_was(here: Settings, elsewhere: str) -> None:
    await fill(here.owner_database_url, 500)
    owner = here.owner_database_url
    middle = "01b00000-0000-7000-8000-000000000000"
    await _sql(
        owner,
        f"""
        ALTER TABLE transactions DETACH PARTITION transactions_all;
        ALTER TABLE transactions ATTACH PARTITION transactions_all FOR VALUES FROM (MINVALUE) TO ('{middle}');
        CREATE TABLE transactions_2099_01 PARTITION OF transactions FOR VALUES FROM ('{middle}') TO (MAXVALUE) WITH (fillfactor = 90);
        CREATE TABLE transactions_2019_01 (LIKE transactions INCLUDING ALL);
        INSERT INTO transactions_2019_01 SELECT * FROM transactions LIMIT 7;
        CREATE TABLE holidays (day date);
        """,
    )
    before = await everything(owner)
    done = await moved(here, elsewhere)
    assert done.copied is not None
    assert done.copied.left_behind == ["holidays"]
    assert done.copied.tables["transactions_2019_01"] == 7
    after = await everything(elsewhere)
    del before["holidays"]
    assert after == before
    assert await catalogue(elsewhere) == await catalogue(owner)
    assert await differences(elsewhere) == []
    assert (await takes_writes(owner), await takes_writes(elsewhere)) == (False, True)

    changed = settings_file.load(here.data_dir, {})
    assert (changed.owner_database_url, changed.cache_url, changed.port) == (elsewhere, here.cache_url, 8089)
    assert "# ours" in (here.data_dir / "piggybank.toml").read_text()
    assert not (here.data_dir / move.JOURNAL).exists()
    granted = "SELECT has_table_privilege('transactions', 'INSERT') AND NOT has_table_privilege('transactions', 'UPDATE')"
    assert await _value(changed.database_url, granted)
    assert await _value(changed.database_url, "SHOW lock_timeout") == roles.ROLE_SETTINGS["lock_timeout"]


async def everything(owner_url: str) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    connection = await asyncpg.connect(owner_url)
    try:
        return {
            name: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {name} t ORDER BY 1")]
            for name in [*await copies.tables_of(connection), copies.KEPT]
        }
    finally:
        await connection.close()


async def catalogue(owner_url: str) -> list[str]:
    """Indexes and constraints of what is ours, and the partitions with their bounds."""
    connection = await asyncpg.connect(owner_url)
    try:
        rows = await connection.fetch(
            """
            SELECT replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') AS what FROM pg_index
            WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND NOT relispartition)
            UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND conparentid = 0 AND contype <> 'n'
            UNION ALL SELECT relname || ' ' || pg_get_expr(relpartbound, oid) || ' ' || coalesce(reloptions::text, '') FROM pg_class
            WHERE relispartition AND relkind = 'r'
            ORDER BY 1
            """
        )
        return [row["what"] for row in rows]
    finally:
        await connection.close()


async def test_a_copy_that_differs_is_refused_and_writes_go_on(here: Settings, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other server loses a row in the middle of the copy."""
    await fill(here.owner_database_url, 10)
    whole = copies._counted_alike

    async def with_a_loss(source: Any, target: Any, names: Any) -> dict[str, int]:
        await target.execute("DELETE FROM transactions WHERE sequence = 10")
        return await whole(source, target, names)

    monkeypatch.setattr(copies, "_counted_alike", with_a_loss)
    with pytest.raises(errors.CannotProceed, match="rows of transactions: 10 here, 9 there"):
        await moved(here, elsewhere)
    assert (await takes_writes(here.owner_database_url), await takes_writes(elsewhere)) == (True, False)
    assert settings_file.load(here.data_dir, {}) == here
    assert not (here.data_dir / move.JOURNAL).exists()
    assert await _value(elsewhere, "SELECT count(*) FROM transactions") == 0, "there whole or not at all"
    monkeypatch.undo()
    assert not (await moved(here, elsewhere)).undone
    assert await _value(elsewhere, "SELECT count(*) FROM transactions") == 10


async def test_a_copy_of_the_installation_on_that_server_keeps_its_role(here: Settings, elsewhere: str, stores: Stores) -> None:
    """A restored backup is the same installation; moved to the same server it must not change the other's password."""
    twin = f"{elsewhere}_twin"
    await _sql(stores.admin_url, f"CREATE DATABASE {twin.rpartition('/')[2]} OWNER {store_files.OWNER_ROLE}")
    try:
        first = await move._prepare(here, elsewhere, "", silent)
        second = await move._prepare(here, twin, "", silent)
        assert roles.role_of(first) != roles.role_of(second)
        for url in (first, second):
            assert await _value(url, "SELECT count(*) FROM currencies")
        again = await move._prepare(here, elsewhere, "", silent)
        assert roles.role_of(again) == roles.role_of(first), "a repeated move leaves no roles behind"
        assert await _value(second, "SELECT count(*) FROM currencies")
    finally:
        await _sql(stores.admin_url, f"DROP DATABASE {twin.rpartition('/')[2]} WITH (FORCE)")


# Killed ---------------------------------------------------------------------------------------------------------------


async def test_killed_before_the_switch_it_is_undone_and_may_be_repeated(here: Settings, elsewhere: str) -> None:
    await fill(here.owner_database_url, 10)
    command = [sys.executable, "-m", "piggybank", "--data-dir", str(here.data_dir), "move", "--to", elsewhere]
    blocker = await asyncpg.connect(here.owner_database_url)
    async with blocker.transaction():  # the copy waits for this writer
        await blocker.execute("UPDATE installation SET epoch = epoch")
        kept = {name: value for name, value in environment(here).items() if not name.startswith("PIGGYBANK_")}
        mover = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=kept)

        async def is_stopped() -> bool:
            assert mover.returncode is None
            return not await takes_writes_now(here.owner_database_url)

        await wait_until(is_stopped)
        second = asyncio.to_thread(move.settle, here.data_dir)
        assert await second is None, "it is under way"
        mover.send_signal(signal.SIGKILL)
        await mover.wait()
    await blocker.close()
    assert (await takes_writes(here.owner_database_url), await takes_writes(elsewhere)) == (False, False)
    [said] = [check for check in await doctor.examine(here) if check.name == "writes"]
    assert (said.result, "move --undo" in said.do) == ("broken", True)
    left = await asyncio.to_thread(move.settle, here.data_dir)
    assert left is not None
    assert left.undone
    assert await takes_writes(here.owner_database_url)
    await moved(here, elsewhere)
    assert (await takes_writes(here.owner_database_url), await takes_writes(elsewhere)) == (False, True)
    assert await differences(elsewhere) == []


async def takes_writes_now(owner_url: str) -> bool:
    """The same without a lock that the test itself holds."""
    return bool(await _value(owner_url, "SHOW default_transaction_read_only") == "off")


async def test_killed_after_the_switch_it_is_finished(here: Settings, elsewhere: str) -> None:
    """All its steps but the last, as of a run that was killed there; a copy that was committed is made anew before."""
    await fill(here.owner_database_url, 10)
    for _ in range(2):
        application_url = await move._prepare(here, elsewhere, "", silent)
        journal = move.Journal(
            source_owner_url=here.owner_database_url,
            source_role=roles.role_of(here.database_url),
            target_owner_url=elsewhere,
            target_role=roles.role_of(application_url),
            embedded=False,
        )
        move._save(here.data_dir, journal, None)
        await move._copy(journal, silent)
    assert (await takes_writes(here.owner_database_url), await takes_writes(elsewhere)) == (False, False)
    move._switch(here.data_dir, {"database_url": application_url, "owner_database_url": elsewhere}, None)
    left = await asyncio.to_thread(move.settle, here.data_dir)
    assert left is not None
    assert not left.undone
    assert (await takes_writes(here.owner_database_url), await takes_writes(elsewhere)) == (False, True)
    assert await asyncio.to_thread(move.settle, here.data_dir) is None


async def test_an_old_database_elsewhere_starts_nothing(here: Settings, elsewhere: str) -> None:
    """Somebody still has the old address."""
    await moved(here, elsewhere)
    names = ("database_url", "owner_database_url")
    old = settings_file.with_values((here.data_dir / "piggybank.toml").read_text(), {name: getattr(here, name) for name in names})
    (here.data_dir / "piggybank.toml").write_text(old)
    refused = Bank(here.data_dir, PIGGYBANK_PORT="8089").ask("migrate")
    assert refused.exit_code == 1
    assert "takes no writes: it moved elsewhere" in refused.stderr


# Looking --------------------------------------------------------------------------------------------------------------


async def problem(settings: Settings, to: str, application_url: str = "") -> str:
    found = (await move.look(settings, to, application_url)).problems
    assert found, "nothing was found"
    assert all(each.do for each in found)
    return found[0].what


async def test_what_is_wrong_is_said_before_anything_is_done(
    here: Settings, elsewhere: str, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await move.look(here, elsewhere)).problems == []
    assert not await copies_in(elsewhere), "it only looked"
    assert "is no address" in await problem(here, "mysql://owner:x@db/name")
    assert "does not answer" in await problem(here, elsewhere.replace("piggybank_owner", "nobody"))
    assert "is the database that this installation uses" in await problem(here, here.owner_database_url)
    assert "may not make the application's role" in await problem_of_a_role_without_rights(here, stores, elsewhere)
    assert "owner's role" in await problem(here, elsewhere, elsewhere)
    assert "belong to this database" in await problem(msgspec.structs.replace(here, phase=2), elsewhere)
    monkeypatch.setenv("PIGGYBANK_DATABASE_URL", here.database_url)
    assert "in the environment" in await problem(here, elsewhere)
    monkeypatch.undo()
    await _sql(elsewhere, "CREATE TABLE theirs (n int)")
    assert "is not empty" in await problem(here, elsewhere)


async def copies_in(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return await copies.tables_of(connection)
    finally:
        await connection.close()


async def problem_of_a_role_without_rights(here: Settings, stores: Stores, elsewhere: str) -> str:
    """It owns the database, no more."""
    role, database = f"plain_{uuid4().hex[:8]}", elsewhere.rpartition("/")[2]
    await _sql(stores.admin_url, f"CREATE ROLE {role} LOGIN PASSWORD 'x'; ALTER DATABASE {database} OWNER TO {role}")
    try:
        return await problem(here, f"postgresql://{role}:x@{elsewhere.rpartition('@')[2]}")
    finally:
        owner = store_files.OWNER_ROLE
        await _sql(stores.admin_url, f"ALTER DATABASE {database} OWNER TO {owner}; DROP ROLE {role}")


async def test_another_installation_and_a_copy_in_use_are_not_overwritten(here: Settings, settings: Settings, elsewhere: str) -> None:
    assert "is not empty" in await problem(here, settings.owner_database_url)
    await moved(here, elsewhere)
    names = ("database_url", "owner_database_url")
    await _sql(writes.mover_url(here.owner_database_url), f"ALTER DATABASE {here.database_url.rpartition('/')[2]} RESET ALL")
    (here.data_dir / "piggybank.toml").write_text(settings_file.with_values("", {name: getattr(here, name) for name in names}))
    assert "is not empty" in await problem(here, elsewhere), "it is ours, and takes writes"
