"""`piggybank provider ..`, as operators type it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from piggybank.cli import main
from piggybank.revio import signatures
from tests.conftest import environment
from tests.provider.conftest import Desk
from tests.revio.test_signatures import OTHER, PEM, pem


def run(desk: Desk, *words: str, text: str | None = None) -> Result:
    """In this process: a start of Python costs seconds on a busy machine."""
    given = {name: None for name in os.environ if name.startswith("PIGGYBANK_")} | environment(desk.settings)
    with ThreadPoolExecutor(1) as pool:  # a loop of its own
        return pool.submit(CliRunner().invoke, main, ["provider", *words], input=text, env=given).result()


async def test_status_compares_both_books(desk: Desk) -> None:
    account = await desk.account()
    await desk.paid_deposit(account, 20_000)
    found = json.loads(run(desk, "status", "--json").stdout)
    assert (found["mode"], found["answers"]) == ("simulator", True)
    assert found["balance"] == found["ours"] == {"ZAR": 20_000 - 680}
    assert found["webhook"]
    assert found["keys"]


async def test_status_says_that_nobody_answers(desk: Desk) -> None:
    desk.simulator.kill()
    done = run(desk, "status")
    desk.restart_simulator()
    assert done.exit_code == 1
    assert "it does not answer" in done.stdout


async def test_keys_are_added_listed_and_removed(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "webhook.pem"
    file.write_text(PEM)
    fingerprint = signatures.fingerprint(PEM)
    assert run(desk, "keys", "add", str(file), "--note", "by hand").stdout == f"added: {fingerprint}\n"
    assert run(desk, "keys", "add", "-", text=json.dumps(PEM)).stdout == f"known already: {fingerprint}\n"
    assert run(desk, "keys", "add", "-", text=pem(OTHER).replace("\n", "\\n")).exit_code == 0
    assert f"{fingerprint}  " in run(desk, "keys", "list").stdout
    listed = {key["fingerprint"]: key["note"] for key in json.loads(run(desk, "keys", "list", "--json").stdout)["items"]}
    assert listed[fingerprint] == "by hand"
    assert run(desk, "keys", "remove", fingerprint).exit_code == 0
    gone = run(desk, "keys", "remove", fingerprint)
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "piggybank provider keys list" in gone.stderr
    recorded = await desk.sql.fetch("SELECT action FROM audit_log WHERE action LIKE 'provider_key%'")
    assert {row["action"] for row in recorded} == {"provider_key.add", "provider_key.remove"}


@pytest.mark.parametrize(
    "text", ["", "hello", PEM[:100], "-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----"], ids=["nothing", "words", "cut", "broken"]
)
def test_what_is_no_key_is_said(desk: Desk, text: str) -> None:
    done = run(desk, "keys", "add", "-", text=text)
    assert done.exit_code == 1
    assert "this is no key" in done.stderr
    assert "Traceback" not in done.stderr


async def test_connect_may_be_repeated(desk: Desk) -> None:
    first, again = run(desk, "connect"), run(desk, "connect")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "is registered already" in again.stdout
    registered = (await desk.sim.get("/api/v1/webhooks/")).json()["results"]
    assert len(registered) == 1
    written = await desk.sql.fetch("SELECT details FROM audit_log WHERE actor = 'cli' AND action = 'provider.connect' ORDER BY id")
    assert [json.loads(row["details"]) for row in written][-1] == {"webhook": registered[0]["id"], "new": False}
    assert len(written) == 2


async def test_reconcile_shows_what_differs_and_ends_with_1(desk: Desk) -> None:
    day = str(await desk.sql.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date"))
    clean = run(desk, "reconcile", "--day", day)
    assert clean.exit_code == 0, clean.stdout + clean.stderr
    assert "0 differences" in clean.stdout
    account = await desk.account(5_000)
    payment = await desk.withdraw(account, 1_000)
    await desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", UUID(payment["id"]))
    done = run(desk, "reconcile", "--day", day)
    assert done.exit_code == 1
    assert "unknown: a withdrawal of which nobody knows" in done.stdout
    as_json = run(desk, "reconcile", "--day", day, "--json")
    assert [item["payment_id"] for item in json.loads(as_json.stdout)["items"]] == [payment["id"]]
    assert run(desk, "reconcile", "--day", "yesterday").exit_code == 2


def test_the_help_has_examples(desk: Desk) -> None:
    for words in ((), ("status",), ("mode",), ("connect",), ("keys",), ("keys", "add"), ("reconcile",)):
        said = run(desk, *words, "--help").stdout
        assert "Example" in said, words
