"""The table of bad requests: what is sent, and the status and code that answer it.

`{account}` and the like in paths and bodies are ids of the world that `test_bad_input` sets up. A case sends one thing that is
wrong; everything else in it is right.
"""

import json
from typing import Any, NamedTuple

Header = tuple[bytes, bytes]
JSON: Header = (b"Content-Type", b"application/json")
KEY: Header = (b"Idempotency-Key", b"{fresh}")
DEEP = 100_000  # arrays in each other
HUGE_BYTES = 10_000_000
NO_UUIDS = ("7", "not-a-uuid", "{account}0", "00000000-0000-0000-0000-00000000000g", "%00", "%F0%9F%90%B7")
UNKNOWN = "01890000-0000-7000-8000-0000000000ff"  # a well-formed id of nothing


class Case(NamedTuple):
    name: str
    status: int
    code: str
    method: str
    path: str
    content: bytes | None = None
    headers: tuple[Header, ...] = (JSON, KEY)
    who: str = "service"  # whose token


def deposit_of(text: str) -> bytes:
    """A deposit whose amount is `text`, as JSON has it."""
    return f'{{"amount": {text}, "method": "direct"}}'.encode()


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


DEPOSIT = body(amount=100, method="direct")
DEPOSITS = "/v1/accounts/{account}/deposits"
WITHDRAWALS = "/v1/accounts/{account}/withdrawals"
HISTORY = "/v1/accounts/{account}/transactions"

AMOUNTS = {
    "negative": "-1",
    "zero": "0",
    "above the limit": str(10**12 + 1),
    "beyond 64 bits": str(2**64),
    "a number of 400 digits": "1" + "0" * 400,
    "a whole float": "1.0",
    "a float": "12.5",
    "with an exponent": "1e3",
    "an endless exponent": "1e999",
    "a string": '"100"',
    "true": "true",
    "null": "null",
    "a list": "[100]",
    "an object": '{"amount": 100}',
    "NaN": "NaN",
    "Infinity": "Infinity",
    "a leading zero": "0100",
    "a plus sign": "+100",
    "hexadecimal": "0x64",
}

BODIES = {
    "nothing": b"",
    "white space": b"  ",
    "a list": b"[]",
    "a string": b'"deposit"',
    "null": b"null",
    "truncated": DEPOSIT[:-1],
    "truncated in a string": b'{"amount": 100, "method": "dir',
    "two values": DEPOSIT + DEPOSIT,
    "deeply nested arrays": b"[" * DEEP + b"]" * DEEP,
    "deeply nested arrays, open": b"[" * DEEP,
    "deeply nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in an unknown field": b'{"amount": 100, "method": "direct", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "invalid UTF-8": b'{"amount": 100, "method": "direct", "reference": "\xff\xfe"}',
    "UTF-16": '{"amount": 100, "method": "direct"}'.encode("utf-16"),
    "a raw NUL": b'{"amount": 100, "method": "direct", "reference": "a\x00b"}',
    "an escaped NUL": b'{"amount": 100, "method": "direct", "reference": "a\\u0000b"}',
    "a NUL in a key of metadata": b'{"amount": 100, "method": "direct", "metadata": {"a\\u0000": "b"}}',
    "a lone surrogate": b'{"amount": 100, "method": "direct", "reference": "\\ud800"}',
    "a lone low surrogate": b'{"amount": 100, "method": "direct", "description": "\\udc00 x"}',
    "a surrogate in UTF-8": b'{"amount": 100, "method": "direct", "reference": "\xed\xa0\x80"}',
    "a doubled key": b'{"amount": 100, "amount": 1, "method": "direct"}',
    "a doubled key, escaped": b'{"amount": 100, "\\u0061mount": 1, "method": "direct"}',
    "a doubled key inside": b'{"amount": 100, "method": "direct", "metadata": {"a": "1", "a": "2"}}',
    "an unknown field": body(amount=100, method="direct", amuont=1),
    "no amount": body(method="direct"),
    "no method": body(amount=100),
    "an unknown method": body(amount=100, method="cash"),
    "another case of a field": body(Amount=100, method="direct"),
    "a currency in lower case": body(amount=100, method="direct", currency="eur"),
    "a currency that is none": body(amount=100, method="direct", currency="EURO"),
    "a currency with a line feed": body(amount=100, method="direct", currency="EUR\n"),
    "a number as currency": body(amount=100, method="direct", currency=978),
    "an empty reference": body(amount=100, method="direct", reference=""),
    "a long reference": body(amount=100, method="direct", reference="x" * 129),
    "a long description": body(amount=100, method="direct", description="x" * 501),
    "metadata of 21 pairs": body(amount=100, method="direct", metadata={str(n): "" for n in range(21)}),
    "a long key of metadata": body(amount=100, method="direct", metadata={"x" * 41: ""}),
    "a long value of metadata": body(amount=100, method="direct", metadata={"x": "x" * 501}),
    "a number in metadata": body(amount=100, method="direct", metadata={"x": 1}),
    "nested metadata": body(amount=100, method="direct", metadata={"x": {}}),
    "a list as metadata": body(amount=100, method="direct", metadata=[]),
    "a single quote": b"{'amount': 100, 'method': 'direct'}",
    "a trailing comma": b'{"amount": 100, "method": "direct",}',
    "a comment": b'{"amount": 100, "method": "direct"} // please',
}

