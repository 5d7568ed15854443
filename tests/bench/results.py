"""What was found: kept as JSON between runs, shown as `RESULTS.md` and as the plot of the README."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

HERE = Path(__file__).parent
FILE, TABLE, PLOT = HERE / "results.json", HERE / "RESULTS.md", HERE / "throughput.svg"


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table; `met` is None where there is no target."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None


class Found(Struct, frozen=True, kw_only=True):
    """An experiment's rows, with when they were taken and the command that repeats them."""

    title: str
    at: str
    command: str
    rows: list[Row]
    points: list[tuple[int, float, float]] = []  # connections, per second, p99 ms


class Results(Struct, kw_only=True):
    machine: dict[str, Any] = {}
    found: dict[str, Found] = {}


def load(file: Path | None) -> Results:
    """What earlier runs left, in `file` or in the repository."""
    kept = file or FILE
    return msgspec.json.decode(kept.read_bytes(), type=Results) if kept.exists() else Results()


def keep(results: Results, file: Path | None) -> None:
    """Write all three files of the repository; or `file` alone."""
    (file or FILE).write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    if file is not None:
        return
    TABLE.write_text(_table(results), encoding="utf-8")
    points = next((found.points for found in results.found.values() if found.points), [])
    if points:
        PLOT.write_text(plot(points), encoding="utf-8")


def today() -> str:
    """The day of a result."""
    return datetime.now(UTC).date().isoformat()


def _table(results: Results) -> str:
    lines = [
        "# Measured",
        "",
        "Written by `make bench`: load generator, server, PostgreSQL and Valkey share this machine. Every answer is durable (`fsync` and",
        "`synchronous_commit` on), tokens are checked, keys, outbox and cache write-through are on, the access log is written. After each",
        "load the answers with 2xx were counted against the new rows, and at the end `verify` found nothing.",
        "",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in results.machine.items()) + ". Other work on its host makes figures",
        "of different minutes differ by up to a factor of two; compare within an experiment.",
    ]
    for name, found in results.found.items():
        lines += [
            "",
            f"## {found.title}",
            "",
            f"{found.at}, `{found.command}`",
            "",
            "| what | figure | target | met |",
            "|---|---|---|---|",
        ]
        lines += [f"| {row.what} | {row.figure} | {row.target} | {_MET[row.met]} |" for row in found.rows]
        if found.points:
            lines += ["", f"![{name}](throughput.svg)"]
    return "\n".join(lines) + "\n"


_MET = {True: "yes", False: "**no**", None: ""}

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 70, 70, 40, 50
_STYLE = """text{font:13px system-ui,sans-serif;fill:#444}.grid{stroke:#8884}.rate{fill:none;stroke:#1a7f5a;stroke-width:2.5}
.late{fill:none;stroke:#c2571a;stroke-width:2.5;stroke-dasharray:6 4}.dot{fill:#1a7f5a}.square{fill:#c2571a}
@media(prefers-color-scheme:dark){text{fill:#ccc}}"""


def plot(points: list[tuple[int, float, float]]) -> str:
    """Throughput (solid, left scale) and p99 (dashed, right scale) against connections, as SVG."""
    rate_top, late_top = _ceiling(max(rate for _, rate, _ in points)), _ceiling(max(late for _, _, late in points))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)
    base, room = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def place(value: float, top: float) -> float:
        return base - value / top * room

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<style>{_STYLE}</style>"]
    parts.append("<title>Deposits a second and p99 against connections</title>")
    for quarter in range(5):
        y = base - room * quarter / 4
        parts.append(f'<path class="grid" d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{rate_top * quarter / 4:,.0f}</text>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.0f}">{late_top * quarter / 4:,.0f}</text>')
    rates = [(LEFT + step * index, place(rate, rate_top)) for index, (_, rate, _) in enumerate(points)]
    lates = [(LEFT + step * index, place(late, late_top)) for index, (_, _, late) in enumerate(points)]
    for name, line in (("rate", rates), ("late", lates)):
        parts.append(f'<polyline class="{name}" points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in line)}"/>')
    parts += [f'<circle class="dot" cx="{x:.0f}" cy="{y:.0f}" r="4"/>' for x, y in rates]
    parts += [f'<rect class="square" x="{x - 3.5:.0f}" y="{y - 3.5:.0f}" width="7" height="7"/>' for x, y in lates]
    for index, (connections, _, _) in enumerate(points):
        parts.append(f'<text x="{LEFT + step * index:.0f}" y="{base + 20}" text-anchor="middle">{connections}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">connections</text>')
    parts.append(f'<text x="{LEFT - 50}" y="20">deposits a second (solid, round)</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 50}" y="20" text-anchor="end">p99 in ms (dashed, square)</text>')
    return "".join([*parts, "</svg>"]) + "\n"


def _ceiling(value: float) -> float:
    scale = 1.0
    while scale * 10 <= value:
        scale *= 10
    return next(scale * factor for factor in (1, 2, 4, 6, 8, 10) if scale * factor >= value)
