"""What a phase costs at a provider: its parts, priced; beside what the design document says, and why they differ. Pure.

Of a provider that meters use, CPU is what the work takes on average, by the bench, and what idle processes take; memory of stores is all
they get, since PostgreSQL and the cache fill it. Of one that sells sizes, everything is what is reserved, whatever the load.
"""

import math
from collections.abc import Sequence
from datetime import date

from msgspec import Struct

from piggybank.capacity import cost, phases, prices, railway
from piggybank.capacity.outlook import MIB, RECENT_DAYS, WHOLE_DAY_MINUTES
from piggybank.capacity.phases import Phase
from piggybank.capacity.prices import HOURS_A_MONTH, Measured, Provider, Size, Spent
from piggybank.capacity.usage import Day

SECONDS_A_DAY = 86_400
DAYS_A_MONTH = 30
MIB_A_GIB = 1_024
SAME_WITHIN = 0.1  # of the design's figure


class Load(Struct, frozen=True, kw_only=True):
    """What is carried: of a phase at its full load, of so many users, or as measured."""

    users: int
    transactions_a_day: float
    database_gib: float


class Part(Struct, frozen=True, kw_only=True):
    """One line of a bill."""

    what: str
    usd_a_month: float
    of: str


class Projection(Struct, frozen=True, kw_only=True):
    """A month. `design_*`: the design document's figure for the phase at full load; `vcpus_*`: what the work alone takes."""

    provider: str
    phase: int
    users: int
    transactions_a_day: float
    usd_a_month: float
    usd_a_user: float
    design_usd_a_month: int
    design_usd_a_user: float
    vcpus_average: float
    vcpus_at_the_peak: float
    parts: list[Part]
    why: list[str]


class PriceDifference(Struct, frozen=True, kw_only=True):
    """A month of one phase and of another at a provider's prices of that day, each at its full load. Without tax."""

    provider: str
    title: str
    read_on: date
    usd_a_month_before: float
    usd_a_month_after: float
    usd_a_month: float
    usd_a_user_before: float
    usd_a_user_after: float

    def line(self) -> str:
        """In words."""
        before, after = round(self.usd_a_month_before), round(self.usd_a_month_after)
        a_month = f"${before:,} -> ${after:,} a month ({'-' if after < before else '+'}${abs(after - before):,})"
        a_user = f"${self.usd_a_user_before:.3f} -> ${self.usd_a_user_after:.3f} a user"
        return f"{a_month}; {a_user} at {self.title}, prices read on {self.read_on}"


def differences(current: int, target: int) -> list[PriceDifference]:
    """What a flip changes in the bill of each provider; none for a phase that is not built."""
    if not {current, target} <= set(phases.BUILT_PHASES):
        return []
    measured = prices.table().measured
    return [_difference(provider, phases.of(current), phases.of(target), measured) for provider in prices.table().provider]


def _difference(provider: Provider, here: Phase, there: Phase, measured: Measured) -> PriceDifference:
    before, after = (project(provider, phase, full(phase), measured) for phase in (here, there))
    return PriceDifference(
        provider=provider.name,
        title=provider.title,
        read_on=provider.read_on,
        usd_a_month_before=before.usd_a_month,
        usd_a_month_after=after.usd_a_month,
        usd_a_month=round(after.usd_a_month - before.usd_a_month, 2),
        usd_a_user_before=before.usd_a_user,
        usd_a_user_after=after.usd_a_user,
    )


def full(phase: Phase) -> Load:
    """What the phase is for."""
    return Load(users=phase.users, transactions_a_day=phase.transactions_a_day, database_gib=phase.database_gib)


def of_users(phase: Phase, users: int) -> Load:
    """So many users, each as busy as the phase's."""
    share = users / phase.users
    return Load(users=users, transactions_a_day=phase.transactions_a_day * share, database_gib=phase.database_gib * share)


def measured_load(days: Sequence[Day]) -> Load | None:
    """What an installation carries: a day's transactions as the mean of the last whole ones. None where that is not known."""
    users = next((day.users for day in reversed(days) if day.users is not None), None)
    size = next((day.database_bytes for day in reversed(days) if day.database_bytes is not None), None)
    whole = [day.transactions for day in days if day.minutes >= WHOLE_DAY_MINUTES][-RECENT_DAYS:]
    if users is None or size is None or not whole:
        return None
    return Load(users=users, transactions_a_day=sum(whole) / len(whole), database_gib=size / MIB / MIB_A_GIB)


