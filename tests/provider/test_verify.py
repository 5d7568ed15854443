"""`verify` names what a provider's payments do not bear out."""

from uuid import UUID

from tests.provider.conftest import Desk


async def found_after(desk: Desk, change: str, back: str, *arguments: object) -> set[str]:
    """What is found after a change by SQL, which is taken back."""
    assert await desk.differences() == []
    await desk.sql.execute(change, *arguments)
    found = {finding.what for finding in await desk.differences()}
    await desk.sql.execute(back, *arguments)
    assert await desk.differences() == []
    return found


async def test_what_was_paid_given_back_and_charged_back(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.paid_deposit(account)
    payment_id = UUID(payment["id"])
    for column, what in (("paid", "paid"), ("refunded", "refunded"), ("charged_back", "charged back"), ("refunding", "being refunded")):
        change = f"UPDATE payments SET {column} = {column} + 1 WHERE id = $1"
        found = await found_after(desk, change, change.replace("+ 1", "- 1"), payment_id)
        assert found == {f"payment {payment_id}: {what}"}


async def test_a_row_without_its_effect_could_happen_twice(desk: Desk) -> None:
    payment = await desk.paid_deposit(await desk.account())
    change = "UPDATE effects SET transaction_id = '01900000-0000-7000-8000-000000000000' WHERE effect = $1"
    back = f"UPDATE effects SET transaction_id = '{payment['transaction_id']}' WHERE effect = $1"
    effect = f"purchase:{payment['provider_id']}:paid"
    found = await found_after(desk, change, back, effect)
    assert found == {"a deposit of the provider without its effect", f"the effect revio {effect}"}


async def test_a_hold_that_outlived_its_payout(desk: Desk) -> None:
    account = await desk.account(9_000)
    payment = await desk.withdraw(account, 1_000)
    await desk.work_through()
    change = "UPDATE payments SET held = 1 WHERE id = $1"
    found = await found_after(desk, change, "UPDATE payments SET held = 0 WHERE id = $1", UUID(payment["id"]))
    assert found == {"held", "ended payments that still hold"}


async def test_the_jobs_find_their_payments_by_their_own_indexes(desk: Desk) -> None:
    """However many holds wait for their own people."""
    await desk.sql.execute("SET enable_seqscan = off")
    for where, index in (
        ("status IN ('creating', 'pending') AND method = 'revio' AND kind IN ('withdrawal', 'refund')", "payments_to_send"),
        ("status IN ('creating', 'pending', 'processing', 'unknown') AND method = 'revio'", "payments_under_way"),
        ("status = 'completed' AND method = 'revio' AND paid <> amount", "payments_differing"),
    ):
        plan = await desk.sql.fetch(f"EXPLAIN SELECT id FROM payments WHERE {where} ORDER BY id LIMIT 6")
        assert index in " ".join(row[0] for row in plan)
    await desk.sql.execute("RESET enable_seqscan")
