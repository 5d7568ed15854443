"""The client against a server that we script byte by byte, and against the simulator: what failed how, and what was sent how often."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from piggybank import telemetry
from piggybank.appliance import store_files
from piggybank.revio import Client, Credentials, Person, Refused, Unclear, Unsent, http
from piggybank.revio.payouts import EftAccount, EftPayouts, Order

SECRET = "sk_live_very_secret"
PERSON = Person(email="thandi@example.co.za", full_name="Thandi M")
DUE = datetime(2030, 1, 1, tzinfo=UTC)


class Scripted:
    """Answers what it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.asked: list[bytes] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        self.asked.append(head + await reader.readexactly(length))
        answer = self.answers.pop(0) if self.answers else b""
        if answer is None:
            await asyncio.sleep(30)
        elif answer:
            writer.write(answer)
            await writer.drain()
        writer.close()


def answered(status: int, body: Any) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(text), text)


PURCHASE = {"id": "p1", "type": "purchase", "status": "created", "checkout_url": "https://x/1", "is_test": True, "new_field": 1}
PAYOUT = {"id": "o1", "type": "payout", "status": "success", "is_test": True}


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    made = Scripted()
    listening = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


@pytest.fixture
async def client(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr(http, "PAUSE_FIRST_S", 0.01)
    made = Client(Credentials(url=f"{server.url}/api/v1/", key=SECRET, brand_id="b", timeout_s=0.5))
    yield made
    await made.close()


def create(client: Client) -> Awaitable[Any]:
    return client.create_purchase(reference="r", amount=1, currency="ZAR", name="n", person=PERSON, due=DUE, return_url=None)


def execute(client: Client) -> Awaitable[Any]:
    return client.execute_payout("payouts/o1/execute/", {"phone": "1"})


def refund(client: Client) -> Awaitable[Any]:
    return client.refund("p1", 5)


async def test_what_may_be_repeated_is_tried_again(server: Scripted, client: Client) -> None:
    server.answers = [answered(500, {}), b"", answered(201, PURCHASE)]
    made = await create(client)
    assert (made.id, made.checkout_url, len(server.asked)) == ("p1", "https://x/1", 3)
    body = json.loads(server.asked[0].partition(b"\r\n\r\n")[2])
    assert body["purchase"]["products"] == [{"name": "n", "price": 1, "quantity": "1"}]
    assert (body["due"], body["reference"], body["client"]["email"]) == (int(DUE.timestamp()), "r", PERSON.email)


async def test_not_for_ever(server: Scripted, client: Client) -> None:
    server.answers = [answered(503, {})] * 10
    with pytest.raises(Unclear):
        await create(client)
    assert len(server.asked) == http.TRIES


@pytest.mark.parametrize("move", [execute, refund])
@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        answered(500, {}),
        answered(502, b"<html>"),
        answered(200, b"{"),
        answered(302, b""),
        answered(408, {}),
        answered(409, {}),
        b"HTTP/1.1 2",
    ],
)
async def test_what_moves_money_is_sent_once_and_unclear(
    server: Scripted, client: Client, move: Callable[[Client], Awaitable[Any]], answer: bytes | None
) -> None:
    server.answers = [answer] * 5
    with pytest.raises(Unclear):
        await move(client)
    assert len(server.asked) == 1


