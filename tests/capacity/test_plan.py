"""What a flip will do is said before it is done: changes, waits, costs, what stays, what is refused."""

import itertools
from datetime import date
from typing import Any

import msgspec
import pytest

from piggybank.capacity import cost, phases, plan, prices, projection
from piggybank.capacity.standing import Facts, Target

ROOMY = Facts(cores=16, memory_mib=65_536, pgbouncer=True)
OUTSIDE = Facts(target="external", cores=16, memory_mib=65_536, pgbouncer=True, replicas=2, cache_masters=3)
SMALL = Facts(cores=2, memory_mib=4_096, pgbouncer=True)
PLATFORMS: tuple[Target, ...] = ("compose", "helm", "railway", "ecs")
FULL = msgspec.structs.replace(ROOMY, database_mib=1_000, free_mib=2_655)


def changed(made: plan.Plan) -> dict[str, tuple[str, str]]:
    return {each.what: (each.before, each.after) for each in made.changes}


@pytest.mark.parametrize("facts", [ROOMY, OUTSIDE, SMALL, *(Facts(target=target) for target in PLATFORMS)])
@pytest.mark.parametrize(("current", "target"), list(itertools.permutations(phases.BUILT_PHASES, 2)))
def test_every_flip_between_built_phases_is_possible(facts: Facts, current: int, target: int) -> None:
    made = plan.plan(current, target, {}, facts)
    assert made.possible, made.refused
    assert made.changes
    assert made.rows_moved == 0
    assert made.settings["phase"] == target
    assert msgspec.json.decode(msgspec.json.encode(made), type=plan.Plan) == made
    text = "\n".join(plan.lines(made))
    assert f"phase {current}" in text
    assert f"{made.cost.line()}, by the design" in text
    assert [each.provider for each in made.prices] == prices.names()
    for each in made.prices:
        assert each.line() in text
        assert f"prices read on {prices.of(each.provider).read_on}" in each.line()


def test_a_flip_to_where_one_is_changes_nothing() -> None:
    made = plan.plan(2, 2, {}, ROOMY)
    assert (made.changes, made.write_pause_ms, made.cost.usd_a_month, made.refused) == ([], 0, 0, [])


def test_phase_1_adds_processes_with_smaller_pools() -> None:
    made = plan.plan(0, 1, {}, ROOMY)
    assert changed(made) == {
        "web processes": ("1", "6"),
        "worker processes": ("inside the web process", "2"),
        "pool": ("10 connections a process", "7 connections a process"),
        "PostgreSQL": ("8,192 MiB", "16,384 MiB"),
    }
    assert made.settings == {"phase": 1, "web_processes": 6, "worker_processes": 2, "pool_connections": 7}
    assert made.pauses == [plan.POSTGRES_RESTART]
    assert made.write_pause_ms == 1_200


def test_phase_2_adds_replicas_and_a_pooler() -> None:
    made = plan.plan(1, 2, {}, OUTSIDE)
    assert changed(made)["replicas"] == ("none", "2, reads go there")
    assert changed(made)["commit"] == ("on the primary's disk", "waits for 1 replica")
    assert changed(made)["pooler"] == ("none", "PgBouncer, 1,000 clients over 50 connections, transaction")
    assert made.pauses == []  # others' PostgreSQL is not started again


def test_phase_3_turns_months_on_once() -> None:
    made = plan.plan(2, 3, {}, OUTSIDE)
    assert changed(made)["transactions"] == ("one partition", "a partition a month")
    assert made.pauses == [plan.MONTHS]
    assert "cluster" not in changed(made)["cache"][0]
    assert "3 masters and 3 replicas" in changed(made)["cache"][1]
    again = plan.plan(2, 3, {}, msgspec.structs.replace(OUTSIDE, months_on=True))
    assert "transactions" not in changed(again)
    assert again.pauses == []


def test_down_from_3_keeps_the_months_and_empties_the_cache() -> None:
    made = plan.plan(3, 1, {}, msgspec.structs.replace(ROOMY, months_on=True, archived_months=2))
    assert "transactions" not in changed(made)
    assert made.rows_moved == 0
    said = " ".join(made.notes)
    for words in ("the months stay", "2 archived months stay readable", "the cache begins empty", "one copy again"):
        assert words in said
    assert made.cost.usd_a_month == 300 - 2_500


@pytest.mark.parametrize(
    ("target", "overrides", "facts", "said", "do"),
    [
        (2, {}, msgspec.structs.replace(ROOMY, pgbouncer=False), "PgBouncer is not installed", "apt-get install pgbouncer"),
        (2, {}, msgspec.structs.replace(OUTSIDE, replicas=1), "1 replicas are known", "replica_urls"),
        (2, {}, msgspec.structs.replace(OUTSIDE, pgbouncer=False), "no pooler is known", "pooler_url"),
        (3, {}, msgspec.structs.replace(OUTSIDE, cache_masters=1), "a cluster of 3", "cache_url"),
        (1, {"pool_connections": 20}, ROOMY, "PostgreSQL takes 100", "pool_connections to 7 or less"),
        (1, {}, msgspec.structs.replace(ROOMY, max_connections=60), "PostgreSQL takes 60", "pool_connections to 3 or less"),
        (2, {"pooler": "none"}, ROOMY, "PostgreSQL takes 100", "pool_connections to 3 or less"),
        (2, {"phase": 0}, ROOMY, "phase = 0 is set", "take it out"),
        (2, {}, FULL, "2 more of the database (1,000 MiB) need 2,656 MiB", "make room"),
    ],
)
def test_what_is_unsafe_is_refused_with_what_to_do(target: int, overrides: dict[str, Any], facts: Facts, said: str, do: str) -> None:
    made = plan.plan(1 if target > 1 else 0, target, overrides, facts)
    assert not made.possible
    assert [each for each in made.refused if said in each.what and do in each.do], made.refused
    assert any(line.startswith("REFUSED") for line in plan.lines(made))


