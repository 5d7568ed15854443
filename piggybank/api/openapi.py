"""The API's description: OpenAPI 3.1 as JSON, and a page that shows it, both without a request to another host.

What every operation may answer is derived, not repeated: from its method, its parameters and its row in `guards.ROUTES`. The
statuses that only some routes have (409, 422, ..) hang on the method too, so no client meets one that is not described.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, OpenAPI, SecurityScheme, Server, Tag
from litestar.response import Redirect

import piggybank
from piggybank import errors
from piggybank.api import bodies, caching, guards, pages, problems
from piggybank.ledger.idempotency import MAX_KEY_LENGTH
from piggybank.wallet.provider import Provider

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

DESCRIPTION = """\
A wallet backend: accounts, deposits, withdrawals, transfers, history and reports.

**Sign in.** Send `Authorization: Bearer <token>`. A person's token comes from `POST /v1/sessions` and lasts 7 days; a program uses an
API key with scopes (`piggybank apikeys create`).

**Money** is whole minor units of the account's currency: `1250` is 12.50 USD. A 2xx means that it is committed.

**Try again safely.** Every POST that moves money needs an `Idempotency-Key` of yours. Send the same key and body again whenever you do
not know what became of a request: the answer is the same, with `Idempotency-Replayed: true`, and nothing happens twice. A problem with
`"retryable": true` may be sent again after `Retry-After` seconds.

**Errors** are `application/problem+json` (RFC 9457) with a stable `code` and the `request_id` that is also in the `Request-Id` header.

**Through the provider.** A deposit with `"method": "revio"` answers 202 with a `checkout_url` for the person; a withdrawal reserves the
money and pays it out. Ask for the payment until its `status` has ended. `provider` says `simulator` where no real money moves.

**Lists** are newest first: pass `next_cursor` back as `cursor` until it is null.
"""

TAGS = [
    Tag("users", "People who sign in."),
    Tag("sessions", "Signing in and out."),
    Tag("api-keys", "Programs that sign in."),
    Tag("accounts", "Who has how much."),
    Tag("movements", "Deposits, withdrawals, transfers, reversals."),
    Tag("history", "What was posted."),
    Tag("payments", "What is under way."),
    Tag("reports", "Sums by day, week and month."),
    Tag("operations", "For those who run it."),
    Tag("provider", "What the payment provider calls."),
    Tag("health", "For supervisors and load balancers."),
]

CONFIG = OpenAPIConfig(
    title="piggybank",
    version=piggybank.__version__,
    description=DESCRIPTION,
    tags=TAGS,
    servers=[Server(url="/")],
    use_handler_docstrings=True,
    components=Components(
        security_schemes={
            "bearer": SecurityScheme(type="http", scheme="bearer", description="A session's token (`pbs_..`) or an API key (`pbk_..`).")
        }
    ),
)

# relative addresses: the page also works below a path of a proxy
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>piggybank API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="schema/static/swagger-ui.css?{css}">
</head>
<body>
{mode}<div id="swagger-ui"></div>
<script src="schema/static/swagger-ui-bundle.js?{bundle}"></script>
<script src="schema/static/start.js?{start}"></script>
</body>
</html>
"""
_START = """window.ui = SwaggerUIBundle({
  url: "schema/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""
_SIMULATOR = (
    '<p style="margin:0;padding:.5rem;background:#ffd84d;color:#1b1f24;text-align:center;font-family:system-ui,sans-serif">'
    "<strong>SIMULATOR</strong> payments are play, no real money moves</p>\n"
)
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "start.js": "text/javascript"}
_LOADED = {"css": "swagger-ui.css", "bundle": "swagger-ui-bundle.js", "start": "start.js"}  # by their place in the page

# The errors that a status is most often, for the examples.
_EXAMPLES: dict[int, tuple[errors.Error, ...]] = {
    400: (problems.invalid("amount", "must be at least 1", "out_of_range"), errors.IdempotencyKeyRequired()),
    401: (errors.Unauthenticated(),),
    403: (errors.Forbidden(detail="The API key lacks a scope.", needs_scope="ledger:write"),),
    404: (errors.NotFound(),),
    405: (errors.MethodNotAllowed(),),
    409: (
        errors.InsufficientFunds(available=400, requested=1250),
        errors.AccountFrozen(),
        errors.ProviderNotConfigured(),
        errors.PaymentUnderWay(),
        errors.IdempotencyKeyInUse(),
    ),
    410: (errors.Archived(month="2026-01", file="transactions-2026-01.parquet"),),
    413: (errors.PayloadTooLarge(),),
    415: (errors.UnsupportedMediaType(),),
    422: (errors.IdempotencyKeyReused(),),
    429: (errors.TooManyRequests(retry_after_s=12, limit_per_minute=1_200),),
    500: (errors.InternalError(),),
    503: (
        errors.DatabaseUnavailable(),
        errors.OutcomeUnknown(),
        errors.NoSynchronousStandby(),
        errors.StorageFull(),
        errors.ProviderUnavailable(),
    ),
}
_MEANING = {
    400: "Not well formed",
    401: "No valid token",
    403: "Not allowed",
    404: "Not there, or not yours",
    405: "Another method",
    409: "Refused by a rule, or in conflict",
    410: "Archived: no longer in the database",
    413: f"More than {bodies.BODY_MAX_BYTES} bytes",
    415: "Not JSON",
    422: "The Idempotency-Key was used with another body",
    429: "Too many requests",
    500: "A fault of ours",
    503: "Not now; send it again",
}
# What is read from posted rows, which may be archived.
_ARCHIVABLE = (
    "GET /v1/accounts/{account_id}/transactions",
    "GET /v1/accounts/{account_id}/balance",
    "GET /v1/transactions/{transaction_id}",
    "GET /v1/transfers/{transfer_id}",
    "GET /v1/reports/summary",
    "POST /v1/transactions/{transaction_id}/reversal",
)
_METHODS = ("get", "post", "patch", "put", "delete")


def routes(described: Callable[[], OpenAPI]) -> list[HTTPRouteHandler]:
    """The routes of the description; `described` makes the framework's document, once, when first asked."""

    @lru_cache(1)
    def made() -> bytes:
        return msgspec.json.encode(document(described().to_schema()))

    @get("/schema/openapi.json", sync_to_thread=True, include_in_schema=False)
    def schema(request: Request[Any, Any, Any]) -> Response[bytes]:
        return caching.revalidated(request, made(), caching.METADATA)

    return [home, schema, page, static]


