"""Bodies of requests and answers: decoded once into the handler's type, encoded as compact JSON."""

import re
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Meta

from piggybank import money
from piggybank.simulator.refusals import ALL, Refused, required
from piggybank.simulator.simulation import Simulation

BODY_MAX_BYTES = 1_048_576
REFERENCE_MAX_CHARACTERS = 128

Sim = NamedDependency[Simulation]
Id = FromPath[str]
Asked = Request[Any, Any, Any]
Amount = Annotated[int, Meta(ge=1, le=money.MAX_AMOUNT)]
Text = Annotated[str, Meta(max_length=1_000)]
Reference = Annotated[str, Meta(max_length=REFERENCE_MAX_CHARACTERS)]
Email = Annotated[str, Meta(max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")]
# goes into a Location header: printable ASCII only
Url = Annotated[str, Meta(max_length=2_000, pattern=r"^$|^[A-Za-z][A-Za-z0-9+.-]*:[!#-;=?-\[\]-~]+$")]

_T = TypeVar("_T")
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(?P<field>.*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_NOT_SCHEMES = frozenset({"javascript", "data", "vbscript", "file"})


async def read(request: Asked, made: type[_T]) -> _T:
    """The body as `made`; an empty one is `{}`."""
    raw = await request.body() or b"{}"
    try:
        return msgspec.json.decode(raw, type=made)
    except msgspec.ValidationError as cause:
        raise _refusal(str(cause)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refused("JSON parse error.", "parse_error") from None


def answer(content: object, status: int = 200) -> Response[bytes]:
    """`content` as JSON."""
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def check_brand(sim: Simulation, brand_id: str) -> None:
    """The brand must be ours."""
    if brand_id != sim.config.brand_id:
        raise Refused(f'Invalid pk "{brand_id}" - object does not exist.', "does_not_exist", field="brand_id")


def check_currency(field: str, currency: str) -> None:
    """The currency must exist."""
    if currency not in money.MINOR_UNITS:
        raise Refused(f'"{currency}" is not a valid choice.', "invalid_choice", field=field)


def check_urls(**urls: str) -> None:
    """Schemes that a browser would run are refused, and what cannot be taken apart."""
    for field, url in urls.items():
        try:
            scheme = urlsplit(url).scheme
        except ValueError:  # brackets that hold no IPv6 address
            scheme = "data"
        if scheme in _NOT_SCHEMES:
            raise Refused("Enter a valid URL.", "invalid", field=field)


def _refusal(message: str) -> Refused:
    """msgspec's sentence in the API's shape: fields are dotted, like `client.email`."""
    place = _PLACE.search(message)
    field = place["field"] if place else ""
    if missing := _MISSING.search(message):
        return required(".".join(filter(None, (field, missing["field"]))))
    if "matching regex" in message:
        return Refused("Enter a valid value.", "invalid", field=field or ALL)
    return Refused(message.partition(" - at ")[0], "invalid", field=field or ALL)
