"""Bodies of requests: decoded once, straight into the type that the handler asks for, or refused in words.

The framework would decode loosely first ("5" for 5, 1.0 for 1), and money takes no such thing.
"""

import json
import re
from functools import lru_cache
from typing import Any

import msgspec

from piggybank import errors
from piggybank.api import problems

BODY_MAX_BYTES = 1_048_576
KEPT_CONTENT_TYPES = 64  # spellings that are remembered

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def decode(content_type: str, body: bytes, annotation: Any) -> Any:
    """`body` as `annotation`; raises `errors.UnsupportedMediaType`, `errors.InvalidRequest`."""
    if not is_json(content_type):
        raise errors.UnsupportedMediaType
    try:
        decoded = _decoder(annotation).decode(body)
        _refuse_doubled_keys(body)
    except (ValueError, RecursionError) as cause:
        raise problems.invalid_body(cause) from cause
    if b"\\u0000" in body and _ESCAPED_NUL.search(body):
        raise problems.invalid("body", "has a NUL character, which cannot be stored", "malformed")
    return decoded


@lru_cache(KEPT_CONTENT_TYPES)
def is_json(content_type: str) -> bool:
    """`application/json`, or something `+json`."""
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))


@lru_cache
def _decoder(annotation: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(annotation)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        doubled = next(name for position, (name, _) in enumerate(pairs) if name in {earlier for earlier, _ in pairs[:position]})
        raise problems.invalid(doubled, "occurs twice in one object", "doubled")
    return fields


_strict = json.JSONDecoder(object_pairs_hook=_object)


def _refuse_doubled_keys(body: bytes) -> None:
    """msgspec takes the last of two equal keys and a proxy may take the first: nobody may mean both. About 5 us a deposit."""
    _strict.decode(body.decode())
