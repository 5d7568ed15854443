"""Payments: pages, the filter, one of them, and nobody else's."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from piggybank import errors
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.wallet import payments

from .conftest import Past

START = datetime(2026, 1, 1, tzinfo=UTC)


async def test_pages_give_every_payment_once(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    made = [await past.payment(account_id, "completed", START + timedelta(seconds=number)) for number in range(11)]
    found = []
    cursor = None
    while True:
        page = await payments.page(db, cache, account_id, cursor=cursor, limit=4)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [payment.id for payment in found] == made[::-1]
    assert found[-1].created_at == START
    assert found[0].destination == {"iban": "X"}


async def test_status_and_open(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    for number, status in enumerate(payments.STATUSES):
        await past.payment(account_id, status, START + timedelta(seconds=number))
    for status in payments.STATUSES:
        assert [payment.status for payment in (await payments.page(db, cache, account_id, status=status)).items] == [status]
    found = await payments.page(db, cache, account_id, status=payments.OPEN)
    assert {payment.status for payment in found.items} == set(payments.STATUSES[:4])
    first = await payments.page(db, cache, account_id, status=payments.OPEN, limit=2)
    with pytest.raises(errors.InvalidRequest):
        await payments.page(db, cache, account_id, cursor=first.next_cursor)


async def test_somebody_elses_payments_do_not_exist(db: Database, cache: Cache, past: Past) -> None:
    owner, stranger = await past.user(), await past.user()
    account_id = await past.account(owner)
    payment_id = await past.payment(account_id, "pending", START)
    assert (await payments.one(db, cache, payment_id, only_user=owner)).amount == 100
    assert len((await payments.page(db, cache, account_id, only_user=owner)).items) == 1
    assert (await payments.page(db, cache, await past.account(owner), only_user=owner)).items == []
    with pytest.raises(errors.NotFound):
        await payments.one(db, cache, payment_id, only_user=stranger)
    with pytest.raises(errors.NotFound):
        await payments.page(db, cache, account_id, only_user=stranger)
    with pytest.raises(errors.NotFound):
        await payments.one(db, cache, uuid4())
