"""`python -m piggybank.bench.server`: `piggybank serve` with the routes to compare with.

With `--until-input-ends` it drains when standard input ends: a bench that is killed leaves no server behind.
"""

import os
import signal
import sys
import threading

from piggybank import app
from piggybank.bench import comparisons
from piggybank.cli import main


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1:] == ["--until-input-ends"]:
        threading.Thread(target=_end_with_input, daemon=True).start()
    comparisons.add_routes(app.ROUTES)
    main(["serve"])