KEYS: dict[str, tuple[tuple[Header, ...], str]] = {
    "missing": ((), "idempotency_key_required"),
    "empty": (((b"Idempotency-Key", b""),), "idempotency_key_required"),
    "overlong": (((b"Idempotency-Key", b"x" * 256),), "invalid_request"),
    "with a space": (((b"Idempotency-Key", b"a b"),), "invalid_request"),
    "not ASCII": (((b"Idempotency-Key", "ключ".encode()),), "invalid_request"),
    "Latin-1": (((b"Idempotency-Key", b"caf\xe9"),), "invalid_request"),
    "with a tab": (((b"Idempotency-Key", b"a\tb"),), "invalid_request"),
}

QUERIES = {
    "a limit of 0": f"{HISTORY}?limit=0",
    "a limit of 101": f"{HISTORY}?limit=101",
    "a negative limit": f"{HISTORY}?limit=-1",
    "a limit in words": f"{HISTORY}?limit=ten",
    "a limit as a float": f"{HISTORY}?limit=1.5",
    "a huge limit": f"{HISTORY}?limit=1{'0' * 400}",
    "an empty limit": f"{HISTORY}?limit=",
    "a made-up cursor": f"{HISTORY}?cursor=abc",
    "a cursor that is not ASCII": f"{HISTORY}?cursor=%F0%9F%90%B7",
    "a cursor with a NUL": f"{HISTORY}?cursor=%00",
    "a long cursor": f"{HISTORY}?cursor={'A' * 5_000}",
    "an unknown kind": f"{HISTORY}?kind=gift",
    "an empty reference": f"{HISTORY}?reference=",
    "a NUL in a reference": f"{HISTORY}?reference=%00",
    "a moment in words": f"{HISTORY}?from=yesterday",
    "a moment without an offset": f"{HISTORY}?from=2026-01-31T12:00:00",
    "the 30th of February": f"{HISTORY}?to=2026-02-30T12:00:00Z",
    "a negative version": f"{HISTORY}?min_version=-1",
    "a version in words": "/v1/accounts/{account}/balance?min_version=new",
    "a version beyond 64 bits": f"/v1/accounts/{{account}}/balance?min_version={2**80}0x",
    "a moment in words for the balance": "/v1/accounts/{account}/balance?at=noon",
    "a moment without an offset for the balance": "/v1/accounts/{account}/balance?at=2026-01-31T12:00:00",
    "a number as moment for the balance": "/v1/accounts/{account}/balance?at=0.5",
    "a number as moment": f"{HISTORY}?from=1700000000",
    "an unknown state of payments": "/v1/accounts/{account}/payments?status=lost",
    "a made-up cursor of payments": "/v1/accounts/{account}/payments?cursor=abc",
    "a made-up cursor of accounts": "/v1/accounts?cursor=abc",
    "an owner that is no UUID": "/v1/accounts?user_id=7",
    "a NUL in an external_id": "/v1/accounts?external_id=%00",
    "a long external_id": f"/v1/accounts?external_id={'x' * 129}",
    "a NUL in the external_id of a user": "/v1/users?external_id=%00",
    "a cursor of users that is no UUID": "/v1/users?cursor=abc",
    "a report of no account": "/v1/reports/summary",
    "an unknown time zone": "/v1/reports/summary?account_id={account}&tz=Mars/Olympus",
    "a path as time zone": "/v1/reports/summary?account_id={account}&tz=../../etc/passwd",
    "a NUL in a time zone": "/v1/reports/summary?account_id={account}&tz=%00",
    "an unknown period": "/v1/reports/summary?account_id={account}&by=year",
    "a range that ends before it begins": "/v1/reports/summary?account_id={account}&from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
    "a range of ten years": "/v1/reports/summary?account_id={account}&from=2010-01-01T00:00:00Z&to=2020-01-01T00:00:00Z",
}


