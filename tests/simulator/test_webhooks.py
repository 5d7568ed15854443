"""Webhooks: their keys, their order, their patience."""

import base64
from collections import Counter

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.simulator.conftest import Simulator, until
from tests.simulator.receivers import Delivery, Receiver


def is_signed(delivery: Delivery, public_key: str) -> bool:
    """As an integrator checks it."""
    key = serialization.load_pem_public_key(public_key.encode())
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 2048
    try:
        key.verify(base64.b64decode(delivery.signature or "", validate=True), delivery.raw, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


async def counts(simulator: Simulator) -> dict[str, int]:
    found: dict[str, int] = await simulator.get("/_sim/deliveries")
    return found


async def test_signed_with_the_webhooks_own_key(simulator: Simulator, receiver: Receiver) -> None:
    one = await simulator.webhook(f"{receiver.url}/one")
    two = await simulator.webhook(f"{receiver.url}/two")
    made = await simulator.purchase()
    await until(lambda: len(receiver.of(made["id"])) == 2)
    by_path = {delivery.path: delivery for delivery in receiver.of(made["id"])}
    assert by_path["/one"].raw == by_path["/two"].raw
    assert is_signed(by_path["/one"], one["public_key"])
    assert is_signed(by_path["/two"], two["public_key"])
    assert not is_signed(by_path["/one"], two["public_key"])
    raw = by_path["/one"].raw
    assert raw == raw.strip()
    assert b": " not in raw  # compact: who encodes it anew gets other bytes
    body = by_path["/one"].body
    assert body.pop("event_type") == "purchase.created"
    assert body == made


async def test_success_callback_is_signed_with_the_companys_key(simulator: Simulator, receiver: Receiver) -> None:
    paid = await simulator.paid(success_callback=f"{receiver.url}/callback")
    await until(lambda: receiver.types_of(paid["id"]) == ["purchase.paid"])
    assert is_signed(receiver.of(paid["id"])[0], await simulator.get("/api/v1/public_key/"))


async def test_only_the_events_that_were_asked_for(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(f"{receiver.url}/some", "purchase.paid", "payout.created")
    await simulator.webhook(f"{receiver.url}/all")
    paid = await simulator.paid()
    payout = await simulator.payout()
    await until(lambda: len(receiver.deliveries) == 5)
    assert Counter((found.path, found.event_type) for found in receiver.of(paid["id"])) == Counter(
        [("/all", "purchase.created"), ("/all", "purchase.paid"), ("/some", "purchase.paid")]
    )
    assert {found.path for found in receiver.of(payout["id"])} == {"/some", "/all"}


async def test_in_order_for_each_object_while_others_go_on(simulator: Simulator, receiver: Receiver) -> None:
    """A receiver that refuses one event blocks that object, and no other."""
    refusing = True
    blocked = await simulator.purchase()
    receiver.answer = lambda delivery: 500 if refusing and delivery.object_id == blocked["id"] else 200
    await simulator.webhook(receiver.url)
    await simulator.post(f"/_sim/purchases/{blocked['id']}/decline")
    await simulator.post(f"/_sim/purchases/{blocked['id']}/pay")
    other = await simulator.paid()
    await until(lambda: receiver.types_of(other["id"]) == ["purchase.created", "purchase.paid"])
    await until(lambda: len(receiver.of(blocked["id"])) >= 2)
    assert set(receiver.types_of(blocked["id"])) == {"purchase.payment_failure"}
    refusing = False
    await simulator.post("/_sim/deliver-now")
    await until(lambda: "purchase.paid" in receiver.types_of(blocked["id"]))
    assert receiver.types_of(blocked["id"])[-2:] == ["purchase.payment_failure", "purchase.paid"]
    assert len({delivery.raw for delivery in receiver.of(blocked["id"])}) == 2  # a try more, the same bytes


@pytest.mark.parametrize("status", [500, 302, 401, 404])
async def test_eight_retries_then_given_up_and_the_next_event_comes(simulator: Simulator, receiver: Receiver, status: int) -> None:
    await simulator.webhook(receiver.url, "purchase.created", "purchase.paid")
    receiver.answer = lambda delivery: status if delivery.event_type == "purchase.created" else 200
    before = await counts(simulator)
    paid = await simulator.paid()

    async def is_delivered() -> bool:
        await simulator.post("/_sim/deliver-now")
        return "purchase.paid" in receiver.types_of(paid["id"])

    await until(is_delivered)
    assert receiver.types_of(paid["id"]) == ["purchase.created"] * 9 + ["purchase.paid"]

    async def is_counted() -> bool:
        after = await counts(simulator)
        return (after["given_up"] - before["given_up"], after["delivered"] - before["delivered"]) == (1, 1)

    await until(is_counted)
    newest = (await simulator.get("/api/v1/webhooks/deliveries/"))["results"][:2]
    assert [(found["event_type"], found["status"], found["attempts"]) for found in newest] == [
        ("purchase.paid", "delivered", 1),
        ("purchase.created", "given_up", 9),
    ]
    assert newest[1]["last_answer"] == str(status)


async def test_nobody_there_is_a_try_too(simulator: Simulator, receiver: Receiver) -> None:
    gone = Receiver()
    gone.close()
    hook = await simulator.webhook(gone.url)
    made = await simulator.purchase()

    async def is_tried() -> bool:
        newest = (await simulator.get("/api/v1/webhooks/deliveries/"))["results"][0]
        return newest["object_id"] == made["id"] and newest["attempts"] > 0 and "ConnectError" in newest["last_answer"]

    await until(is_tried)
    changed = await simulator.http.patch(f"/api/v1/webhooks/{hook['id']}/", json={"callback": receiver.url})
    assert changed.json()["callback"] == receiver.url
    await simulator.post("/_sim/deliver-now")
    await until(lambda: receiver.types_of(made["id"]) == ["purchase.created"])
    assert is_signed(receiver.of(made["id"])[0], hook["public_key"])


async def test_rotated_keys_sign_what_is_sent_from_now_on(simulator: Simulator, receiver: Receiver) -> None:
    hook = await simulator.webhook(receiver.url)
    receiver.answer = lambda _: 503
    made = await simulator.purchase()
    await until(lambda: len(receiver.of(made["id"])) >= 1)
    assert is_signed(receiver.of(made["id"])[0], hook["public_key"])
    rotated = await simulator.post("/_sim/rotate-key")
    (fresh,) = [found["public_key"] for found in rotated["webhooks"] if found["id"] == hook["id"]]
    assert fresh != hook["public_key"]
    assert (await simulator.get(f"/api/v1/webhooks/{hook['id']}/"))["public_key"] == fresh
    receiver.answer = lambda _: 200
    paid = await simulator.post(f"/_sim/purchases/{made['id']}/pay")
    await simulator.post("/_sim/deliver-now")
    await until(lambda: receiver.types_of(paid["id"])[-1] == "purchase.paid")
    for delivery in receiver.of(made["id"])[-2:]:  # the old event too
        assert is_signed(delivery, fresh)


async def test_deleted_webhooks_get_nothing_more(simulator: Simulator, receiver: Receiver) -> None:
    hook = await simulator.webhook(receiver.url)
    receiver.answer = lambda _: 500
    made = await simulator.purchase()
    await until(lambda: len(receiver.of(made["id"])) >= 1)
    before = await counts(simulator)
    assert (await simulator.http.delete(f"/api/v1/webhooks/{hook['id']}/")).status_code == 204
    after = await counts(simulator)
    assert (before["waiting"] - after["waiting"], after["given_up"] - before["given_up"]) == (1, 1)
    assert (await simulator.http.get(f"/api/v1/webhooks/{hook['id']}/")).status_code == 404
    assert (await simulator.http.delete(f"/api/v1/webhooks/{hook['id']}/")).status_code == 404


async def test_webhooks_are_listed_and_changed(simulator: Simulator) -> None:
    hook = await simulator.webhook("http://127.0.0.1:9/a", "purchase.paid")
    assert (hook["type"], hook["all_events"], hook["events"], hook["is_test"]) == ("webhook", False, ["purchase.paid"], True)
    listed = await simulator.get("/api/v1/webhooks/")
    assert (listed["next"], listed["previous"]) == (None, None)
    assert hook in listed["results"]
    body = {"title": "new", "all_events": True, "callback": "http://127.0.0.1:9/b"}
    changed: httpx.Response = await simulator.http.put(f"/api/v1/webhooks/{hook['id']}/", json=body)
    assert (changed.json()["title"], changed.json()["all_events"], changed.json()["callback"]) == ("new", True, "http://127.0.0.1:9/b")
    assert changed.json()["public_key"] == hook["public_key"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"callback": "ftp://a"}, "callback"),
        ({"events": ["purchase.nothing"]}, "events"),
        ({"events": []}, "events"),
    ],
)
async def test_a_webhook_that_is_wrong(simulator: Simulator, change: dict[str, object], field: str) -> None:
    body = {"title": "x", "all_events": False, "events": ["purchase.paid"], "callback": "http://127.0.0.1:9/"}
    assert list(await simulator.refused("/api/v1/webhooks/", body | change)) == [field]
