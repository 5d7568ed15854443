"""What was measured, said: ratios, the machine, and the phase that it carries."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from msgspec import Struct

from piggybank.bench.run import Figure
from piggybank.bench.scenarios import SCENARIOS
from piggybank.capacity import phases
from piggybank.settings import Settings

SPEAKS_FOR_PHASE = ("mixed", "deposits")  # the first of them that was measured


class Shown(Struct, frozen=True, kw_only=True):
    """A scenario. A ratio is null where there is nothing to divide by; `cpu_ms` is of one request, by who spent it."""

    per_second: float
    p50_ms: float
    p99_ms: float
    to_no_database: float | None
    to_row_locking: float | None
    refused: int
    cpu_ms: dict[str, float]


class Report(Struct, frozen=True, kw_only=True):
    """A whole run; `verified`: answers were rows, and every balance fitted."""

    scenarios: dict[str, Shown]
    phase: int | None
    says: str
    machine: dict[str, Any]
    connections: int
    accounts: int
    verified: bool


def shown(figures: Sequence[Figure]) -> dict[str, Shown]:
    """The figures of one run, each beside what it is compared with."""
    by_name = {figure.name: figure for figure in figures}

    def ratio(figure: Figure, to: str | None) -> float | None:
        other = by_name.get(to or "")
        return round(figure.per_second / other.per_second, 2) if other is not None and other.per_second else None

    return {
        figure.name: Shown(
            per_second=figure.per_second,
            p50_ms=figure.p50_ms,
            p99_ms=figure.p99_ms,
            to_no_database=ratio(figure, SCENARIOS[figure.name].no_database),
            to_row_locking=ratio(figure, SCENARIOS[figure.name].row_locking),
            refused=figure.refused,
            cpu_ms=figure.cpu_ms,
        )
        for figure in figures
    }


def phase(scenarios: dict[str, Shown]) -> tuple[int | None, str]:
    """The highest phase whose peak was reached, and the sentence that says so."""
    name = next((name for name in SPEAKS_FOR_PHASE if name in scenarios), None)
    if name is None:
        return None, f"measure {' or '.join(SPEAKS_FOR_PHASE)} to see which phase this machine carries"
    per_second = scenarios[name].per_second
    table = phases.table()
    carried = [each for each in table if per_second >= each.tps_peak]
    why = f"it did {per_second:,.0f} a second ({name})"
    if not carried:
        return None, f"this machine carries no phase: {why}, and the peak of phase 0 is {table[0].tps_peak}"
    highest = carried[-1]
    above = "".join(f"; phase {each.number} needs {each.tps_peak:,}" for each in table[highest.number + 1 : highest.number + 2])
    says = f"this machine carries phase {highest.number}: {why}, and the peak of phase {highest.number} is {highest.tps_peak:,}{above}"
    return highest.number, says


async def machine(settings: Settings) -> dict[str, Any]:
    """What this machine is, with the PostgreSQL that the settings name. Figures of two machines say nothing about each other."""
    connection = await asyncpg.connect(settings.owner_database_url)
    try:
        postgres = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": str(postgres),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
