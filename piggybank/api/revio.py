"""What the provider tells us. Kept as it came, answered at once, applied by a job."""

import hmac
from typing import Any

from litestar import Request, Response, post
from msgspec import Struct

from piggybank import errors, telemetry
from piggybank.api import limits
from piggybank.settings import Settings
from piggybank.wallet import inbox
from piggybank.wallet.provider import Provider

SIGNATURE = "x-signature"

_log = telemetry.logger("revio")


class Received(Struct, frozen=True, kw_only=True):
    """`new` is false for a body that was kept before."""

    new: bool


@post(
    "/v1/revio/events",
    status_code=200,
    request_max_body_size=inbox.BODY_MAX_BYTES,
    summary="An event of the provider, signed",
    tags=["provider"],
)
async def events(request: Request[Any, Any, Any], settings: Settings, provider: Provider) -> Response[Received]:
    """Verified over the raw bytes, kept once, applied later. 401: not signed by a key that this installation knows."""
    body = await request.body()
    if not await provider.is_signed(body, request.headers.get(SIGNATURE)):
        client = limits.client_of(request.scope, limits.networks(settings.trusted_proxies))
        _log.info("event_refused", request_id=request.scope["state"]["request_id"], client=client)
        raise errors.BadSignature
    return Response(Received(new=await inbox.receive(provider.db, await provider.mode(), body)))


@post(
    "/v1/revio/eft/{secret:str}",
    status_code=200,
    request_max_body_size=inbox.BODY_MAX_BYTES,
    summary="A callback of the EFT API, unsigned",
    tags=["provider"],
)
async def eft(secret: str, request: Request[Any, Any, Any], settings: Settings, provider: Provider) -> Response[Received]:
    """Kept as a hint: it posts nothing, the statement decides. 404 but for the path that was agreed upon."""
    if not any(hmac.compare_digest(secret.encode(), agreed.encode()) for agreed in settings.eft_callback_secrets):
        raise errors.NotFound
    body = await request.body()
    return Response(Received(new=await inbox.receive(provider.db, await provider.mode(), body, signed=False)))


routes = [events, eft]
