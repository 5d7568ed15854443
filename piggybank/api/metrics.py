"""`GET /metrics`, for Prometheus: what all processes count (`metrics.py`), and what the last minute says (`capacity/figures.py`).

Read without a token from this machine or from `metrics_networks`, if the request came by no proxy: behind one everybody seems to be this
machine. Else with a key that has `metrics:read` (or `ops:read`). It answers while the database is away, without what is kept there.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

import piggybank
from piggybank import errors, metrics
from piggybank.capacity import figures, phases, usage
from piggybank.capacity.usage import Noted
from piggybank.db.engines import Database
from piggybank.settings import Settings

FIGURES_KEPT = timedelta(minutes=3)  # older ones are not of now: missing, and `NothingRecorded` fires


class _LastMinute(Collector):
    """As series; nothing where nobody wrote a minute down."""

    def __init__(self, noted: Noted | None, number: int) -> None:
        self._noted = noted
        self._phase = phases.of(number)

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        phase = self._phase
        yield InfoMetricFamily("app", "The program.", value={"version": piggybank.__version__})
        yield InfoMetricFamily("app_phase", "The phase.", value={"phase": str(phase.number), "name": phase.name, "profile": phase.profile})
        limits = GaugeMetricFamily(figures.LIMIT.name, figures.LIMIT.says, labels=[figures.LIMIT.label])
        for measure, limit in figures.limits(phase).items():
            limits.add_metric([measure], limit)
        yield limits
        if self._noted is None:
            return
        for gauge in figures.GAUGES:
            figure = self._noted.figures.get(gauge.name)
            if isinstance(figure, dict):
                family = GaugeMetricFamily(gauge.name, gauge.says, labels=[gauge.label])
                for label, value in figure.items():
                    family.add_metric([label], value)
                yield family
            elif figure is not None:
                yield GaugeMetricFamily(gauge.name, gauge.says, value=figure)
        missing = GaugeMetricFamily(figures.UNKNOWN.name, figures.UNKNOWN.says, labels=[figures.UNKNOWN.label, "reason"])
        for name, reason in self._noted.unknown.items():
            missing.add_metric([name, reason], 1)
        yield missing


@get("/metrics", include_in_schema=False)
async def read_metrics(db: Database, settings: Settings) -> Response[bytes]:
    """Prometheus's text format."""
    last = CollectorRegistry()
    last.register(_LastMinute(await _last(db), settings.phase))
    # files of all processes are read and added up, under a lock: no deposit waits for that
    counted = await asyncio.to_thread(generate_latest, metrics.all_processes())
    body = counted + generate_latest(last)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


async def _last(db: Database) -> Noted | None:
    now = datetime.now(UTC)
    try:
        async with db.read() as read:
            known = await usage.noted(read, now - FIGURES_KEPT - usage.MINUTE, now)
    except errors.DatabaseUnavailable:
        return None
    return known[-1][1] if known else None


routes = [read_metrics]