def carries(users: int) -> int:
    """The lowest built phase for so many users; the highest where none is enough."""
    return next((number for number in phases.BUILT_PHASES if phases.of(number).users >= users), phases.BUILT_PHASES[-1])


def project(provider: Provider, phase: Phase, load: Load, measured: Measured) -> Projection:
    """What `load` costs in `phase` at `provider`."""
    here = railway.runs(phase) if provider.name == "railway" else phase
    average = _vcpus(measured, load.transactions_a_day / SECONDS_A_DAY)
    parts = [each for each in _parts(provider, here, load, measured) if each.usd_a_month]
    usd = max(provider.least_usd, sum(part.usd_a_month for part in parts))
    design = cost.of(phase.number)
    peak = _vcpus(measured, phase.tps_peak)
    return Projection(
        provider=provider.name,
        phase=phase.number,
        users=load.users,
        transactions_a_day=round(load.transactions_a_day, 1),
        usd_a_month=round(usd, 2),
        usd_a_user=round(usd / max(1, load.users), 4),
        design_usd_a_month=design.usd_a_month,
        design_usd_a_user=design.usd_a_user,
        vcpus_average=round(average.all_ms, 4),
        vcpus_at_the_peak=round(peak.all_ms, 2),
        parts=parts,
        why=[*_why(provider, phase, usd, parts, measured, average.all_ms, peak.all_ms), *_too_much(phase, load)],
    )


def reads_a_transaction() -> float:
    """The design sends so many of its queries to replicas; the rest are writes."""
    share = phases.limits().goal.replica_share
    return share / (1 - share)


def _vcpus(measured: Measured, transactions_a_second: float) -> Spent:
    """vCPUs that transactions and their reads keep busy, by who spends them (1,000 ms a second are one)."""
    reads = reads_a_transaction()

    def busy(write_ms: float, read_ms: float) -> float:
        return transactions_a_second * (write_ms + reads * read_ms) / 1_000

    write, read = measured.write_ms, measured.read_ms
    return Spent(
        server=busy(write.server, read.server), postgres=busy(write.postgres, read.postgres), valkey=busy(write.valkey, read.valkey)
    )


def _parts(provider: Provider, phase: Phase, load: Load, measured: Measured) -> list[Part]:
    servers = 1 + phase.replicas
    egress_gib = load.transactions_a_day * DAYS_A_MONTH * (1 + reads_a_transaction()) * measured.answer_bytes / 1024**3
    egress = max(0.0, egress_gib - provider.egress_free_gib)
    disk_gib = servers * load.database_gib
    return [
        *_apps(provider, phase, load, measured),
        *_stores(provider, phase, load, measured),
        *_extras(provider, phase),
        Part(what="disk", usd_a_month=round(disk_gib * provider.disk_gib_usd, 2), of=f"{servers} x {load.database_gib:,.1f} GiB"),
        Part(what="egress", usd_a_month=round(egress * provider.egress_gib_usd, 2), of=f"{egress_gib:,.1f} GiB"),
    ]


def _apps(provider: Provider, phase: Phase, load: Load, measured: Measured) -> list[Part]:
    idle, tasks = measured.idle_vcpus, provider.tasks
    if tasks is None:
        work = _vcpus(measured, load.transactions_a_day / SECONDS_A_DAY).server
        web = (work + phase.web * idle.web, phase.web * measured.web_gib)
        worker = (phase.worker * idle.worker, phase.worker * measured.worker_gib)
    else:
        web = (phase.web * tasks.web_vcpus, phase.web * tasks.web_gib)
        worker = (phase.worker * tasks.worker_vcpus, phase.worker * tasks.worker_gib)
    return [_by_unit(provider, "web", phase.web, *web), _by_unit(provider, "worker", phase.worker, *worker)]


def _by_unit(provider: Provider, what: str, count: int, vcpus: float, gib: float) -> Part:
    usd = vcpus * provider.app.vcpu_usd + gib * provider.app.gib_usd
    return Part(what=what, usd_a_month=round(usd, 2), of=f"{count} containers, {vcpus:.2f} vCPU and {gib:.1f} GiB together")


