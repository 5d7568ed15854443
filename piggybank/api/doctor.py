"""What is wrong and what to do, as far as a web process can see it: for operators.

The whole of `piggybank doctor` needs the machine (its files, processes, ports); the checks of the stores need only their addresses. Several
people who look at once are one look, and it is kept for a while: each one opens connections of its own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from litestar import get
from msgspec import Meta, Struct

KEPT_S = 15.0
PATIENCE_S = 30.0

Result = Literal["ok", "warning", "broken"]
Examine = Callable[[], Awaitable[Sequence[tuple[str, Result, str, str]]]]


class Finding(Struct, frozen=True, kw_only=True):
    """What was looked at, what was found, and what to do about it."""

    name: str
    result: Result
    found: str
    do: Annotated[str, Meta(description="Empty where nothing is to be done.")]


class Findings(Struct, frozen=True, kw_only=True):
    """`says` where the rest is looked at."""

    looked_at: datetime
    worst: Result
    items: list[Finding]
    says: str = "Files, processes and ports are looked at by piggybank doctor, on the machine."


class Doctor:
    """One look at a time, by `examine`."""

    def __init__(self, examine: Examine) -> None:
        self._examine = examine
        self._one_look = asyncio.Lock()
        self._last: Findings | None = None
        self._until = 0.0

    async def findings(self) -> Findings:
        """The last look, or a new one when it is too old."""
        async with self._one_look:
            if self._last is None or time.monotonic() >= self._until:
                self._last = await self._look()
                self._until = time.monotonic() + KEPT_S
            return self._last

    async def _look(self) -> Findings:
        try:
            async with asyncio.timeout(PATIENCE_S):
                items = [Finding(name=name, result=result, found=found, do=do) for name, result, found, do in await self._examine()]
        except TimeoutError:
            what = f"the checks took longer than {PATIENCE_S:.0f} s"
            items = [Finding(name="doctor", result="broken", found=what, do="look with piggybank doctor, on the machine")]
        results = {item.result for item in items}
        worst: Result = "broken" if "broken" in results else "warning" if "warning" in results else "ok"
        return Findings(looked_at=datetime.now(UTC), worst=worst, items=items)


@get("/v1/ops/doctor", tags=["operations"], summary="What is wrong, and what to do")
async def get_findings(doctor: Doctor) -> Findings:
    """Checks of the database, the cache, the queue, this machine's disk and memory."""
    return await doctor.findings()


routes = [get_findings]