@get("/", sync_to_thread=False, include_in_schema=False, status_code=307)
def home() -> Redirect:
    """Who opens the printed address in a browser finds something to read."""
    return Redirect("schema", status_code=307)


@get("/schema", include_in_schema=False)
async def page(request: Request[Any, Any, Any], provider: Provider) -> Response[Any]:
    """The page for people; in simulator mode it says so."""
    mode = _SIMULATOR if await provider.is_simulator() else ""
    hashes = {name: caching.hash_of(_asset(file)) for name, file in _LOADED.items()}
    html = _PAGE.format(mode=mode, **hashes).encode()
    return pages.shown(request, html, PAGE_POLICY)


@get("/schema/static/{name:str}", sync_to_thread=True, include_in_schema=False)
def static(request: Request[Any, Any, Any], name: str) -> Response[bytes]:
    """What the page loads; its address carries its hash, so it may be kept for ever."""
    if name not in _ASSETS:
        raise NotFoundException
    return caching.static(request, _asset(name), _ASSETS[name])


@lru_cache
def _asset(name: str) -> bytes:
    if name == "start.js":
        return _START.encode()
    package = find_spec("swagger_ui")  # found, not imported: only its files are wanted
    assert package is not None
    assert package.submodule_search_locations is not None
    return (Path(package.submodule_search_locations[0]) / "static" / name).read_bytes()


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """The framework's document, and what holds for every operation: who may, what can go wrong, which headers come."""
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    found = msgspec.json.schema_components([problems.Problem], ref_template="#/components/schemas/{name}")[1]
    for name, described in found.items():
        schemas[name] = described
    schemas["Problem"]["additionalProperties"] = True
    components["headers"] = _HEADERS
    components["responses"] = {f"Problem{status}": _problem(status) for status in _MEANING}
    for path, item in schema["paths"].items():
        for method in _METHODS:
            if method in item:
                _complete(f"{method.upper()} {path}", item[method], guards.ROUTES[f"{method.upper()} {path}"])
    bodies = [item[method].get("requestBody") for item in schema["paths"].values() for method in _METHODS if method in item]
    for name in _names_in(bodies, schemas):
        schemas[name]["additionalProperties"] = False  # as every request struct forbids unknown fields
    return schema


