"""`make bench`: the experiments of the table below on fresh stores, one after the other; results are merged with those of earlier runs.

make bench                                  the standard ones, about a quarter of an hour
make bench ONLY="large" BENCH_SECONDS=600   20 million rows: half an hour
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from piggybank.bench import report
from piggybank.settings import Settings
from tests.bench import experiments, large, place, results, statements
from tests.bench.experiments import Options
from tests.bench.results import Found, Row

Rows = list[Row] | tuple[list[Row], list[tuple[int, float, float]]]

# name: title, what does it, seconds of a load, rounds; those with False run when they are asked for
EXPERIMENTS: dict[str, tuple[str, Callable[[Settings, Options], Awaitable[Rows]], int, int, bool]] = {
    "standard": ("Routes, 64 connections, 100,000 accounts, wrk", experiments.standard, 6, 3, True),
    "sweep": ("Deposits against connections, wrk", experiments.sweep, 4, 3, True),
    "processes": ("Web processes on one PostgreSQL, Zipf 1.0", experiments.processes, 5, 3, True),
    "overload": ("Overload, and batches beside requests", experiments.overload, 6, 3, True),
    "hit-rate": ("Cache under Zipf", experiments.hit_rate, 5, 1, True),
    "statements": ("Statements", statements.statements, 2, 1, True),
    "at-rest": ("Bytes", experiments.at_rest, 2, 1, True),
    "large": ("20 million rows", large.large, 600, 1, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=[], help="these, not the standard ones")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("BENCH_SECONDS") or 0), help="of a load")
    parser.add_argument("--rounds", type=int, help="the median of so many")
    parser.add_argument("--processes", type=int, default=1, help="web processes, where the experiment does not say")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results there, and leave the tables and the plot as they are")
    asked = parser.parse_args()
    kept = results.load(asked.json)
    for name in asked.only or [name for name, (*_, always) in EXPERIMENTS.items() if always]:
        title, experiment, seconds, rounds, _ = EXPERIMENTS[name]
        options = Options(seconds=asked.seconds or seconds, rounds=asked.rounds or rounds, processes=asked.processes)
        started = time.monotonic()
        print(f"== {name}: {title}; {options.rounds} x {options.seconds} s a load", flush=True)
        with place.fresh_stores() as settings:
            found, machine = asyncio.run(_run(settings, experiment, options))
        rows, points = found if isinstance(found, tuple) else (found, [])
        for row in rows:
            print(f"   {row.what}: {row.figure}  [{row.target or '-'}{'' if row.met is None else ' met' if row.met else ' MISSED'}]")
        repeat = f"python -m tests.bench --only {name} --seconds {options.seconds} --rounds {options.rounds}"
        repeat += f" --processes {options.processes}" if options.processes > 1 else ""
        kept.machine = machine
        kept.found[name] = Found(title=title, at=results.today(), command=repeat, rows=rows, points=points)
        results.keep(kept, asked.json)
        print(f"   {time.monotonic() - started:.0f} s", flush=True)


async def _run(
    settings: Settings, experiment: Callable[[Settings, Options], Awaitable[Rows]], options: Options
) -> tuple[Rows, dict[str, Any]]:
    return await experiment(settings, options), await report.machine(settings)


if __name__ == "__main__":
    main()