def cases() -> list[Case]:
    """Every row."""
    bad = 400, "invalid_request"
    rows = [Case(f"amount: {name}", *bad, "POST", DEPOSITS, deposit_of(text)) for name, text in AMOUNTS.items()]
    rows += [Case(f"body: {name}", *bad, "POST", DEPOSITS, content) for name, content in BODIES.items()]
    rows += [Case(f"key: {name}", 400, code, "POST", DEPOSITS, DEPOSIT, (JSON, *key)) for name, (key, code) in KEYS.items()]
    rows += [Case(f"query: {name}", *bad, "GET", path, headers=()) for name, path in QUERIES.items()]
    for text in NO_UUIDS:
        rows.append(Case(f"path: deposit to {text}", *bad, "POST", f"/v1/accounts/{text}/deposits", DEPOSIT))
        rows.append(Case(f"path: balance of {text}", *bad, "GET", f"/v1/accounts/{text}/balance", headers=()))
        rows.append(Case(f"path: reversal of {text}", *bad, "POST", f"/v1/transactions/{text}/reversal", b"{}"))
    return rows + ELSEWHERE + MEDIA + REFUSED + TOKENS + OTHERS


TRANSFER = {"from_account": "{account}", "to_account": "{second}", "amount": 100}
ELSEWHERE = [
    Case("transfer: a sender that is no UUID", 400, "invalid_request", "POST", "/v1/transfers", body(**TRANSFER | {"from_account": "7"})),
    Case("transfer: a number as receiver", 400, "invalid_request", "POST", "/v1/transfers", body(**TRANSFER | {"to_account": 7})),
    Case("transfer: no receiver", 400, "invalid_request", "POST", "/v1/transfers", body(from_account="{account}", amount=100)),
    Case("transfer: a float", 400, "invalid_request", "POST", "/v1/transfers", body(**TRANSFER | {"amount": 100.0})),
    Case("transfer: to nobody", 404, "not_found", "POST", "/v1/transfers", body(**TRANSFER | {"to_account": UNKNOWN})),
    Case("transfer: to oneself", 409, "same_account", "POST", "/v1/transfers", body(**TRANSFER | {"to_account": "{account}"})),
    Case(
        "transfer: to another currency", 409, "currency_mismatch", "POST", "/v1/transfers", body(**TRANSFER | {"to_account": "{dollars}"})
    ),
    Case("deposit: to nobody", 404, "not_found", "POST", f"/v1/accounts/{UNKNOWN}/deposits", DEPOSIT),
    Case("deposit: in another currency", 409, "currency_mismatch", "POST", DEPOSITS, body(amount=1, method="direct", currency="USD")),
    Case("deposit: back to a script", 400, "invalid_request", "POST", DEPOSITS, body(amount=1, method="revio", return_url="javascript:0")),
    Case("withdrawal: paid out to nowhere", 400, "invalid_request", "POST", WITHDRAWALS, body(amount=1, method="revio")),
    Case("withdrawal: a cent more", 409, "insufficient_funds", "POST", WITHDRAWALS, body(amount=1_001, method="direct")),
    Case("withdrawal: a hold in words", 400, "invalid_request", "POST", WITHDRAWALS, body(amount=1, method="direct", hold="yes")),
    Case(
        "withdrawal: a hold of a cent more", 409, "insufficient_funds", "POST", WITHDRAWALS, body(amount=1_001, method="direct", hold=True)
    ),
    Case("reversal: of nothing", 404, "not_found", "POST", f"/v1/transactions/{UNKNOWN}/reversal", b"{}"),
    Case("reversal: twice", 409, "already_reversed", "POST", "/v1/transactions/{reversed}/reversal", b"{}"),
    Case("reversal: of a reversal", 409, "not_reversible", "POST", "/v1/transactions/{reversal}/reversal", b"{}"),
    Case("reversal: without a key", 400, "idempotency_key_required", "POST", "/v1/transactions/{deposit}/reversal", b"{}", (JSON,)),
    Case("reversal: of what is spent", 409, "insufficient_funds", "POST", "/v1/transactions/{spent}/reversal", b"{}"),
    Case("complete: nothing", 404, "not_found", "POST", f"/v1/payments/{UNKNOWN}/complete"),
    Case("complete: without a key", 400, "idempotency_key_required", "POST", "/v1/payments/{ended}/complete", headers=()),
    Case("complete: what has ended", 409, "payment_not_open", "POST", "/v1/payments/{ended}/complete"),
    Case("cancel: what has ended", 409, "payment_not_open", "POST", "/v1/payments/{ended}/cancel"),
    Case("close: with money", 409, "account_not_empty", "POST", "/v1/accounts/{account}/close", headers=()),
    Case("batch: empty", 400, "invalid_request", "POST", "/v1/transactions:batch", body(commands=[])),
    Case("batch: an unknown type", 400, "invalid_request", "POST", "/v1/transactions:batch", body(commands=[{"type": "gift"}])),
    Case("batch: no type", 400, "invalid_request", "POST", "/v1/transactions:batch", body(commands=[TRANSFER])),
    Case(
        "batch: 1,001 commands",
        400,
        "invalid_request",
        "POST",
        "/v1/transactions:batch",
        body(commands=[{"type": "deposit", "account_id": UNKNOWN, "amount": 1}] * 1_001),
    ),
    Case(
        "batch: one bad amount spoils it",
        400,
        "invalid_request",
        "POST",
        "/v1/transactions:batch",
        body(commands=[{"type": "deposit", "account_id": "{account}", "amount": amount} for amount in (1, 0)]),
    ),
    Case(
        "batch: a key without room",
        400,
        "invalid_request",
        "POST",
        "/v1/transactions:batch",
        body(commands=[{"type": "deposit", "account_id": UNKNOWN, "amount": 1}]),
        (JSON, (b"Idempotency-Key", b"x" * 253)),
    ),
    Case(
        "account: a currency that is not enabled",
        400,
        "currency_not_enabled",
        "POST",
        "/v1/accounts",
        body(currency="JPY", user_id="{owner}"),
    ),
    Case("account: of nobody", 404, "not_found", "POST", "/v1/accounts", body(currency="EUR", user_id=UNKNOWN)),
    Case("account: whose?", 400, "invalid_request", "POST", "/v1/accounts", body(currency="EUR")),
    Case(
        "account: a taken external_id",
        409,
        "external_id_taken",
        "POST",
        "/v1/accounts",
        body(currency="EUR", user_id="{owner}", external_id="taken"),
    ),
    Case("account: a NUL in its name", 400, "invalid_request", "PATCH", "/v1/accounts/{account}", b'{"name": "a\\u0000"}'),
    Case("user: no address", 400, "invalid_request", "POST", "/v1/users", body(email="nobody")),
    Case("nowhere", 404, "not_found", "GET", "/v1/pigs", headers=()),
    Case("another method", 405, "method_not_allowed", "PUT", DEPOSITS, DEPOSIT),
]