def _names_in(part: Any, schemas: dict[str, Any]) -> set[str]:
    """The schemas that a part of the document refers to, and those that they refer to."""
    if isinstance(part, list):
        return {name for one in part for name in _names_in(one, schemas)}
    if not isinstance(part, dict):
        return set()
    names = _names_in(list(part.values()), schemas)
    if isinstance(reference := part.get("$ref"), str):
        name = reference.rpartition("/")[2]
        names |= {name} | _names_in(schemas[name], schemas)
    return names


_HEADERS: dict[str, Any] = {
    "Request-Id": {"description": "The client's, or made here.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}},
    "Allow": {"schema": {"type": "string"}},
    "RateLimit-Limit": {"description": "Requests a minute; absent where nothing is limited.", "schema": {"type": "integer"}},
    "RateLimit-Remaining": {"description": "How many are left in this minute.", "schema": {"type": "integer"}},
    "RateLimit-Reset": {"description": "Seconds until the minute ends.", "schema": {"type": "integer"}},
    "Idempotency-Replayed": {"description": "`true`: the answer to an earlier request with this key.", "schema": {"type": "string"}},
}


def _problem(status: int) -> dict[str, Any]:
    headers = ["Request-Id"]
    headers += ["WWW-Authenticate"] if status == 401 else []
    headers += ["Allow"] if status == 405 else []
    headers += ["Retry-After"] if status in (429, 503) else []
    examples = {
        error.code: {"value": msgspec.json.decode(problems.body(error, status, "6f1c0c9e4f5b4f0c8d4b1f4f0a6c2d11"))}
        for error in _EXAMPLES[status]
    }
    return {
        "description": f"{_MEANING[status]}.",
        "headers": {name: _header(name) for name in headers},
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _header(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/headers/{name}"}


def _complete(name: str, operation: dict[str, Any], access: guards.Access) -> None:
    """Security, statuses and headers of one operation."""
    keys = [parameter for parameter in operation.get("parameters", ()) if parameter["name"] == "Idempotency-Key"]
    for key in keys:
        key["schema"] = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[!-~]+$"}
    answers: dict[str, Any] = operation["responses"]
    answers.pop("400", None)  # the framework's own idea of an error
    for answer in answers.values():
        answer.setdefault("headers", {})["Request-Id"] = _header("Request-Id")
        if keys:
            answer["headers"]["Idempotency-Replayed"] = _header("Idempotency-Replayed")
        if access.limit != "none":
            for header in ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"):
                answer["headers"][header] = _header(header)
    for status in sorted(_statuses(name, operation, access)):
        answers.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    if access.public:
        operation["security"] = []
    else:
        operation["security"] = [{"bearer": []}, *([{}] if access.anonymous else [])]
        operation["description"] = f"{operation.get('description') or ''}\n\n{_who(access)}".strip()


def _statuses(name: str, operation: dict[str, Any], access: guards.Access) -> set[int]:
    method, _, path = name.partition(" ")
    if path.startswith("/v1/revio/"):
        return {401, 413, 500, 503} if path.endswith("/events") else {404, 413, 500, 503}
    if access.limit == "none":
        return {500}
    statuses = {400, 429, 500, 503}
    if not access.public:
        statuses |= {401, 403, 404}  # a parameter or a body may name what is not theirs
    if "{" in path:
        statuses |= {404}
    if method in ("POST", "PATCH", "DELETE"):
        statuses |= {409}
    if name in _ARCHIVABLE:
        statuses |= {410}
    if path == "/v1/sessions":
        statuses |= {401}  # wrong credentials
    if method == "POST":
        statuses |= {403, 422}
    if "requestBody" in operation:
        statuses |= {413, 415}
    return statuses


def _who(access: guards.Access) -> str:
    may = ["anybody"] if access.anonymous else []
    may += ["a user, for their own"] if access.user else []
    may += ["an operator"] if access.operator else []
    may += [f"an API key with `{access.scope}`"] if access.scope else []
    return f"May be called by: {', '.join(may)}."
