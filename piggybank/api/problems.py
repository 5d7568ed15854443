"""From an error to an answer: the only place that knows both our errors and HTTP.

Every answer that is not a success is RFC 9457 `application/problem+json` with a stable `code`, the framework's own errors
included. Nothing of an unexpected error leaves the house but the request_id, by which the log finds it.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.routes import HTTPRoute
from litestar.types.internal_types import PathParameterDefinition
from msgspec import Meta
from sqlalchemy import exc as sqlalchemy_errors

from piggybank import errors, telemetry
from piggybank.db.engines import CONNECTION_LOST

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1  # what a retryable answer says when the error does not know better

# The status of an error is that of the nearest class above it in this table.
STATUS: dict[type[errors.Error], int] = {
    errors.InvalidRequest: 400,
    errors.IdempotencyKeyRequired: 400,
    errors.WeakPassword: 400,
    errors.LinkInvalid: 400,
    errors.CurrencyNotEnabled: 400,
    errors.Unauthenticated: 401,
    errors.WrongCredentials: 401,
    errors.BadSignature: 401,
    errors.Forbidden: 403,
    errors.SignUpClosed: 403,
    errors.InviteRequired: 403,
    errors.NotFound: 404,
    errors.UserNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.IdempotencyKeyInUse: 409,
    errors.EmailTaken: 409,
    errors.ExternalIdTaken: 409,
    errors.Refusal: 409,
    errors.ProviderNotConfigured: 409,
    errors.ProviderRefused: 409,
    errors.Archived: 410,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.IdempotencyKeyReused: 422,
    errors.SignInLocked: 429,
    errors.TooManyRequests: 429,
    errors.DatabaseUnavailable: 503,
    errors.NoSynchronousStandby: 503,
    errors.StandbysNotVisible: 503,
    errors.InRecovery: 503,
    errors.StorageFull: 503,
    errors.Overloaded: 503,
    errors.AccountBusy: 503,
    errors.OutcomeUnknown: 503,
    errors.ShuttingDown: 503,
    errors.MailFailed: 503,
    errors.QueueUnavailable: 503,
    errors.ProviderUnavailable: 503,
    errors.Error: 500,
}

_FRAMEWORK: dict[int, type[errors.Error]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    429: errors.TooManyRequests,
}

_HUNG_UP = "client disconnected prematurely"  # litestar's words, under a 500

_log = telemetry.logger("api")


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with what was sent."""

    field: Annotated[str, Meta(description="Where: a field of the body (`metadata.order`), a parameter, or `body`.", examples=["amount"])]
    message: Annotated[str, Meta(description="What is wrong, for people.", examples=["must be at least 1"])]
    code: Annotated[str, Meta(description="What is wrong, for programs.", examples=["out_of_range"])]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as RFC 9457 says it. `code` never changes its meaning; some codes carry details beside these fields."""

    type: Annotated[str, Meta(description="Always `about:blank`: read `code`.")] = "about:blank"
    title: Annotated[str, Meta(description="One sentence for people, the same for every error of this code.")]
    status: Annotated[int, Meta(ge=400, le=599)]
    code: Annotated[str, Meta(description="Stable name of the error, for programs.")]
    detail: Annotated[str, Meta(description="What happened here.")]
    retryable: Annotated[bool, Meta(description="True: the same request may be sent again after `Retry-After` seconds.")]
    request_id: Annotated[str, Meta(description="Name it when you ask for help; the log is found by it.")]
    errors: Annotated[list[FieldError] | msgspec.UnsetType, Meta(description="With `invalid_request`: what is wrong, field by field.")] = (
        msgspec.UNSET
    )


def invalid(field: str, message: str, code: str) -> errors.InvalidRequest:
    """`raise invalid("cursor", "is not a cursor of this list", "malformed")`."""
    return errors.InvalidRequest(errors=[FieldError(field=field, message=message, code=code)])


def invalid_body(cause: Exception) -> errors.InvalidRequest:
    """What msgspec (or its stack) said about a body."""
    if isinstance(cause, RecursionError):
        return invalid("body", "is nested too deeply", "malformed")
    if isinstance(cause, msgspec.ValidationError):
        return errors.InvalidRequest(errors=[_in_words(str(cause), "body")])
    return invalid("body", "is not well-formed JSON in UTF-8", "malformed")


def status_of(error: type[errors.Error]) -> int:
    """The status of an error class."""
    return next(STATUS[ancestor] for ancestor in error.__mro__ if ancestor in STATUS)


def answer(request: Request[Any, Any, Any], exception: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything."""
    error = _ours(request, exception)
    status = status_of(type(error))
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif status == 405 and isinstance(exception, HTTPException) and exception.headers:
        methods = set(exception.headers["allow"].split(", "))
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    if status == 429 or error.retryable:
        headers["Retry-After"] = str(error.details.get("retry_after_s", RETRY_AFTER_S))
    if error.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(body(error, status, request.scope["state"]["request_id"]), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def body(error: errors.Error, status: int, request_id: str) -> bytes:
    """The problem as JSON: the fixed fields, then the error's own details."""
    details = dict(error.details)
    if "field" in details:  # how rooms below say what this one calls `invalid`
        details["errors"] = [{"field": details.pop("field"), "message": details.pop("message"), "code": details.pop("code", "malformed")}]
    field_errors = [msgspec.convert(wrong, FieldError, from_attributes=True) for wrong in details.pop("errors", ())] or msgspec.UNSET
    problem = Problem(
        title=error.title,
        status=status,
        code=error.code,
        detail=str(details.pop("detail", "")) or _detail(error, field_errors),
        retryable=error.retryable,
        request_id=request_id,
        errors=field_errors,
    )
    return msgspec.json.encode(details | msgspec.to_builtins(problem), enc_hook=str)


def escaped(text: str) -> bytes:
    """A text as it stands between the quotes of JSON."""
    return msgspec.json.encode(text)[1:-1]


def _detail(error: errors.Error, field_errors: list[FieldError] | msgspec.UnsetType) -> str:
    if field_errors is not msgspec.UNSET:
        return "; ".join(f"{wrong.field} {wrong.message}" for wrong in field_errors)
    return error.title


def _ours(request: Request[Any, Any, Any], exception: Exception) -> errors.Error:
    """The error of our closed list that `exception` is."""
    match exception:
        case errors.Error():
            error: errors.Error = exception
        case HTTPException():
            error = _of_framework(request, exception)
        case sqlalchemy_errors.TimeoutError():
            error = errors.DatabaseUnavailable()
        case sqlalchemy_errors.DBAPIError():
            cause = getattr(exception.orig, "__cause__", None)
            error = errors.DatabaseUnavailable() if exception.connection_invalidated else _of_database(cause)
        case asyncpg.PostgresError() | asyncpg.InterfaceError() | OSError():
            error = _of_database(exception)
        case msgspec.DecodeError() | RecursionError() | UnicodeError():
            error = invalid_body(exception)
        case _:
            error = errors.InternalError()
    if status_of(type(error)) == 500:
        _log.error("request_failed", request_id=request.scope["state"]["request_id"], code=error.code, exc_info=exception)
        return errors.InternalError()
    return error


def _of_database(cause: BaseException | None) -> errors.Error:
    match cause:
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.UntranslatableCharacterError():
            return invalid("body", "has a character that cannot be stored (NUL)", "malformed")
        case (
            asyncpg.QueryCanceledError() | asyncpg.LockNotAvailableError() | asyncpg.DeadlockDetectedError() | asyncpg.SerializationError()
        ):
            return errors.Overloaded()
        case asyncpg.DiskFullError():
            return errors.StorageFull()
        case asyncpg.TooManyConnectionsError() | asyncpg.ReadOnlySQLTransactionError():
            return errors.DatabaseUnavailable()
        case cause if isinstance(cause, CONNECTION_LOST):
            return errors.DatabaseUnavailable()
        case _:
            return errors.InternalError()


def _of_framework(request: Request[Any, Any, Any], exception: HTTPException) -> errors.Error:
    if exception.status_code == 404 and isinstance(exception.__cause__, ValueError):  # a path parameter that is no UUID
        name = _wrong_path_parameter(request)
        return invalid(name, "is not a UUID", "malformed") if name else errors.NotFound()
    if exception.status_code in _FRAMEWORK:
        return _FRAMEWORK[exception.status_code]()
    if exception.detail == _HUNG_UP:
        return invalid("body", "ended too early", "malformed")  # nobody reads this; it is no fault of ours either
    if exception.status_code == 400:
        return errors.InvalidRequest(errors=list(_field_errors(exception)))
    return errors.InternalError()


def _field_errors(exception: HTTPException) -> Iterator[FieldError]:
    if isinstance(exception.extra, list) and exception.extra:
        for wrong in exception.extra:
            key = str(wrong.get("key", "body"))
            missing_body = key == "data" and wrong["message"] == "'data'"  # a KeyError's text
            yield FieldError(field="body", message="is required", code="required") if missing_body else _in_words(wrong["message"], key)
    elif missing := re.match(r"Missing required (\w+) parameter '(.+?)'", exception.detail):
        yield FieldError(field=missing[2], message=f"is required ({missing[1]} parameter)", code="required")
    else:
        yield FieldError(field="request", message=exception.detail, code="malformed")


def _wrong_path_parameter(request: Request[Any, Any, Any]) -> str | None:
    """Which parameter of which route did not parse: the router does not say."""
    sent = [part for part in request.scope["path"].split("/") if part]
    for route in request.app.routes:
        if isinstance(route, HTTPRoute) and len(route.path_components) == len(sent):
            pairs = list(zip(route.path_components, sent, strict=True))
            if all(isinstance(part, PathParameterDefinition) or part == given for part, given in pairs):
                for part, given in pairs:
                    if isinstance(part, PathParameterDefinition) and part.type is UUID and not _is_uuid(given):
                        return part.name
    return None


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
    "uuid": "a UUID",
    "datetime": "a time like 2026-01-31T12:00:00Z",
    "date": "a date like 2026-01-31",
}
_WORDS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), words, code)
    for pattern, words, code in (
        (r"Object missing required field `(?P<field>[^`]+)`", "is required", "required"),
        (r"Object contains unknown field `(?P<field>.*?)`(?: - at|$)", "is not a known field", "unknown_field"),
        (r"Expected `int` >= (?P<a>\S+)", "must be at least {a}", "out_of_range"),
        (r"Expected `int` <= (?P<a>\S+)", "must be at most {a}", "out_of_range"),
        (r"Expected `str` of length >= (?P<a>\d+)", "must have at least {a} characters", "too_short"),
        (r"Expected `str` of length <= (?P<a>\d+)", "must have at most {a} characters", "too_long"),
        (r"Expected `(?:array|object)` of length >= (?P<a>\d+)", "must have at least {a} entries", "too_short"),
        (r"Expected `(?:array|object)` of length <= (?P<a>\d+)", "must have at most {a} entries", "too_long"),
        (r"Expected `str` matching regex '(?P<a>.*)'", "must match {a}", "malformed"),
        (r"Invalid (?:enum )?value ", "is not one of the allowed values", "not_allowed"),
        (r"Invalid (?:RFC3339|ISO8601) encoded (?P<t>\w+)|Invalid (?P<u>UUID|uuid)", "is malformed", "malformed"),
        (r"Expected `(?P<want>[^`]+)`, got `(?P<got>[^`]+)`", "must be {want}, not {got}", "wrong_type"),
        (r"(?i)badly formed hexadecimal UUID", "is not a UUID", "malformed"),
        (r"Integer value out of range", "is out of range", "out_of_range"),
    )
)
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*)`$")


def _in_words(message: str, field: str) -> FieldError:
    """msgspec's sentence, with the field first and the types in plain words."""
    place = _PATH.search(message)
    if place and place["path"]:
        field = place["path"] if field in ("body", "data") else f"{field}.{place['path']}"
    field = "body" if field == "data" else field.removeprefix("data.").replace("[...]", ".*")
    for pattern, words, code in _WORDS:
        if found := pattern.search(message):
            parts = found.groupdict()
            if name := parts.pop("field", None):
                field = name if field == "body" else f"{field}.{name}"
            plain = {key: " or ".join(_TYPES.get(word, word) for word in str(value).split(" | ")) for key, value in parts.items()}
            return FieldError(field=field, message=words.format(**plain), code=code)
    return FieldError(field=field, message="is not valid", code="malformed")
