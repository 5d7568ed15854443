"""What a flip from one phase to another does, before anybody does it: pure, so the command that asks and the one that acts say the same."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from piggybank.capacity import connections, cost, phases, projection, railway
from piggybank.capacity.cost import Difference
from piggybank.capacity.phases import Phase
from piggybank.capacity.projection import PriceDifference
from piggybank.capacity.standing import HERE, Facts, Standing, standing
from piggybank.db import storage

OVERRIDES = ("web_processes", "worker_processes", "pool_connections", "pooler", "durability")  # settings that change what a phase is
_LABEL_WIDTH = 9


class Change(Struct, frozen=True, kw_only=True):
    """One thing that will be different."""

    what: str
    before: str
    after: str


class Pause(Struct, frozen=True, kw_only=True):
    """How long writes wait, and who says so. They wait, they do not fail: a batch is tried again for ten seconds."""

    what: str
    writes_ms: int
    source: str


class Override(Struct, frozen=True, kw_only=True):
    """What stays as it is, against the phase."""

    setting: str
    value: str
    phase_wants: str
    because: str


class Refusal(Struct, frozen=True, kw_only=True):
    """Why it must not be done, and what to do first."""

    what: str
    do: str


class Plan(Struct, frozen=True, kw_only=True):
    """From `current` to `target`. `settings`: what `phase.toml` will say; `refused`: empty where it may be done.

    `cost` is the design's, `prices` are those of providers, empty for a phase that is not built.
    """

    current: int
    target: int
    name: str
    profile: str
    changes: list[Change]
    rows_moved: int
    write_pause_ms: int
    pauses: list[Pause]
    cost: Difference
    prices: list[PriceDifference]
    settings: dict[str, int]
    overrides: list[Override]
    notes: list[str]
    refused: list[Refusal]
    before: Standing
    after: Standing

    @property
    def possible(self) -> bool:
        return not self.refused


MONTHS = Pause(
    what="`transactions` gets months",
    writes_ms=50,
    source="a prototype: 6,000 inserts a second, 1.5 million rows; a dump or a long read is waited for without holding up writes",
)
POSTGRES_RESTART = Pause(
    what="PostgreSQL starts again with other memory",
    writes_ms=1_200,
    source="measured: 800 to 1,200 ms on 2 cores with 1.5 million rows; a slow disk takes longer to write its checkpoint",
)
# What phase 4 needs and nobody has built.
BEYOND = (
    ("Citus 13 on the PostgreSQL servers, and a coordinator in front of them", "a managed Citus, or its packages"),
    ("a command that spreads the tables by `bucket`, the last byte of every id", "the tables are ready for it; the command is not built"),
    ("users, transactions, events and reports as services of their own", "not built: the rooms of the house are where to cut"),
)


def plan(current: int, target: int, overrides: Mapping[str, Any], facts: Facts) -> Plan:
    """What changes, what waits, what it costs, what stays, and what is refused and why.

    `overrides` are the settings that the operator chose (`piggybank.toml`, environment), by name; of them those in OVERRIDES and
    `phase` matter. Phases may be skipped and gone down; `current` may be `target`: then it tells what applying again would mend.
    """
    if not 0 <= target <= phases.LAST_PHASE:
        raise ValueError(f"there is no phase {target}: 0 to {phases.LAST_PHASE}")
    phase = phases.of(target)
    before, after = standing(phases.of(current), overrides, facts), standing(phase, overrides, facts)
    pauses = _pauses(before, after, facts)
    return Plan(
        current=current,
        target=target,
        name=phase.name,
        profile=phase.profile,
        changes=_changes(before, after, facts),
        rows_moved=0,  # months are metadata, replicas and clusters are filled beside
        write_pause_ms=sum(each.writes_ms for each in pauses),
        pauses=pauses,
        cost=cost.difference(current, target),
        prices=projection.differences(current, target),
        settings=_settings(after, overrides),
        overrides=_overrides(phase, after, overrides, facts),
        notes=_notes(before, after, facts),
        refused=_refused(phase, after, overrides, facts),
        before=before,
        after=after,
    )


def lines(made: Plan) -> list[str]:
    """The plan for people."""
    here, there = phases.of(made.current), phases.of(made.target)
    said = [
        f"phase {here.number} ({here.name}) -> phase {there.number} ({there.name}), profile {there.profile}",
        _line("serves", f"{_serves(here)} -> {_serves(there)}"),
    ]
    width = max((len(each.what) for each in made.changes), default=0)
    said += _block("changes", [f"{each.what:{width}}  {each.before} -> {each.after}" for each in made.changes] or ["nothing"])
    said += [_line("moves", f"{made.rows_moved} rows")]
    waits = [f"{each.writes_ms:,} ms: {each.what} ({each.source})" for each in made.pauses]
    said += _block("waits", waits or ["writes do not wait: processes are started again one after the other"])
    said += _block("costs", [*(each.line() for each in made.prices), f"{made.cost.line()}, by the design"])
    said += _block("stays", [f"{each.setting} = {each.value} (the phase: {each.phase_wants}): {each.because}" for each in made.overrides])
    said += _block("note", made.notes)
    said += _block("REFUSED", [f"{each.what}; {each.do}" for each in made.refused])
    return said


def _changes(before: Standing, after: Standing, facts: Facts) -> list[Change]:
    old, new = before.words(facts.target), after.words(facts.target)
    return [Change(what=what, before=old[what], after=new[what]) for what in new if old[what] != new[what]]


def _pauses(before: Standing, after: Standing, facts: Facts) -> list[Pause]:
    restarts = facts.target in ("native", "compose") and before.postgres_memory_mib != after.postgres_memory_mib
    return [*([POSTGRES_RESTART] if restarts else []), *([MONTHS] if after.months and not facts.months_on else [])]


def _settings(after: Standing, overrides: Mapping[str, Any]) -> dict[str, int]:
    wanted = {"phase": after.phase, "web_processes": after.web, "worker_processes": after.worker, "pool_connections": after.pool}
    return {name: value for name, value in wanted.items() if name not in overrides}


def _overrides(phase: Phase, after: Standing, overrides: Mapping[str, Any], facts: Facts) -> list[Override]:
    here = facts.target in HERE
    wanted: dict[str, Any] = {
        "web_processes": phase.native_web if here else phase.web,
        "worker_processes": phase.native_worker if here else phase.worker,
        "pool_connections": phase.pool,
        "pooler": "transaction" if phase.pooled else "none",
        "durability": "synchronous" if phase.replicas else overrides.get("durability"),
    }
    kept = [
        Override(setting=name, value=str(overrides[name]), phase_wants=str(wanted[name]), because="set by the operator")
        for name in OVERRIDES
        if name in overrides and overrides[name] not in (wanted[name], "phase")
    ]
    caps = (
        ("web_processes", after.web, wanted["web_processes"]),
        ("worker_processes", after.worker, wanted["worker_processes"]),
        ("PostgreSQL MiB", after.postgres_memory_mib, phase.postgres_memory_mib),
        ("cache MiB", after.cache_memory_mib, phase.cache_memory_mib),
    )
    if facts.target == "railway":
        there = [Override(**each._asdict()) for each in railway.differences(phase)]
        known = {each.setting for each in there}
        return there + [each for each in kept if each.setting not in known]
    because = f"this machine has {facts.cores} cores and {facts.memory_mib:,} MiB"
    return kept + [
        Override(setting=name, value=str(value), phase_wants=str(wants), because=because)
        for name, value, wants in caps
        if name not in overrides and value != wants
    ]


def _notes(before: Standing, after: Standing, facts: Facts) -> list[str]:
    notes = []
    if (before.cache_masters, before.cache_replicas) != (after.cache_masters, after.cache_replicas):
        notes.append("the cache begins empty: reads are slower for some seconds, and right")
    if before.phase > after.phase and after.months and not phases.of(after.phase).partitions:
        archived = f", and {facts.archived_months} archived months stay readable" if facts.archived_months else ""
        notes.append(f"the months stay: a partition a month does no harm below phase 3{archived}")
    if before.replicas and not after.replicas:
        notes.append("one copy again: losing the primary's disk loses what was written since the last archived WAL")
    if after.replicas and not after.synchronous and facts.target != "railway":
        notes.append("durability = local: losing the primary may lose answered writes")
    if after.replicas and facts.target == "native":
        notes.append("all copies are on this machine's disk: they carry load and a crash, not the loss of the machine")
    if facts.target in ("helm", "railway", "compose", "ecs"):
        notes.append(f"{facts.target} does it: `phase apply` prints the command")
    if facts.target == "railway":
        notes += railway.notes(phases.of(before.phase), phases.of(after.phase))
    return notes


def _refused(phase: Phase, after: Standing, overrides: Mapping[str, Any], facts: Facts) -> list[Refusal]:
    if phase.number not in phases.BUILT_PHASES:
        there = facts.citus
        return [Refusal(what=f"missing: {what}", do=do) for what, do in BEYOND if not (there and what.startswith("Citus"))]
    refused = []
    if facts.target in HERE and overrides.get("phase", phase.number) != phase.number:
        what = f"phase = {overrides['phase']} is set in piggybank.toml or the environment, and would win"
        refused.append(Refusal(what=what, do="take it out there; `phase apply` writes it down by itself"))
    if after.pooler != "none" and not facts.pgbouncer and facts.target == "native":
        refused.append(Refusal(what="PgBouncer is not installed", do="apt-get install pgbouncer; or set pooler = none"))
    if after.pooler == "transaction+prepared" and facts.pgbouncer and not facts.pgbouncer_prepares and facts.target == "native":
        what = "PgBouncer here is older than 1.21 and keeps no named statements"
        refused.append(Refusal(what=what, do="set pooler = transaction, or leave it to the phase"))
    if facts.free_mib is not None and facts.target == "native":
        missing = after.replicas - facts.copies
        if facts.free_mib < (needed := storage.needed_mib(facts.database_mib, missing)):
            what = f"{facts.free_mib:,} MiB are free, {missing} more of the database ({facts.database_mib:,} MiB) need {needed:,} MiB"
            refused.append(Refusal(what=what, do="make room on the disk of the data folder"))
    if facts.target == "external":
        refused += _missing_outside(phase, after, facts)
    where, surge = (railway.runs(phase), railway.SURGE) if facts.target == "railway" else (phase, None)
    pooled = after.pooler != "none"
    short = connections.shortages(where, after.most, max_connections=facts.max_connections, pooled=pooled, surge=surge)
    return refused + [Refusal(what=each.what, do=each.do) for each in short]


def _missing_outside(phase: Phase, after: Standing, facts: Facts) -> list[Refusal]:
    refused = []
    if facts.replicas < phase.replicas:
        what = f"{facts.replicas} replicas are known, the phase has {phase.replicas}: with one away a commit would wait for ever"
        refused.append(Refusal(what=what, do=f"set replica_urls to {phase.replicas} standbys that stream from the primary"))
    if after.pooler != "none" and not facts.pgbouncer:
        refused.append(Refusal(what="no pooler is known", do="set pooler_url to a PgBouncer in transaction mode; or set pooler = none"))
    if facts.cache_masters < phase.cache_masters:
        what = f"the cache has {facts.cache_masters} master, the phase a cluster of {phase.cache_masters}"
        refused.append(Refusal(what=what, do="set cache_url to a node of a Valkey or Redis cluster"))
    return refused


def _serves(phase: Phase) -> str:
    more = "+" if phase.open_ended else ""
    return f"{phase.users:,}{more} users, {phase.transactions_a_day:,}{more} transactions a day, {phase.tps_peak:,}{more} a second"


def _line(label: str, text: str) -> str:
    return f"{label:{_LABEL_WIDTH}} {text}"


def _block(label: str, texts: list[str]) -> list[str]:
    return [_line(label if number == 0 else "", text) for number, text in enumerate(texts)]
