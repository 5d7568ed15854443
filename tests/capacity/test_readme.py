"""The README's tables of the phases are made from the table."""

from pathlib import Path

from piggybank.capacity import cost, outlook, phases, usage
from piggybank.capacity.phases import Phase
from tests.capacity.test_outlook import MIB, NOW, history

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def short(number: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "K")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def up_to(count: int, most: int) -> str:
    return f"{count} to {most}" if most > count else str(count)


def row(phase: Phase) -> str:
    more = "+" if phase.open_ended else ""
    gib = phase.cache_memory_mib / 1_024
    cache = f"{gib:g} GiB" if gib >= 1 else f"{phase.cache_memory_mib} MiB"
    replicas = f" + {phase.replicas} replicas" if phase.replicas else ""
    adds = [
        f"PgBouncer {phase.pooler_clients:,} -> {phase.pooler_connections}" if phase.pooled else "",
        "a partition a month" if phase.partitions else "",
        "sharding by user, services" if phase.number not in phases.BUILT_PHASES else "",
    ]
    cells = [
        f"{phase.number} {phase.name}",
        f"`{phase.profile}`",
        f"{short(phase.users)}{more} users, {short(phase.transactions_a_day)}{more} tx/day, {phase.tps_peak:,}{more} TPS",
        up_to(phase.web, phase.web_max),
        up_to(phase.worker, phase.worker_max),
        f"{phase.postgres_cpus} vCPU, {phase.postgres_memory_mib // 1_024} GiB{replicas}",
        f"{cache}, {phase.cache_masters} + {phase.cache_replicas} nodes" if phase.clustered else cache,
        ", ".join(each for each in adds if each),
        cost.of(phase.number).text,
    ]
    return "| " + " | ".join(cells) + " |"


def phases_table() -> str:
    head = "| phase | profile | serves | web | worker | PostgreSQL | cache | more | a month |"
    return "\n".join([head, "|---" * 9 + "|", *(row(phase) for phase in phases.table())])


def test_the_table_of_the_phases() -> None:
    assert phases_table() in README, f"put this into README.md:\n{phases_table()}"


def test_what_is_said_beside_it() -> None:
    limits, text = phases.limits(), " ".join(README.split())
    first, last = cost.of(0), cost.of(phases.BUILT_PHASES[-1])
    for said in (
        f"${first.usd_a_user:g} a user in phase 0 and ${last.usd_a_user:g} in phase {last.phase}",
        f"{limits.managed.cost_times_least} to {limits.managed.cost_times_most} times as much",
        f"{limits.before.web_workers} Gunicorn workers did about {limits.before.tps} a second",
        f"kept {usage.KEPT_DAYS} days",
        f"a rollout's {limits.rollout.surge:.0%}",
        f"{phases.of(1).native_web} web processes with {phases.of(1).pool} connections each",
    ):
        assert said in text, said


def example() -> str:
    """What `piggybank capacity` prints for a month of growth."""
    days = history(
        30,
        users=lambda day: 100 + 20 * day,
        tps_peak=lambda day: 2 + day / 4,
        transactions=lambda day: 900 + 60 * day,
        connections=lambda day: 11 + day % 4,
        cache_used_bytes=lambda day: (12 + day // 2) * MIB,
        database_bytes=lambda day: (60 + 11 * day) * MIB,
    )
    return "\n".join(outlook.lines(outlook.outlook(0, days, NOW)))


def test_the_example() -> None:
    assert f"$ piggybank capacity\n{example()}\n" in README, f"put this into README.md:\n{example()}"
