"""What `helm test` runs."""

import json
import subprocess
import sys

from piggybank.settings import Settings
from tests.conftest import ROOT, Server, command, environment


def test_the_selftest_leaves_the_books_as_they_were(server: Server, settings: Settings) -> None:
    assert "accounts balance" in command(settings, "selftest", "--url", server.url)
    before = json.loads(command(settings, "verify", "--json"))
    assert "accounts balance" in command(settings, "selftest", "--url", server.url), "it finds its user and account again"
    after = json.loads(command(settings, "verify", "--json"))
    assert (after["accounts"], after["transactions"], after["findings"]) == (before["accounts"], before["transactions"] + 2, [])
    assert "selftest" not in command(settings, "apikeys", "list"), "its key is revoked"


def test_an_address_where_nobody_answers_is_said(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "piggybank", "selftest", "--url", "http://127.0.0.1:1"],
        env=environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:1 does not answer" in done.stderr
