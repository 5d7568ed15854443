"""From a refusal to an answer, and from what nobody foresaw to a 500."""

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from piggybank import telemetry
from piggybank.simulator.api.bodies import Asked
from piggybank.simulator.refusals import Refused

_HUNG_UP = "client disconnected prematurely"  # litestar's words, under a 500
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}

_log = telemetry.logger("simulator")


def handle(request: Asked, exception: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything."""
    refused = _refused(request, exception)
    headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
    if isinstance(exception, HTTPException) and exception.headers and "allow" in exception.headers:
        headers["Allow"] = exception.headers["allow"]
    return Response(msgspec.json.encode(refused.body), status_code=refused.status, headers=headers, media_type="application/json")


def _refused(request: Asked, exception: Exception) -> Refused:
    if isinstance(exception, Refused):
        return exception
    if isinstance(exception, HTTPException) and (exception.status_code < 500 or exception.detail == _HUNG_UP):
        status = exception.status_code if exception.status_code < 500 else 400
        return Refused(exception.detail, _CODES.get(status, "invalid"), status=status)
    _log.error("request_failed", path=request.scope["path"], exc_info=exception)
    return Refused("A server error occurred.", "error", status=500)