MEDIA = [
    Case(
        f"media: {kind or 'none'}",
        415,
        "unsupported_media_type",
        "POST",
        DEPOSITS,
        DEPOSIT,
        (KEY, *((b"Content-Type", kind.encode()),) * bool(kind)),
    )
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "nonsense", "")
] + [
    Case("media: 10 MB of JSON", 413, "payload_too_large", "POST", DEPOSITS, b'{"amount": 100, "x": "' + b"x" * HUGE_BYTES + b'"}'),
    Case("media: 10 MB of brackets", 413, "payload_too_large", "POST", DEPOSITS, b"[" * HUGE_BYTES),
]

REFUSED = [
    Case(f"{state}: {name}", 409, f"account_{state}", "POST", path.format(account=f"{{{state}}}"), body(**sent))
    for state in ("frozen", "closed")
    for name, path, sent in (
        ("deposit", DEPOSITS, {"amount": 1, "method": "direct"}),
        ("withdrawal", WITHDRAWALS, {"amount": 1, "method": "direct"}),
        ("hold", WITHDRAWALS, {"amount": 1, "method": "direct", "hold": True}),
        ("transfer from it", "/v1/transfers", TRANSFER | {"from_account": f"{{{state}}}"}),
        ("transfer to it", "/v1/transfers", TRANSFER | {"to_account": f"{{{state}}}"}),
    )
] + [
    Case("closed: freeze", 409, "account_closed", "POST", "/v1/accounts/{closed}/freeze", headers=()),
    Case("closed: unfreeze", 409, "account_closed", "POST", "/v1/accounts/{closed}/unfreeze", headers=()),
]

