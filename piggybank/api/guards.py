"""Who may do what: one table, one guard.

A route that is not in the table keeps the app from starting. Whether a thing is one's own is not asked here: the handlers answer
404 for what belongs to somebody else.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from litestar import Request, Response
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import HTTPScope

from piggybank import errors
from piggybank.api import problems
from piggybank.api.limits import Limiter, is_near, networks
from piggybank.identity.tokens import Principal, Tokens

BEARER = b"bearer "


class Access(NamedTuple):
    """Who may call a route: `scope` is what an API key needs (None: no key may); `limit` the class of its rate limit.

    `or_scope`: a wider one that opens it, too.
    """

    anonymous: bool = False
    user: bool = False
    operator: bool = False
    scope: str | None = None
    or_scope: str | None = None
    limit: Literal["general", "sign_in", "none"] = "general"
    public: bool = False  # nobody looks at a token: not even the database may be asked
    near: bool = False  # from `metrics_networks` and by no proxy nobody looks at one, either


PUBLIC = Access(anonymous=True, user=True, operator=True, public=True)
PROBE = PUBLIC._replace(limit="none")
SIGN_IN = PUBLIC._replace(limit="sign_in")
SIGNED = PUBLIC._replace(limit="none")  # the provider: its signature is looked at, and its bursts are taken
OWN = Access(user=True, operator=True)  # a person's own things; a key is no person
OPERATOR = Access(operator=True)


def _everyone(scope: str) -> Access:
    return Access(user=True, operator=True, scope=scope)


def _staff(scope: str) -> Access:
    return Access(operator=True, scope=scope)


ROUTES: dict[str, Access] = {
    "POST /v1/users": Access(anonymous=True, operator=True, scope="users:write", limit="sign_in"),
    "POST /v1/users/claim": SIGN_IN,
    "POST /v1/users/reset-request": SIGN_IN,
    "POST /v1/users/reset": SIGN_IN,
    "GET /v1/users": _staff("users:read"),
    "GET /v1/users/{user_id}": _everyone("users:read"),
    "GET /v1/users/me": OWN,
    "PATCH /v1/users/me": OWN,
    "POST /v1/sessions": SIGN_IN,
    "DELETE /v1/sessions/current": OWN,
    "POST /v1/api-keys": OPERATOR,
    "GET /v1/api-keys": OPERATOR,
    "DELETE /v1/api-keys/{key_id}": OPERATOR,
    "GET /v1/currencies": PUBLIC,
    "POST /v1/accounts": _everyone("accounts:write"),
    "GET /v1/accounts": _everyone("accounts:read"),
    "GET /v1/accounts/{account_id}": _everyone("accounts:read"),
    "PATCH /v1/accounts/{account_id}": _everyone("accounts:write"),
    "GET /v1/accounts/{account_id}/balance": _everyone("accounts:read"),
    "POST /v1/accounts/{account_id}/freeze": _staff("accounts:write"),
    "POST /v1/accounts/{account_id}/unfreeze": _staff("accounts:write"),
    "POST /v1/accounts/{account_id}/close": _everyone("accounts:write"),
    "GET /v1/accounts/{account_id}/transactions": _everyone("accounts:read"),
    "GET /v1/transactions/{transaction_id}": _everyone("accounts:read"),
    "GET /v1/accounts/{account_id}/payments": _everyone("accounts:read"),
    "GET /v1/payments/{payment_id}": _everyone("accounts:read"),
    "POST /v1/payments/{payment_id}/cancel": _staff("payments:write"),
    "POST /v1/payments/{payment_id}/complete": _staff("payments:write"),
    "POST /v1/accounts/{account_id}/deposits": _everyone("ledger:write"),
    "POST /v1/accounts/{account_id}/withdrawals": _everyone("ledger:write"),
    "POST /v1/transfers": _everyone("ledger:write"),
    "GET /v1/transfers/{transfer_id}": _everyone("accounts:read"),
    "POST /v1/transactions:batch": _staff("ledger:write"),
    "POST /v1/transactions/{transaction_id}/reversal": _staff("ledger:write"),
    "GET /v1/reports/summary": _everyone("accounts:read"),
    "GET /v1/ops/status": _staff("ops:read"),
    "GET /v1/ops/capacity": _staff("ops:read"),
    "GET /v1/ops/capacity/forecast": _staff("ops:read"),
    "GET /v1/ops/cost": _staff("ops:read"),
    "GET /v1/ops/minutes": _staff("ops:read"),
    "GET /v1/ops/alerts": _staff("ops:read"),
    "GET /v1/ops/runbooks/{name}": _staff("ops:read"),
    "GET /v1/ops/partitions": _staff("ops:read"),
    "GET /v1/ops/payments": _staff("ops:read"),
    "POST /v1/ops/payments/{payment_id}/refund": OPERATOR,
    "POST /v1/ops/payments/{payment_id}/resolve": OPERATOR,
    "GET /v1/ops/provider-events": _staff("ops:read"),
    "GET /v1/ops/provider-events/{event_id}": _staff("ops:read"),
    "POST /v1/ops/provider-events/{event_id}/replay": OPERATOR,
    "POST /v1/ops/provider-events/{event_id}/dismiss": OPERATOR,
    "GET /v1/ops/reconciliations": _staff("ops:read"),
    "GET /v1/ops/reconciliations/{reconciliation_id}": _staff("ops:read"),
    "GET /v1/ops/phases": _staff("ops:read"),
    "GET /v1/ops/doctor": _staff("ops:read"),
    "GET /v1/ops/backups": _staff("ops:read"),
    "GET /v1/ops/audit": OPERATOR,  # it names people: a key that watches has no need of it
    "GET /v1/ops/queue": _staff("ops:read"),
    "POST /v1/ops/queue/jobs/{name}/run": OPERATOR,
    "POST /v1/ops/outbox/{row_id}/retry": OPERATOR,
    "GET /v1/ops/transactions": _staff("accounts:read"),
    "POST /v1/revio/events": SIGNED,
    "POST /v1/revio/eft/{secret}": SIGNED,
    "GET /metrics": Access(operator=True, scope="metrics:read", or_scope="ops:read", limit="none", near=True),
    "GET /health/live": PROBE,
    "GET /health/ready": PROBE,
    "GET /welcome": PUBLIC,
    "GET /welcome/{name}": PUBLIC,
    "GET /console": PUBLIC,
    "GET /console/{version}/{name}": PUBLIC,
    "GET /": PUBLIC,
    "GET /schema": PUBLIC,
    "GET /schema/openapi.json": PUBLIC,
    "GET /schema/static/{name}": PUBLIC,
}


def route_names(routes: Iterable[BaseRoute]) -> list[str]:
    """`METHOD /path/{parameter}` of every route that answers something."""
    return [
        f"{method} {route.path_format}"
        for route in routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    ]


class Guard:
    """Before every handler: who is it, may they, and not too often.

    `admit` is the app's `before_request` hook, not one of the framework's guards: for those it copies the handler at each request,
    a tenth of what a deposit costs. A handler with a hook of its own would go round it, so `check` refuses to start with one.
    """

    def __init__(self, tokens: Tokens, limiter: Limiter, near: Sequence[str] = ()) -> None:
        self._tokens = tokens
        self._limiter = limiter
        self._near = networks(near, "PIGGYBANK_METRICS_NETWORKS")

    def check(self, routes: Iterable[BaseRoute]) -> None:
        """Every route has a row and comes by here; raises `errors.CannotProceed` naming those that do not."""
        routes = list(routes)
        missing = set(route_names(routes)) - ROUTES.keys()
        missing |= {route.path for route in routes if not isinstance(route, HTTPRoute)}
        for route in routes:
            for handler in getattr(route, "route_handlers", ()):
                if getattr(handler.resolve_before_request(), "func", handler.resolve_before_request()) != self.admit:
                    missing.add(f"{route.path} ({handler.handler_name})")
        if missing:
            raise errors.CannotProceed(detail=f"not guarded by api/guards.py: {', '.join(sorted(missing))}")

    async def admit(self, request: Request[Any, Any, Any]) -> Response[None] | None:
        """Raises what `enter` raises; answers OPTIONS."""
        scope = request.scope
        if scope["method"] == "OPTIONS":
            return Response(None, status_code=204, headers={"Allow": ", ".join(methods_of(scope["path_template"]))})
        await self.enter(scope)
        return None

    async def enter(self, scope: HTTPScope) -> None:
        """Raises `errors.Unauthenticated`, `errors.Forbidden`, `errors.TooManyRequests`; puts the principal into `scope["user"]`."""
        access = ROUTES[f"{scope['method']} {scope['path_template']}"]
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            raise problems.invalid(_holder_of_nul(scope["query_string"]), "has a NUL character, which cannot be stored", "malformed")
        if scope["method"] == "POST" and sum(name == b"idempotency-key" for name, _ in scope["headers"]) > 1:
            raise problems.invalid("Idempotency-Key", "is given more than once", "doubled")  # which one would be meant?
        if access.near and is_near(scope, self._near):
            scope["user"] = None
            return
        token = None if access.public else bearer(scope["headers"])
        principal: Principal | None = None
        if token is not None:
            try:
                principal = await self._tokens.authenticate(token)
            except errors.Unauthenticated:
                await self._limiter.count(scope, "general", None)  # guessing tokens is limited like any stranger
                raise
        scope["user"] = principal
        await self._limiter.count(scope, access.limit, principal)
        allow(access, principal)


def methods_of(path: str) -> list[str]:
    """What a path takes."""
    methods = {method for method, _, template in (name.partition(" ") for name in ROUTES) if template == path}
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def _holder_of_nul(query: bytes) -> str:
    return next((part.partition(b"=")[0].decode("latin-1") for part in query.split(b"&") if b"%00" in part), "path")


def allow(access: Access, principal: Principal | None) -> None:
    """Raises `errors.Unauthenticated` or `errors.Forbidden` where the row says no."""
    if principal is None:
        if not access.anonymous:
            raise errors.Unauthenticated
    elif principal.role == "service":
        if access.scope is None:
            raise errors.Forbidden(detail="An API key cannot do that.")
        if principal.scopes.isdisjoint({access.scope, access.or_scope}):
            raise errors.Forbidden(detail="The API key lacks a scope.", needs_scope=access.scope)
    elif not (access.operator if principal.role == "operator" else access.user):
        raise errors.Forbidden(detail="Only an operator may do that." if access.operator else "A user may not do that.")


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of `Authorization: Bearer <token>`; None without that header; raises `errors.Unauthenticated` for another scheme."""
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() != BEARER:
                raise errors.Unauthenticated
            return value[7:].strip().decode("latin-1")
    return None
