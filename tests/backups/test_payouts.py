"""A bank pays out, is destroyed, restored and finished while people go on: nothing is paid twice, and nobody is shown the past."""

import json
import shutil
from pathlib import Path

import pytest

from tests.appliance.bank import wait_until
from tests.backups.conftest import Branch, Writer

FIRST = 1_000_000


@pytest.mark.deep
def test_what_was_paid_out_after_the_backup_is_not_paid_out_again(branch: Branch, target: Path, open_path: Path) -> None:
    branch.do("up", "--detach")
    key = json.loads(branch.do("backup", "key", "--json"))["recovery_key"]
    (open_path / "key.txt").write_text(key + "\n")
    account = branch.open_account()
    assert branch.deposit(account, FIRST, "first").status_code == 201
    writer = Writer(branch, account)
    writer.start()

    # under way when the backup is made, and ended in the time that is lost
    branch.sim("faults", {"payout_pending": 1.0}, method="PUT")
    open_then = branch.withdraw(account, 5_000, "open-then").json()["payment"]["id"]
    wait_until(lambda: branch.status_of(open_then) == "processing")
    made = json.loads(branch.do("backup", "create", "--json"))
    assert any("same disk" in warning for warning in made["warnings"])
    branch.sim("faults", {}, method="PUT")
    branch.sim(f"payouts/{branch.payouts()[0]['id']}/succeed")
    wait_until(lambda: branch.status_of(open_then) == "completed")

    # asked for and paid out in the time that is lost
    lost = branch.withdraw(account, 7_000, "lost").json()["payment"]["id"]
    wait_until(lambda: branch.status_of(lost) == "completed")
    assert [(one["amount"], one["executions"]) for one in branch.payouts()] == [(5_000, 1), (7_000, 1)]
    warm = branch.get(f"/v1/accounts/{account}/balance")  # in the cache, which outlives the bank
    before = len(writer.answered)

    branch.destroy()
    shutil.rmtree(target / "wal", ignore_errors=True)  # and the log since the backup never got there
    restored_dir = open_path / "again"
    said = json.loads(branch.do("restore", "latest", "--to", str(restored_dir), "--recovery-key", str(open_path / "key.txt"), "--json"))
    assert said["backup_id"] == made["id"]
    assert said["secrets"]
    again = branch.rebuilt_as(restored_dir)
    again.do("up", "--detach")

    # in recovery: read, never written, nothing sent
    shown = again.get(f"/v1/accounts/{account}/balance")
    assert shown["version"] < warm["version"]
    newest = again.get(f"/v1/accounts/{account}/transactions?limit=1")["items"][0]
    assert (newest["balance_after"], newest["sequence"]) == (shown["balance"], newest["sequence"])
    assert again.status_of(open_then) == "processing"
    refused = again.withdraw(account, 7_000, "lost")
    assert (refused.status_code, refused.json()["code"], refused.headers["content-type"]) == (
        503,
        "in_recovery",
        "application/problem+json",
    )
    assert "restore finish" in refused.json()["detail"]
    assert again.run("backup", "create").returncode == 1

    found = json.loads(again.do("restore", "finish", "--json"))["found"]
    assert again.status_of(open_then) == "completed"
    assert [one["amount"] for one in found["lost"]] == [7_000]
    assert json.loads(again.do("restore", "finish", "--json"))["was_in_recovery"] is False

    # the client, who was never answered or asks to be sure, sends its request again
    wait_until(lambda: again.withdraw(account, 7_000, "lost").status_code == 202)
    second = again.withdraw(account, 7_000, "lost").json()["payment"]["id"]
    wait_until(lambda: again.status_of(second) == "completed")
    fresh = again.withdraw(account, 9_000, "fresh").json()["payment"]["id"]
    wait_until(lambda: again.status_of(fresh) == "completed")
    executed = sorted((one["amount"], one["executions"]) for one in again.payouts() if one["executions"])
    assert executed == [(5_000, 1), (7_000, 1), (9_000, 1)]

    # what was answered before the loss is sent again, too, and counts once
    writer.stop()
    assert writer.wrong == []
    assert "in_recovery" in writer.refused
    assert len(writer.answered) > before
    writer.stopping.clear()
    assert all(writer.send(key) for key in writer.answered)
    balance = again.get(f"/v1/accounts/{account}/balance")["balance"]
    assert balance - (FIRST - 21_000 + len(writer.answered)) in (0, 1)  # one may have been under way when the writer stopped
    again.do("verify")
    reconciled = again.run("provider", "reconcile", "--json")
    items = json.loads(reconciled.stdout)["items"]
    assert [item for item in items if item["kind"] == "theirs_only"] == []
    again.do("down")