@pytest.mark.parametrize(("free_mib", "copies"), [(2_656, 0), (1_456, 1), (0, 2)])
def test_only_copies_that_are_missing_need_room(free_mib: int, copies: int) -> None:
    assert plan.plan(1, 2, {}, msgspec.structs.replace(FULL, free_mib=free_mib, copies=copies)).possible


def test_phase_4_is_costed_and_refused_with_what_is_missing() -> None:
    made = plan.plan(3, 4, {}, OUTSIDE)
    assert [each.what.split()[1] for each in made.refused] == ["Citus", "a", "users,"]
    assert made.cost.after.text == "$5,000+"
    assert made.prices == []  # nobody knows what it would be made of
    assert len(plan.plan(3, 4, {}, msgspec.structs.replace(OUTSIDE, citus=True)).refused) == 2


def test_there_is_no_phase_5() -> None:
    with pytest.raises(ValueError, match="no phase 5"):
        plan.plan(0, 5, {}, ROOMY)


def test_what_the_operator_set_stays_and_is_listed() -> None:
    made = plan.plan(0, 2, {"web_processes": 3, "durability": "local", "pooler": "phase", "port": 9000}, ROOMY)
    assert [(each.setting, each.value, each.phase_wants) for each in made.overrides] == [
        ("web_processes", "3", "10"),
        ("durability", "local", "synchronous"),
        ("PostgreSQL MiB", "10922", "16384"),
    ]
    assert "web_processes" not in made.settings
    assert made.after.web == 3
    assert "durability = local: losing the primary may lose answered writes" in made.notes


def test_what_the_machine_is_too_small_for_is_listed_as_an_override() -> None:
    made = plan.plan(0, 3, {}, SMALL)
    assert {(each.setting, each.value) for each in made.overrides} == {
        ("web_processes", "2"),
        ("worker_processes", "1"),
        ("PostgreSQL MiB", "682"),
        ("cache MiB", "512"),
    }
    assert all("2 cores and 4,096 MiB" in each.because for each in made.overrides)
    tiny = plan.plan(0, 1, {}, msgspec.structs.replace(SMALL, cores=1, memory_mib=900))
    assert (tiny.after.web, tiny.after.worker) == (2, 1)


@pytest.mark.parametrize("phase", phases.table(), ids=lambda phase: f"phase {phase.number}")
def test_costs_are_the_tables(phase: phases.Phase) -> None:
    found = cost.of(phase.number)
    assert found.usd_a_month == phase.cost_usd_a_month
    assert found.usd_a_user == round(phase.cost_usd_a_month / phase.users, 3)
    assert (found.managed_usd_least, found.managed_usd_most) == (2 * found.usd_a_month, 3 * found.usd_a_month)
    assert cost.difference(phase.number, 0).usd_a_month == 110 - found.usd_a_month


def test_costs_are_said() -> None:
    assert cost.difference(0, 3).line() == "$110 -> $2,500 a month (+$2,390); $0.11 -> $0.025 a user at full load"
    assert cost.difference(4, 1).line() == "$5,000+ -> $300 a month (-$4,700); $0.025 -> $0.03 a user at full load"


def test_differences_are_those_of_the_bills() -> None:
    (found,) = [each for each in projection.differences(1, 2) if each.provider == "railway"]
    bills = [
        projection.project(prices.of("railway"), phases.of(number), projection.full(phases.of(number)), prices.table().measured).usd_a_month
        for number in (1, 2)
    ]
    assert [found.usd_a_month_before, found.usd_a_month_after] == bills
    assert found.usd_a_month == round(bills[1] - bills[0], 2)
    up = projection.PriceDifference(
        provider="p",
        title="P",
        read_on=date(2026, 1, 2),
        usd_a_user_before=0.0192,
        usd_a_user_after=0.015,
        usd_a_month_before=192.4,
        usd_a_month_after=1768.6,
        usd_a_month=1576.2,
    )
    assert up.line() == "$192 -> $1,769 a month (+$1,577); $0.019 -> $0.015 a user at P, prices read on 2026-01-02"
    down = msgspec.structs.replace(up, usd_a_month_before=200.0, usd_a_month_after=90.0, usd_a_month=-110.0)
    assert "$200 -> $90 a month (-$110)" in down.line()


def test_on_containers_the_phase_of_the_environment_stands_in_nobodys_way() -> None:
    """There the platform says it; on one machine it would win over what `phase apply` writes down."""
    for facts in (Facts(target=target) for target in PLATFORMS):
        assert plan.plan(0, 2, {"phase": 0}, facts).possible, facts.target
    assert not plan.plan(0, 2, {"phase": 0}, ROOMY).possible