@pytest.mark.parametrize("move", [create, execute, refund])
async def test_nobody_there_is_unsent(move: Callable[[Client], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_FIRST_S", 0.01)
    nobody = Client(Credentials(url=f"http://127.0.0.1:{store_files.free_ports(1)[0]}/", key=SECRET, brand_id="b", timeout_s=0.5))
    with pytest.raises(Unsent):
        await move(nobody)
    await nobody.close()


@pytest.mark.parametrize(
    ("status", "body", "code", "passing"),
    [
        (400, {"__all__": [{"message": "no", "code": "purchase_refund_error"}]}, "purchase_refund_error", False),
        (400, {"amount": [{"message": "no", "code": "invalid"}]}, "invalid", False),
        (404, {"detail": "no such thing"}, "http_404", False),
        (401, {"error": "who are you"}, "http_401", True),
        (403, b"not json", "http_403", True),
        (429, {"message": "slowly"}, "http_429", True),
    ],
)
async def test_a_refusal_says_why(server: Scripted, client: Client, status: int, body: Any, code: str, passing: bool) -> None:
    server.answers = [answered(status, body)] * 3
    with pytest.raises(Refused) as caught:
        await create(client)
    assert (caught.value.code, caught.value.passing, len(server.asked)) == (code, passing, 1)


async def test_only_our_provider_is_sent_our_key(server: Scripted, client: Client) -> None:
    """An execution_url that leads elsewhere: to somebody who would listen."""
    other = Scripted()
    other.answers = [answered(200, PAYOUT)] * 3
    listening = await asyncio.start_server(other.handle, "127.0.0.1", 0)
    place = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    for url in (f"http://{place}/execute", f"//{place}/x", server.url.replace("http://", "https://") + "/execute"):
        with pytest.raises(Unsent, match="another host"):
            await client.execute_payout(url, {"phone": "1"})
    assert (server.asked, other.asked) == ([], [])
    listening.close()


async def test_ids_stay_one_part_of_a_path(server: Scripted, client: Client) -> None:
    server.answers = [answered(200, PURCHASE)]
    await client.purchase("../public_key/?x=1#")
    assert server.asked[0].startswith(b"GET /api/v1/purchases/%2E%2E%2Fpublic_key%2F%3Fx%3D1%23/ HTTP/1.1")


async def test_no_secret_in_any_log(server: Scripted, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ours = io.StringIO()
    telemetry.configure("debug", "json", ours)
    server.answers = [answered(500, {"error": SECRET}), None, answered(400, {"error": "no"})]
    with pytest.raises(Refused):
        await create(client)
    said = caplog.text + ours.getvalue()
    assert "provider_call_failed" in said
    assert SECRET not in said
    assert PERSON.email not in said
    assert SECRET not in repr(Credentials(url="u", key=SECRET, brand_id="b"))


# EFT ---------------------------------------------------------------------------------------------------------------------


ORDER = Order(
    reference="r-1",
    amount=5_000,
    currency="ZAR",
    description="d",
    person=PERSON,
    destination={"account_number": "1", "branch_code": "2", "account_type": "SAVINGS", "name": "T", "id_number": "3"},
)


@pytest.fixture
async def eft(server: Scripted) -> AsyncIterator[EftPayouts]:
    made = EftPayouts(
        EftAccount(
            url=f"{server.url}/v2",
            token_url=f"{server.url}/oauth2/token",
            client_id="109",
            client_secret=SECRET,
            profile_code="P",
            abbreviated_name="A",
            debtor={"accountNumber": "9"},
            timeout_s=0.5,
        )
    )
    yield made
    await made.close()


async def test_an_eft_credit_is_one_call_and_the_token_is_kept(server: Scripted, eft: EftPayouts) -> None:
    token = answered(200, {"access_token": "t1", "expires_in": 86_400})
    credit = answered(201, {"id": "e1", "status": "PENDING", "contractReference": "r-1"})
    server.answers = [token, credit, credit]
    for _ in range(2):
        made = await eft.execute(ORDER, None)
        assert (made.id, made.status, made.reference) == ("e1", "pending", "r-1")
    assert len(server.asked) == 3  # the token once
    assert server.asked[0].lower().count(b"authorization: basic") == 1
    body = json.loads(server.asked[1].partition(b"\r\n\r\n")[2])
    assert (body["contractReference"], body["amountCents"], body["debtor"]) == ("r-1", 5_000, {"accountNumber": "9"})
    assert body["creditor"] == {"accountNumber": "1", "branchCode": "2", "accountType": "SAVINGS", "name": "T", "idNumber": "3"}
    assert abs(datetime.fromisoformat(body["paymentDate"]).replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(days=2)


async def test_without_a_token_nothing_was_sent(server: Scripted, eft: EftPayouts) -> None:
    server.answers = [answered(401, {"error": "invalid_client"})]
    with pytest.raises(Unsent):
        await eft.execute(ORDER, None)
    assert len(server.asked) == 1


async def test_a_lost_answer_is_unclear_and_not_repeated(server: Scripted, eft: EftPayouts) -> None:
    server.answers = [answered(200, {"access_token": "t1", "expires_in": 86_400}), b"", b"", b""]
    with pytest.raises(Unclear):
        await eft.execute(ORDER, None)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"currency": "USD"}, "currency"),
        ({"amount": 500_000_000}, "amount"),
        ({"destination": {}}, "destination.account_number"),
        ({"destination": {"account_number": "1", "branch_code": "2", "account_type": "X"}}, "destination.name"),
    ],
)
def test_what_an_eft_credit_cannot_be(eft: EftPayouts, changes: dict[str, Any], field: str) -> None:
    order: dict[str, Any] = {"currency": "ZAR", "amount": 1, "destination": ORDER.destination} | changes
    wrong = eft.missing(order["currency"], order["amount"], order["destination"])
    assert wrong is not None
    assert wrong[0] == field
    assert eft.missing("ZAR", 499_999_999, ORDER.destination) is None
