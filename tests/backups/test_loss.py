"""How much a disk takes with it: kill -9 of everything while people pay, the disk wiped, and the newest moment restored.

No figure is asserted; run it with `-s` to see them: python -m pytest -m deep -s tests/backups/test_loss.py
"""

import time
from pathlib import Path

import pytest

from piggybank.appliance import store_files
from tests.appliance.bank import wait_until
from tests.backups.conftest import Branch, Writer

FIRST = 1_000_000
PAYS_FOR_S = 100  # some segments of the log


class NotingWriter(Writer):
    """And when each was answered."""

    def __init__(self, branch: Branch, account: str) -> None:
        super().__init__(branch, account)
        self.answered_at: list[float] = []

    def send(self, key: str) -> bool:
        done = super().send(key)
        if done:
            self.answered_at.append(time.monotonic())
        return done


@pytest.mark.deep
def test_what_a_lost_disk_takes_is_the_last_moments_and_nothing_between(
    branch: Branch, target: Path, open_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch.do("up", "--detach")
    account = branch.open_account()
    assert branch.deposit(account, FIRST, "first").status_code == 201
    branch.do("backup", "create")
    writer = NotingWriter(branch, account)
    writer.start()
    time.sleep(PAYS_FOR_S)
    branch.destroy()
    destroyed = time.monotonic()
    writer.stopping.set()
    writer.join()
    again = open_path / "again"
    branch.do("restore", "latest", "--to", str(again), "--without-key")
    restored = branch.rebuilt_as(again)
    restored.do("up", "--detach")
    kept = restored.get(f"/v1/accounts/{account}/balance")["balance"] - FIRST
    answered = [at for at in writer.answered_at if at < destroyed]
    lost_s = destroyed - answered[kept - 1] if 0 < kept <= len(answered) else 0.0
    with capsys.disabled():
        segments = len(list((target / "wal").rglob("0*.gz")))
        print(
            f"\nlost with the disk: {max(0, len(answered) - kept)} of {len(answered)} answered deposits, the last {lost_s:.1f} s"
            f" ({segments} segments of at most {store_files.WAL_EVERY_S} s at the target)"
        )
    assert 0 < kept <= len(answered) + 1  # one may have been committed and not answered
    restored.do("restore", "finish")
    wait_until(lambda: restored.deposit(account, 1, writer.answered[0]).status_code == 201)  # the first was kept: its key is known
    assert restored.get(f"/v1/accounts/{account}/balance")["balance"] == FIRST + kept
    restored.do("verify")
    restored.do("down")
