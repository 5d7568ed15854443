"""EFT credits: a token, mock accounts, no idempotency, calls that nobody signs."""

from typing import Any

import pytest

from tests.simulator.conftest import EFT_ID, EFT_SECRET, Simulator, until
from tests.simulator.receivers import Receiver


def new_credit(account: str = "12345678", reference: str = "WD000123", amount: int = 150_000) -> dict[str, Any]:
    return {
        "paymentDate": "2026-11-23",
        "profileCode": "P1",
        "abbreviatedName": "PASA-NAME",
        "contractReference": reference,
        "amountCents": amount,
        "serviceType": "SAMEDAY",
        "debtor": {"accountNumber": "12345678", "branchCode": "051001", "accountType": "CURRENT", "bank": "SB", "firstName": "TEST1"},
        "creditor": {"accountNumber": account, "accountType": "SAVINGS", "branchCode": "051001", "name": "Thandi M"},
    }


async def post_credit(simulator: Simulator, credit: dict[str, Any]) -> dict[str, Any]:
    answer = await simulator.http.post("/v2/payment/eft", json=credit, headers=await simulator.eft_headers())
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until_ended(simulator: Simulator, credit_id: str, status: str) -> None:
    headers = await simulator.eft_headers()

    async def is_there() -> bool:
        answer = await simulator.http.get(f"/v2/payment/eft/{credit_id}", headers=headers)
        return bool(answer.json()["status"] == status)

    await until(is_there)


async def test_a_token_for_the_clients_secret(simulator: Simulator) -> None:
    form = {"grant_type": "client_credentials"}
    answer = await simulator.http.post("/oauth2/token", data=form, auth=(EFT_ID, EFT_SECRET))
    assert (answer.status_code, answer.json()["expires_in"], answer.json()["token_type"]) == (200, 86_400, "Bearer")
    answer = await simulator.http.post("/oauth2/token", data=form, auth=(EFT_ID, "wrong"))
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
    answer = await simulator.http.post("/oauth2/token", data={"grant_type": "password"}, auth=(EFT_ID, EFT_SECRET))
    assert (answer.status_code, answer.json()) == (400, {"error": "unsupported_grant_type"})


@pytest.mark.parametrize("token", ["x", "1.x", "99999999999.00", "99999999999"])
async def test_tokens_of_others(simulator: Simulator, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    assert (await simulator.http.post("/v2/payment/eft", json=new_credit(), headers=headers)).status_code == 401


async def test_the_key_of_the_other_api_is_no_token(simulator: Simulator) -> None:
    assert (await simulator.http.post("/v2/payment/eft", json=new_credit())).status_code == 401
    assert (await simulator.http.get("/api/v1/balance/", headers=await simulator.eft_headers())).status_code == 401


@pytest.mark.parametrize(
    ("account", "status"),
    [("12345678", "COMPLETED"), ("110000001", "COMPLETED"), ("910000001", "UNPAID"), ("910000002", "UNPAID"), ("110000002", "UNPAID")],
)
async def test_mock_accounts(simulator: Simulator, receiver: Receiver, account: str, status: str) -> None:
    callback = {"clientId": "109", "url": receiver.url, "callbackType": "EFT_PAYMENT", "callbackVersion": "V2"}
    answer = await simulator.http.post("/v2/clientcallbackurl", json=callback, headers=await simulator.eft_headers())
    assert (answer.status_code, answer.json()) == (200, callback)
    made = await post_credit(simulator, new_credit(account))
    assert made == {"id": made["id"], "status": "PENDING", "contractReference": "WD000123"}
    await until_ended(simulator, made["id"], status)
    await until(lambda: len(receiver.of(made["id"])) == 1)
    (told,) = receiver.of(made["id"])
    assert told.signature is None
    assert told.body == {
        "clientId": "109",
        "callbackType": "EFT_PAYMENT",
        "callbackVersion": "V2",
        "id": made["id"],
        "status": status,
        "contractReference": "WD000123",
        "amountCents": 150_000,
        "serviceType": "SAMEDAY",
        "paymentDate": "2026-11-23",
    }


async def test_a_disputed_one_is_completed_first(simulator: Simulator, receiver: Receiver) -> None:
    callback = {"clientId": 109, "url": receiver.url, "callbackType": "EFT_PAYMENT"}
    await simulator.http.post("/v2/clientcallbackurl", json=callback, headers=await simulator.eft_headers())
    made = await post_credit(simulator, new_credit("210000001"))
    await until(lambda: [told.body["status"] for told in receiver.of(made["id"])] == ["COMPLETED", "UNPAID"])


async def test_faults_end_it_too_but_not_for_the_accepted_account(simulator: Simulator) -> None:
    await simulator.faults(payout_error=1)
    unpaid = await post_credit(simulator, new_credit())
    accepted = await post_credit(simulator, new_credit("110000001"))
    await until_ended(simulator, unpaid["id"], "UNPAID")
    await until_ended(simulator, accepted["id"], "COMPLETED")
    await simulator.faults(payout_return=1)
    returned = await post_credit(simulator, new_credit())
    await until_ended(simulator, returned["id"], "UNPAID")


async def test_the_same_reference_twice_is_paid_twice(own: Simulator) -> None:
    made = [await post_credit(own, new_credit(reference="WD1", amount=100)) for _ in range(2)]
    assert made[0]["id"] != made[1]["id"]
    answer = await own.http.get("/v2/payment/eft?contractReference=WD1", headers=await own.eft_headers())
    assert [found["id"] for found in answer.json()] == [found["id"] for found in made]
    assert (await own.get("/_sim/book"))["currencies"]["ZAR"]["payouts"] == 200


async def test_ended_by_hand(unhurried: Simulator) -> None:
    made = await post_credit(unhurried, new_credit())
    assert (await unhurried.post(f"/_sim/eft/{made['id']}/complete"))["status"] == "COMPLETED"
    await unhurried.refused(f"/_sim/eft/{made['id']}/complete")
    assert (await unhurried.post(f"/_sim/eft/{made['id']}/unpay"))["status"] == "UNPAID"
    await unhurried.refused(f"/_sim/eft/{made['id']}/unpay")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amountCents": 0}, "amountCents"),
        ({"amountCents": 500_000_000}, "amountCents"),
        ({"serviceType": "NOW"}, "serviceType"),
        ({"paymentDate": "soon"}, "paymentDate"),
        ({"contractReference": ""}, "contractReference"),
        ({"creditor": {"accountNumber": "12345678"}}, "creditor.branchCode"),
    ],
)
async def test_a_credit_that_is_wrong(simulator: Simulator, change: dict[str, Any], field: str) -> None:
    answer = await simulator.http.post("/v2/payment/eft", json=new_credit() | change, headers=await simulator.eft_headers())
    assert (answer.status_code, list(answer.json())) == (400, [field])