TOKENS = [
    Case(f"token: {who}", 401, "unauthenticated", method, path, content, headers, who)
    for who in ("nobody", "garbage", "long garbage", "no token", "basic", "not ASCII", "expired session", "ended session", "revoked key")
    for method, path, content, headers in (("POST", DEPOSITS, DEPOSIT, (JSON, KEY)), ("GET", "/v1/accounts/{account}/balance", None, ()))
]

OTHERS = [
    Case("user: a direct deposit", 403, "forbidden", "POST", DEPOSITS, DEPOSIT, who="user"),
    Case("user: a direct withdrawal", 403, "forbidden", "POST", WITHDRAWALS, DEPOSIT, who="user"),
    Case("user: reversing", 403, "forbidden", "POST", "/v1/transactions/{deposit}/reversal", b"{}", who="user"),
    Case("user: reversing somebody else's", 403, "forbidden", "POST", "/v1/transactions/{others_deposit}/reversal", b"{}", who="user"),
    Case("user: a batch", 403, "forbidden", "POST", "/v1/transactions:batch", body(commands=[]), who="user"),
    Case("user: freezing", 403, "forbidden", "POST", "/v1/accounts/{account}/freeze", headers=(), who="user"),
    Case("user: completing", 403, "forbidden", "POST", "/v1/payments/{ended}/complete", who="user"),
    Case("user: API keys", 403, "forbidden", "GET", "/v1/api-keys", headers=(), who="user"),
    Case("user: for another user", 404, "not_found", "POST", "/v1/accounts", body(currency="EUR", user_id=UNKNOWN), who="user"),
    Case("key without the scope", 403, "forbidden", "POST", DEPOSITS, DEPOSIT, who="narrow key"),
    Case("key as a person", 403, "forbidden", "GET", "/v1/users/me", headers=(), who="service"),
]
