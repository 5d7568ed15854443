"""The inbox: signed or refused, kept once, applied whenever, replayable for ever."""

import asyncio
import base64
import json
import random
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from piggybank.jobs import revio as jobs
from piggybank.wallet import inbox, provider
from tests.provider.conftest import Desk, Object

MUTATIONS = 1_000
SEED = 20_261_124


class Signer:
    """A key pair of a webhook that was registered by hand."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        encoded = self._key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.pem = encoded.decode()

    def sign(self, body: bytes) -> str:
        return base64.b64encode(self._key.sign(body, padding.PKCS1v15(), hashes.SHA256())).decode()


@pytest.fixture(scope="module")
async def signer(desk: Desk) -> Signer:
    made = Signer()
    async with desk.work.db.write() as write:
        assert await provider.add_key(write, "simulator", made.pem)
    await asyncio.sleep(provider.KEYS_AGAIN_S)  # a server that has just looked looks again after that
    return made


async def send(desk: Desk, body: bytes, signature: str | None, path: str = "/v1/revio/events") -> tuple[int, Object]:
    headers = {b"Content-Type": b"application/json"} | ({b"X-Signature": signature.encode("latin-1")} if signature is not None else {})
    answer = await desk.http.post(path, content=body, headers=headers)
    found: Object = answer.json()
    return answer.status_code, found


def paid_event(payment: Object, /, **changes: Any) -> Object:
    """`purchase.paid`, as the provider would send it."""
    now = int(time.time())
    return {
        "id": payment["provider_id"],
        "type": "purchase",
        "event_type": "purchase.paid",
        "status": "paid",
        "status_history": [{"status": "created", "timestamp": now}, {"status": "paid", "timestamp": now}],
        "updated_on": now,
        "reference": payment["id"],
        "is_test": True,
        "payment": {"amount": payment["amount"], "currency": "ZAR", "payment_type": "purchase", "is_outgoing": False, "fee_amount": 0},
        **changes,
    }


async def kept(desk: Desk) -> int:
    count: int = await desk.sql.fetchval("SELECT count(*) FROM provider_events")
    return count


async def test_a_signed_event_is_kept_once_and_credits_once(desk: Desk, signer: Signer) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 3_000)
    body = json.dumps(paid_event(payment)).encode()
    assert await send(desk, body, signer.sign(body)) == (200, {"new": True})
    for _ in range(3):
        assert await send(desk, body, signer.sign(body)) == (200, {"new": False})
    assert await desk.balance(account) == (0, 0, 0)  # nothing is applied while it is answered
    await desk.work_through()
    assert await desk.balance(account) == (3_000, 0, 0)


async def test_none_of_a_thousand_mutations_is_accepted(desk: Desk, signer: Signer) -> None:
    """Bits, truncation, additions, JSON written again, other keys, other signatures."""
    account = await desk.account()
    payment = await desk.deposit(account, 5_000)
    event = paid_event(payment)
    body = json.dumps(event).encode()
    signature = signer.sign(body)
    stranger = Signer()
    chance = random.Random(SEED)
    before = await kept(desk)

    def mutated(number: int) -> tuple[bytes, str | None]:  # noqa: PLR0911 - a way each
        match number % 10:
            case 0:  # a bit of the body
                place = chance.randrange(len(body))
                return body[:place] + bytes([body[place] ^ (1 << chance.randrange(8))]) + body[place + 1 :], signature
            case 1:
                return body[: chance.randrange(len(body))], signature
            case 2:  # the same JSON, written again
                ways: list[dict[str, Any]] = [{"indent": 1}, {"separators": (",", ":")}, {"sort_keys": True}, {"indent": 3}]
                again = json.dumps(event, **chance.choice(ways)).encode() + b" " * chance.randrange(50)
                return again, signature
            case 3:
                return body, stranger.sign(body)
            case 4:  # another amount
                changed = paid_event(payment, payment=event["payment"] | {"amount": chance.randrange(6_000, 10**9)})
                return json.dumps(changed).encode(), signature
            case 5:  # a bit of the signature
                raw = bytearray(base64.b64decode(signature))
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
                return body, base64.b64encode(raw).decode()
            case 6:  # cut, doubled, not base64, nothing
                cut = signature[: chance.randrange(len(signature))]
                return body, chance.choice([cut, signature * 2, "é".encode().decode("latin-1"), "", "=" * 8, "a" * 5_000, None])
            case 7:  # of another body
                other = json.dumps(paid_event(payment, reference=str(uuid4()))).encode()
                return body + b"\n" * chance.randrange(1, 9), chance.choice([signature, signer.sign(other)])
            case 8:  # PKCS1 over the wrong hash: the signature of a hash, hexadecimal, upside down
                return body, chance.choice([signature.swapcase(), base64.b64decode(signature).hex(), signature[::-1]])
            case _:  # swapped keys: made by the right one, of what a stranger wrote
                own = json.dumps(paid_event(payment, id=str(uuid4()))).encode()
                return own, stranger.sign(own)

    answers: list[tuple[int, Object]] = []
    for first in range(0, MUTATIONS, 20):
        cases = [mutated(number) for number in range(first, first + 20)]
        assert all((one, given) != (body, signature) for one, given in cases)
        answers += await asyncio.gather(*(send(desk, one, given) for one, given in cases))
    assert {status for status, _ in answers} == {401}
    assert {answer["code"] for _, answer in answers} == {"bad_signature"}
    assert len(answers) == MUTATIONS
    assert await kept(desk) == before
    await desk.work_through()
    assert await desk.balance(account) == (0, 0, 0)
    status = (await desk.http.get("/v1/ops/status")).json()
    assert status["provider"]["wrong_signatures"] >= MUTATIONS
    assert (await send(desk, body, signature))[0] == 200  # and the right one still is
    await desk.work_through()
    assert await desk.balance(account) == (5_000, 0, 0)


async def test_replayed_to_another_route_it_is_at_most_a_hint(desk: Desk, signer: Signer) -> None:
    """A signed body at the unsigned route posts nothing, and does not take the place of the signed one."""
    account = await desk.account()
    payment = await desk.deposit(account, 4_000)
    body = json.dumps(paid_event(payment)).encode()
    signature = signer.sign(body)
    assert (await send(desk, body, signature, "/v1/revio/eft/guessed"))[0] == 404
    for path in ("/v1/users", "/v1/sessions", "/v1/transfers", f"/v1/accounts/{account}/deposits"):
        assert (await send(desk, body, signature, path))[0] in (400, 401, 403)
    assert await inbox.receive(desk.work.db, "simulator", body, signed=False)
    await desk.work_through()
    assert await desk.balance(account) == (0, 0, 0)
    hint = (await desk.http.get("/v1/ops/provider-events", params={"status": "hint", "object_id": payment["provider_id"]})).json()["items"][
        0
    ]
    refused = await desk.http.post(f"/v1/ops/provider-events/{hint['id']}/replay", headers=await desk.as_operator())
    assert (refused.status_code, refused.json()["code"]) == (409, "not_replayable")
    assert await send(desk, body, signature) == (200, {"new": True})
    await desk.work_through()
    assert await desk.balance(account) == (4_000, 0, 0)


async def test_keys_change_while_events_come(desk: Desk) -> None:
    """The old key's events and the new key's are both good; a key that is removed is not."""
    old, new = Signer(), Signer()
    bodies = [json.dumps({"event_type": "purchase.viewed", "id": uuid4().hex, "type": "purchase"}).encode() for _ in range(4)]
    async with desk.work.db.write() as write:
        await provider.add_key(write, "simulator", old.pem)
    await asyncio.sleep(provider.KEYS_AGAIN_S)
    assert (await send(desk, bodies[0], old.sign(bodies[0])))[0] == 200
    assert (await send(desk, bodies[1], new.sign(bodies[1])))[0] == 401
    async with desk.work.db.write() as write:
        await provider.add_key(write, "simulator", new.pem)
    await asyncio.sleep(provider.KEYS_AGAIN_S)
    assert (await send(desk, bodies[1], new.sign(bodies[1])))[0] == 200
    assert (await send(desk, bodies[2], old.sign(bodies[2])))[0] == 200


async def test_the_simulators_key_changes_and_its_events_come_through(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 1_100)
    await desk.act("rotate-key")
    await jobs.look_after_webhook(desk.work)
    await asyncio.sleep(provider.KEYS_AGAIN_S)  # the harness hurries the provider's retries, which else take hours
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    assert await desk.balance(account) == (1_100, 0, 0)


async def test_what_comes_before_we_know_it_is_matched_later(desk: Desk, signer: Signer) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 2_200)
    await desk.sql.execute("UPDATE payments SET method = 'direct', provider = NULL WHERE id = $1", UUID(payment["id"]))  # not known yet
    body = json.dumps(paid_event(payment)).encode()
    await send(desk, body, signer.sign(body))
    await desk.work_through()
    listed = (await desk.http.get("/v1/ops/provider-events", params={"status": "unmatched"})).json()["items"]
    event = next(one for one in listed if (one["object_id"], one["event_type"]) == (payment["provider_id"], "purchase.paid"))
    assert event["note"] == "no payment of ours has this reference or this id"
    assert event["body"] is None  # for a key
    path, operator = f"/v1/ops/provider-events/{event['id']}", await desk.as_operator()
    assert (await desk.http.get(path)).json() == event
    whole = (await desk.http.get(path, headers=operator)).json()
    assert json.loads(whole["body"]) == json.loads(body)
    assert whole | {"body": None} == event
    asked = {"status": "unmatched", "object_id": payment["provider_id"]}
    found = (await desk.http.get("/v1/ops/provider-events", params=asked, headers=operator)).json()["items"]
    assert [one for one in found if one["event_type"] == "purchase.paid"] == [whole]  # the simulator tells of its making, too
    await desk.sql.execute("UPDATE payments SET method = 'revio', provider = 'simulator' WHERE id = $1", UUID(payment["id"]))
    await desk.hurry()
    await desk.work_through()
    assert await desk.balance(account) == (2_200, 0, 0)


async def test_what_is_none_of_ours_is_dismissed_once_and_by_an_operator(desk: Desk, signer: Signer) -> None:
    foreign = [json.dumps(paid_event({"provider_id": str(uuid4()), "id": str(uuid4()), "amount": 300})).encode() for _ in range(2)]
    for body in foreign:
        assert (await send(desk, body, signer.sign(body)))[0] == 200
    await desk.work_through()
    operator = await desk.as_operator()

    async def unmatched() -> dict[str, Object]:
        listed = (await desk.http.get("/v1/ops/provider-events", params={"status": "unmatched"}, headers=operator)).json()["items"]
        return {event["object_id"]: event for event in listed}

    event, other = [(await unmatched())[json.loads(body)["id"]] for body in foreign]
    path, said = f"/v1/ops/provider-events/{event['id']}/dismiss", {"note": "Of another shop, paid back"}
    assert (await desk.http.post(path, json=said)).status_code == 403  # a key, with every scope
    for nothing in ({}, {"note": ""}, {"note": "x" * 501}, {**said, "status": "applied"}):
        assert (await desk.http.post(path, json=nothing, headers=operator)).status_code == 400
    answers = await asyncio.gather(*(desk.http.post(path, json=said, headers=operator) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    for answer in answers:
        if answer.status_code == 200:
            assert (answer.json()["status"], answer.json()["note"]) == ("ignored", "dismissed: Of another shop, paid back")
        else:
            assert (answer.json()["code"], answer.json()["status"], answer.json()["event_status"]) == ("not_unmatched", 409, "ignored")
    written = await desk.sql.fetch("SELECT details FROM audit_log WHERE target = $1", f"provider_event:{event['id']}")
    assert [json.loads(row["details"]) for row in written] == [said | {"was": event["note"]}]
    left = await unmatched()
    assert other["object_id"] in left  # the next one is still told of
    assert event["object_id"] not in left
    await desk.hurry()
    await inbox.retry_unmatched(desk.work.db, "simulator")
    await desk.work_through()
    assert event["object_id"] not in await unmatched()
    assert (await desk.http.post(f"/v1/ops/provider-events/{uuid4()}/dismiss", json=said, headers=operator)).status_code == 404


@pytest.mark.parametrize("matched", [False, True])
async def test_dismissed_while_a_job_has_it_in_hand_it_stays_so_unless_it_was_ours(desk: Desk, signer: Signer, *, matched: bool) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 1_300)
    event = paid_event(payment) if matched else paid_event({"provider_id": str(uuid4()), "id": str(uuid4()), "amount": 1_300})
    await desk.sql.execute("UPDATE payments SET method = 'direct', provider = NULL WHERE id = $1", UUID(payment["id"]))  # not known yet
    body = json.dumps(event).encode()
    await send(desk, body, signer.sign(body))
    await desk.work_through()
    row = await desk.sql.fetchrow("SELECT id FROM provider_events WHERE object_id = $1 AND event_type = 'purchase.paid'", event["id"])
    path = f"/v1/ops/provider-events/{row['id']}/dismiss"
    answer = await desk.http.post(path, json={"note": "none of ours"}, headers=await desk.as_operator())
    assert answer.status_code == 200, answer.text
    await desk.sql.execute("UPDATE payments SET method = 'revio', provider = 'simulator' WHERE id = $1", UUID(payment["id"]))
    await desk.sql.execute("UPDATE provider_events SET due_at = now() WHERE id = $1", row["id"])  # claimed before it was dismissed
    await desk.work_through()
    status = await desk.sql.fetchval("SELECT status FROM provider_events WHERE id = $1", row["id"])
    assert status == ("applied" if matched else "ignored")
    assert await desk.balance(account) == (1_300 if matched else 0, 0, 0)


async def test_replayed_after_a_year_it_counts_once(desk: Desk, signer: Signer) -> None:
    """Idempotency keys are long gone by then; effects are not."""
    account = await desk.account()
    payment = await desk.deposit(account, 900)
    body = json.dumps(paid_event(payment)).encode()
    await send(desk, body, signer.sign(body))
    await desk.work_through()
    await desk.sql.execute("DELETE FROM idempotency_keys")
    event = (await desk.http.get("/v1/ops/provider-events", params={"payment_id": payment["id"], "status": "applied"})).json()["items"][0]
    operator = await desk.as_operator()
    answers = await asyncio.gather(*(desk.http.post(f"/v1/ops/provider-events/{event['id']}/replay", headers=operator) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert await desk.balance(account) == (900, 0, 0)
    recorded = await desk.sql.fetchval(
        "SELECT count(*) FROM audit_log WHERE action = 'provider_event.replay' AND target LIKE $1", f"%{event['id']}"
    )
    assert recorded == 5


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"is_test": False}, "a real object, and this installation's provider is simulator"),
        ({"payment": {"amount": 5, "currency": "USD"}}, "paid in USD, the account is in ZAR"),
        ({"payment": {"amount": -5, "currency": "ZAR"}}, "an amount of -5"),
        ({"payment": {"amount": 0, "currency": "ZAR"}}, "an amount of 0"),
        ({"payment": {"amount": 2**60, "currency": "ZAR"}}, f"an amount of {2**60}"),
        ({"payment": {"amount": 5, "currency": "ZAR", "fee_amount": -1}}, "a fee of -1"),
        ({"payment": {"amount": "5", "currency": "ZAR"}}, "cannot be read"),
        ({"payment": {"amount": 5.5, "currency": "ZAR"}}, "cannot be read"),
        ({"type": "payout"}, "a payout about a deposit"),
        ({"type": "payment", "event_type": "payment.surprised"}, "a payment of the kind"),
    ],
)
async def test_what_cannot_be_posted_is_listed_with_its_reason(desk: Desk, signer: Signer, changes: Object, note: str) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 700)
    body = json.dumps(paid_event(payment, **changes)).encode()
    assert (await send(desk, body, signer.sign(body)))[0] == 200
    await desk.work_through()
    events = (await desk.http.get("/v1/ops/provider-events", params={"object_id": payment["provider_id"], "status": "unmatched"})).json()
    assert [event["note"][: len(note)] for event in events["items"]] == [note]
    assert await desk.balance(account) == (0, 0, 0)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"event_type": 7}', b'{"event_type": "billing.x"}', b"[" * 5_000]
)
async def test_signed_nonsense_is_kept_and_ignored(desk: Desk, signer: Signer, body: bytes) -> None:
    assert (await send(desk, body, signer.sign(body)))[0] == 200
    await desk.work_through()
    assert await desk.sql.fetchval("SELECT status FROM provider_events WHERE body = $1", body) == "ignored"


async def test_a_body_that_is_too_large_is_refused(desk: Desk, signer: Signer) -> None:
    body = b'{"event_type":"' + b"x" * inbox.BODY_MAX_BYTES + b'"}'
    status, answer = await send(desk, body, signer.sign(body))
    assert (status, answer["code"]) == (413, "payload_too_large")


async def test_a_job_that_died_in_its_middle_leaves_nothing_behind(desk: Desk, signer: Signer) -> None:
    """Its lease runs out, and another one takes the event."""
    account = await desk.account()
    payment = await desk.deposit(account, 600)
    await desk.work_through()
    body = json.dumps(paid_event(payment)).encode()
    await send(desk, body, signer.sign(body))
    await desk.sql.execute("UPDATE provider_events SET due_at = now() + interval '1 minute' WHERE body = $1", body)  # claimed, then killed
    assert await jobs.apply_events(desk.work) == 0
    await desk.hurry()
    await desk.work_through()
    assert await desk.balance(account) == (600, 0, 0)


async def test_an_event_that_nobody_would_take_is_found(desk: Desk, signer: Signer) -> None:
    body = json.dumps({"event_type": "purchase.viewed", "id": "stuck", "type": "purchase"}).encode()
    await send(desk, body, signer.sign(body))
    await desk.sql.execute("UPDATE provider_events SET due_at = NULL WHERE body = $1", body)
    assert await jobs.apply_events(desk.work) == 0
    assert await jobs.unstick_events(desk.work) == 1
    await desk.work_through()
    assert await desk.sql.fetchval("SELECT status FROM provider_events WHERE body = $1", body) != "new"


async def test_pages_of_events(desk: Desk) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = (await desk.http.get("/v1/ops/provider-events", params=query)).json()
        seen += [event["id"] for event in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen)) == await kept(desk)
    assert (await desk.http.get(f"/v1/ops/provider-events/{seen[0]}")).json()["id"] == seen[0]
    assert (await desk.http.get(f"/v1/ops/provider-events/{uuid4()}")).status_code == 404


async def test_the_book_is_right(desk: Desk) -> None:
    await desk.work_through()
    assert await desk.differences() == []