def _stores(provider: Provider, phase: Phase, load: Load, measured: Measured) -> list[Part]:
    servers, nodes = 1 + phase.replicas, phase.cache_masters + phase.cache_replicas
    memory_gib, node_gib = phase.postgres_memory_mib / MIB_A_GIB, phase.cache_memory_mib / MIB_A_GIB / nodes
    queues = 1 if phase.own_queue or provider.pays_for == "size" else 0  # ElastiCache: one policy an instance
    if provider.stores is None:
        database = _smallest(provider.database, phase.postgres_cpus, memory_gib)
        node, queue = _smallest(provider.cache, 1, node_gib), provider.cache[0]
        return [
            _whole("PostgreSQL", database, servers),
            _whole("cache", node, nodes),
            _whole("queue", queue, queues),
        ]
    unit, idle = provider.stores, measured.idle_vcpus
    work = _vcpus(measured, load.transactions_a_day / SECONDS_A_DAY)
    postgres, valkey = work.postgres + servers * idle.postgres, work.valkey + (nodes + queues) * idle.valkey
    gib, cache_gib = servers * memory_gib, nodes * node_gib
    return [
        Part(
            what="PostgreSQL",
            usd_a_month=round(postgres * unit.vcpu_usd + gib * unit.gib_usd, 2),
            of=f"{servers} x {memory_gib:g} GiB, {postgres:.2f} vCPU",
        ),
        Part(
            what="cache and queue",
            usd_a_month=round(valkey * unit.vcpu_usd + cache_gib * unit.gib_usd, 2),
            of=f"{cache_gib:g} GiB, {valkey:.2f} vCPU",
        ),
    ]


def _smallest(sizes: tuple[Size, ...], vcpus: float, gib: float) -> Size:
    """The cheapest that is large enough; the largest where none is."""
    enough = [size for size in sizes if size.vcpus >= vcpus and size.gib >= gib]
    return min(enough, key=lambda size: size.usd_an_hour) if enough else max(sizes, key=lambda size: size.gib)


def _whole(what: str, size: Size, count: int) -> Part:
    return Part(what=what, usd_a_month=round(count * size.usd_an_hour * HOURS_A_MONTH, 2), of=f"{count} x {size.name}")


def _extras(provider: Provider, phase: Phase) -> list[Part]:
    there = {"always": True, "replicas": phase.replicas > 0, "pooler": phase.pooled}
    return [
        Part(
            what=each.what,
            usd_a_month=round(each.count * (each.usd + each.vcpus * provider.app.vcpu_usd + each.gib * provider.app.gib_usd), 2),
            of=f"{each.count}",
        )
        for each in provider.extra
        if there[each.from_]
    ]


def _why(provider: Provider, phase: Phase, usd: float, parts: list[Part], measured: Measured, average: float, peak: float) -> list[str]:
    """Where the design's figure differs from ours, and what makes it so."""
    design, limits = cost.of(phase.number), phases.limits()
    largest = max(parts, key=lambda part: part.usd_a_month)
    share = largest.usd_a_month / sum(part.usd_a_month for part in parts)
    per = measured.write_ms.all_ms + reads_a_transaction() * measured.read_ms.all_ms
    workers = math.ceil(phase.tps_peak * limits.before.web_workers / limits.before.tps)
    said = [
        _compared(usd, design.usd_a_month),
        f"{largest.what} is {share:.0%} of it ({largest.of})",
        f"a transaction with {reads_a_transaction():g} reads takes {per:.2f} ms of CPU: {average:.3f} vCPU on average, {peak:.2f} at the"
        f" peak of {phase.tps_peak:,} a second; for that the design's Gunicorn needs {workers:,} workers",
    ]
    if provider.pays_for == "size":
        said.append(
            f"what is reserved is paid for, whatever the load; the design expects {limits.managed.cost_times_least} to"
            f" {limits.managed.cost_times_most} times its figure here: ${design.managed_usd_least:,} to ${design.managed_usd_most:,}"
        )
    return said


def _too_much(phase: Phase, load: Load) -> list[str]:
    """What is priced are the phase's servers, also for a load that they do not carry."""
    over = load.users > phase.users or load.transactions_a_day > phase.transactions_a_day
    most = f"{phase.users:,} users and {phase.transactions_a_day:,} transactions a day"
    return [f"phase {phase.number} is for {most}: it does not carry this"] if over else []


def _compared(usd: float, design: int) -> str:
    ratio = usd / design - 1
    if abs(ratio) <= SAME_WITHIN:
        return f"about the design's ${design:,}"
    return f"{abs(ratio):.0%} {'more' if ratio > 0 else 'less'} than the design's ${design:,}"
