"""The long version of `test_flips`, and the chart of it in the README.

python -m tests.phases.soak            about five minutes; writes tests/phases/flips.svg
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from math import log10
from pathlib import Path
from typing import NamedTuple

from piggybank.appliance import store_files
from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES
from tests.phases.load import Done, Load

PHASES = (1, 2, 3, 2)
STEADY_S = 40
CLIENTS = 16
WITHIN_S = 10.0  # a client's patience: three retries, and then it tells a person that it failed
PLOT = Path(__file__).with_name("flips.svg")


class Flip(NamedTuple):
    """A change of the phase, in seconds since the load began."""

    number: int
    began: float
    ended: float


class Soaked(NamedTuple):
    """What a soak saw. Retries are by reason, of writes; those of reads begin with "read"."""

    done: list[Done]
    flips: list[Flip]
    retries: Counter[str]


async def soak(bank: Bank, steady_s: float, clients: int) -> Soaked:
    """From phase 0 through all of PHASES under load; after each the servers show it, and the books fit. Raises AssertionError."""
    token = json.loads(await asyncio.to_thread(bank.do, "apikeys", "create", "--name", "soak", "--scopes", ALL_SCOPES, "--json"))["token"]
    load, flips = Load(bank.url, token, clients, within_s=WITHIN_S), []
    try:
        await load.open_accounts()
        running = load.start()
        try:
            for number in PHASES:
                await asyncio.sleep(steady_s)
                began = load.now
                await asyncio.to_thread(bank.do, "phase", "apply", str(number))
                flips.append(Flip(number, began, load.now))
                seconds, retries = load.now - began, dict(load.retries)
                print(f"phase {number}: {seconds:.1f} s; {len(load.done):,} requests, {retries}, behind {len(load.behind)}", flush=True)
                await asyncio.to_thread(bank.do, "phase", "show", "--observed")
                await asyncio.to_thread(bank.do, "verify")
                assert not running.done(), running.exception()
            await asyncio.sleep(steady_s)
        finally:
            load.stop()
            await running
        await load.compare()
        assert load.behind == [], load.behind
        await asyncio.to_thread(bank.do, "verify")
        return Soaked(load.done, flips, load.retries)
    finally:
        await load.close()


# The chart -----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 380, 60, 60, 50, 50
BIN_S = 2
LATE_TOP_MS = 10_000  # a logarithmic scale, from a millisecond on
_STYLE = """text{font:13px system-ui,sans-serif;fill:#444}.grid{stroke:#8884}.flip{fill:#8883}.rate{fill:none;stroke:#1a7f5a;stroke-width:2}
.late{fill:none;stroke:#c2571a;stroke-width:2;stroke-dasharray:5 3}@media(prefers-color-scheme:dark){text{fill:#ccc}}"""


def plot(soaked: Soaked) -> str:
    """Requests a second (solid) and the p99 of writes (dashed) over time, with the flips as bands; SVG."""
    seconds = max(one.at for one in soaked.done)
    bins: list[list[Done]] = [[] for _ in range(int(seconds // BIN_S) + 1)]
    for one in soaked.done:
        bins[int(max(one.at, 0) // BIN_S)].append(one)
    rates = [len(each) / BIN_S for each in bins[:-1]]
    lates = [_p99_ms([one.took for one in each if one.write]) for each in bins[:-1]]
    top = _round_up(max(rates))
    base, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def across(at: float) -> float:
        return LEFT + at / seconds * (WIDTH - LEFT - RIGHT)

    def late(ms: float) -> float:
        return base - min(1.0, max(0.0, log10(max(ms, 1.0)) / log10(LATE_TOP_MS))) * room

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<style>{_STYLE}</style>"]
    parts.append("<title>Requests a second and p99 of writes while the phase is changed</title>")
    parts.append(f'<text x="{LEFT + 6}" y="{TOP - 6}">0</text>')
    for flip in soaked.flips:
        left, right = across(flip.began), across(flip.ended)
        parts.append(f'<rect class="flip" x="{left:.0f}" y="{TOP}" width="{right - left:.0f}" height="{room}"/>')
        parts.append(f'<text x="{right + 4:.0f}" y="{TOP - 6}">{flip.number}</text>')
    for quarter in range(5):
        y = base - room * quarter / 4
        parts.append(f'<path class="grid" d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{top * quarter / 4:,.0f}</text>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.0f}">{10**quarter:,}</text>')
    middles = [across((index + 0.5) * BIN_S) for index in range(len(rates))]
    parts.append(f'<polyline class="rate" points="{_points(middles, [base - rate / top * room for rate in rates])}"/>')
    parts.append(f'<polyline class="late" points="{_points(middles, [late(ms) for ms in lates])}"/>')
    ticks = range(0, int(seconds) + 1, 30)
    parts += [f'<text x="{across(tick):.0f}" y="{base + 20}" text-anchor="middle">{tick}</text>' for tick in ticks]
    parts.append(
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">seconds; above: the phase, a band while it is changed</text>'
    )
    parts.append(f'<text x="{LEFT - 45}" y="20">requests a second (solid)</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 45}" y="20" text-anchor="end">p99 of writes in ms, logarithmic (dashed)</text>')
    return "".join([*parts, "</svg>"]) + "\n"


def _points(across: list[float], down: list[float]) -> str:
    return " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(across, down, strict=True))


def _p99_ms(took: list[float]) -> float:
    return sorted(took)[int(len(took) * 0.99)] * 1_000 if took else LATE_TOP_MS


def _round_up(value: float) -> float:
    step = float(10 ** (len(str(int(value))) - 1))
    return (int(value / step) + 1) * step


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="piggybank-soak-", dir="/tmp"))
    folder.chmod(0o755)
    bank = Bank(folder / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    started = time.monotonic()
    try:
        bank.do("up", "--detach")
        soaked = asyncio.run(soak(bank, STEADY_S, CLIENTS))
        PLOT.write_text(plot(soaked), encoding="utf-8")
        writes = [one.took for one in soaked.done if one.write]
        took = f"{time.monotonic() - started:.0f} s"
        print(f"{len(soaked.done):,} requests, {len(writes):,} of them writes (p99 {_p99_ms(writes):.0f} ms), in {took}")
        print(f"the slowest write was answered after {max(writes):.1f} s")
        print(f"retries: {dict(soaked.retries)}; nothing lost, doubled or stale")
    finally:
        bank.run("down")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
