"""The API's shapes: who may ask, how it refuses, and the quirks of what it sends."""

from typing import Any

import pytest

from tests.simulator.conftest import BRAND, Simulator, new_payout, new_purchase


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/balance/"),
        ("POST", "/api/v1/purchases/"),
        ("POST", "/api/v1/webhooks/"),
        ("GET", "/_sim/book"),
        ("PUT", "/_sim/faults"),
        ("POST", "/v2/payment/eft"),
    ],
)
@pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic dGVzdA==", "Bearer ü"])
async def test_who_has_no_key_is_refused(simulator: Simulator, method: str, path: str, header: str) -> None:
    answer = await simulator.http.request(method, path, headers={b"Authorization": header.encode()}, json={})
    assert answer.status_code == 401
    assert answer.json()["__all__"][0]["code"] == "authentication_failed"


async def test_health_needs_no_key(simulator: Simulator) -> None:
    answer = await simulator.http.get("/health/live", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("slash", ["", "/"])
async def test_paths_answer_with_and_without_a_slash(simulator: Simulator, slash: str) -> None:
    made = await simulator.post(f"/api/v1/purchases{slash}", new_purchase())
    assert (await simulator.get(f"/api/v1/purchases/{made['id']}{slash}"))["id"] == made["id"]
    assert isinstance(await simulator.get(f"/api/v1/public_key{slash}"), str)


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"brand_id": None}, "brand_id", "invalid"),
        ({"brand_id": "another"}, "brand_id", "does_not_exist"),
        ({"client": None}, "client", "required"),
        ({"client": {}}, "client.email", "required"),
        ({"client": {"email": "nobody"}}, "client.email", "invalid"),
        ({"purchase": {}}, "purchase.products", "required"),
        ({"purchase": {"products": []}}, "purchase.products", "invalid"),
        ({"purchase": {"products": [{"name": "x"}]}}, "purchase.products[...].price", "required"),
        ({"purchase": {"products": [{"name": "x", "price": 0}]}}, "purchase.products", "invalid"),
        ({"purchase": {"products": [{"name": "x", "price": 1.5}]}}, "purchase.products[0].price", "invalid"),
        ({"purchase": {"products": [{"name": "x", "price": 5, "quantity": "two"}]}}, "purchase.products[0].quantity", "invalid"),
        ({"purchase": {"products": [{"name": "x", "price": 5, "quantity": "NaN"}]}}, "purchase.products[0].quantity", "invalid"),
        ({"purchase": {"currency": "ZZZ", "products": [{"name": "x", "price": 5}]}}, "purchase.currency", "invalid_choice"),
        ({"reference": "x" * 129}, "reference", "invalid"),
        ({"due": "tomorrow"}, "due", "invalid"),
        ({"success_redirect": "javascript:alert(1)"}, "success_redirect", "invalid"),
        ({"success_redirect": "https://a.b/ c"}, "success_redirect", "invalid"),
        ({"success_redirect": "https://a.b/\u00fc"}, "success_redirect", "invalid"),
        ({"success_redirect": "https://[a.b/"}, "success_redirect", "invalid"),
        ({"success_callback": "ftp://a.b/"}, "success_callback", "invalid"),
    ],
)
async def test_a_purchase_that_is_wrong(simulator: Simulator, change: dict[str, Any], field: str, code: str) -> None:
    said = await simulator.refused("/api/v1/purchases/", new_purchase() | change)
    (named,) = said
    assert named.replace("[0]", "[...]") == field.replace("[0]", "[...]")
    assert said[named][0]["code"] == code
    assert said[named][0]["message"]


async def test_a_field_that_is_missing_and_a_body_that_is_no_json(simulator: Simulator) -> None:
    assert (await simulator.refused("/api/v1/purchases/", {}))["brand_id"][0]["code"] == "required"
    answer = await simulator.http.post("/api/v1/purchases/", content=b"{")
    assert (answer.status_code, answer.json()["__all__"][0]["code"]) == (400, "parse_error")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"brand_id": "another"}, "brand_id"),
        ({"client": {"full_name": "x"}}, "client.email"),
        ({"payment": {"amount": 0, "currency": "ZAR"}}, "payment.amount"),
        ({"payment": {"amount": 5, "currency": "ZZZ"}}, "payment.currency"),
    ],
)
async def test_a_payout_that_is_wrong(simulator: Simulator, change: dict[str, Any], field: str) -> None:
    assert list(await simulator.refused("/api/v1/payouts/", new_payout() | change)) == [field]


@pytest.mark.parametrize("path", ["purchases", "payouts", "webhooks", "company_statements"])
async def test_what_is_not_there(simulator: Simulator, path: str) -> None:
    answer = await simulator.http.get(f"/api/v1/{path}/6f0c1a52-0000-4000-8000-00000000dead/")
    assert (answer.status_code, answer.json()["__all__"][0]["code"]) == (404, "not_found")


async def test_the_quirks_of_a_purchase(simulator: Simulator) -> None:
    made = await simulator.purchase(purchase={"currency": "ZAR", "products": [{"name": "x", "price": 500, "quantity": 3}]})
    product = made["purchase"]["products"][0]
    assert (product["quantity"], product["tax_percent"], made["purchase"]["total"]) == ("3.0000", "0.00", 1_500)
    assert (made["client"]["personal_code"], made["client"]["phone"], made["client"]["cc"]) == ("", "", [])
    for name in ("created_on", "updated_on"):
        assert type(made[name]) is int
    assert made["status_history"] == [{"status": "created", "timestamp": made["created_on"]}]
    assert (made["type"], made["is_test"], made["payment"], made["platform"], made["product"]) == (
        "purchase",
        True,
        None,
        "api",
        "purchases",
    )
    assert (made["reference"], made["brand_id"], made["refund_availability"], made["refundable_amount"]) == ("dep_1", BRAND, "none", 0)
    assert made["issued"].count("-") == 2
    assert made["checkout_url"].startswith(f"{simulator.config.url}/checkout/")


async def test_overrides_and_discounts_change_the_total(simulator: Simulator) -> None:
    products = [{"name": "x", "price": 500, "discount": 100, "quantity": "2.5"}, {"name": "y", "price": 1, "total_price_override": 7}]
    assert (await simulator.purchase(purchase={"products": products, "debt": 3}))["purchase"]["total"] == 1_010
    assert (await simulator.purchase(purchase={"products": products, "total_override": 42}))["purchase"]["total"] == 42


async def test_methods(simulator: Simulator) -> None:
    assert "visa" in (await simulator.get(f"/api/v1/payment_methods/?brand_id={BRAND}&currency=ZAR"))["available_payment_methods"]
    assert "visa" in (await simulator.get("/api/v1/payout_methods/"))["available_payout_methods"]
    answer = await simulator.http.get("/api/v1/payment_methods/?brand_id=another&currency=ZAR")
    assert (answer.status_code, list(answer.json())) == (400, ["brand_id"])


async def test_the_book_is_paged(own: Simulator) -> None:
    made = [(await own.purchase(amount))["id"] for amount in (100, 200, 300)]
    first = await own.get("/_sim/book?limit=2")
    rest = await own.get(f"/_sim/book?limit=2&after={first['next']}")
    assert [found["id"] for found in first["objects"] + rest["objects"]] == made
    assert rest["next"] is None
    assert "objects" not in await own.get("/_sim/book?sums=1")
    assert first["objects"][0] == {
        "type": "purchase",
        "id": made[0],
        "reference": "dep_1",
        "status": "created",
        "currency": "ZAR",
        "amount": 100,
        "executions": 0,
    }
