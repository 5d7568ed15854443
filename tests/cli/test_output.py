"""What commands print is for people or machines; what they log is beside it."""

import subprocess
import sys

from tests.conftest import ROOT

# a command is found as the command line finds it, and something in it is worth a line, as a slow statement is
LOGS = """
import click, structlog
from piggybank.cli import main
assert main.get_command(click.Context(main), "users") is not None
structlog.get_logger().warning("slow_query", ms=200)
print('{"items": []}')
"""


def test_a_log_line_is_no_part_of_what_a_command_prints() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == '{"items": []}\n'
    assert "slow_query" in done.stderr
