"""What a cache between us and the client may keep. Everything else says `private, no-store` (api/requests.py).

Three kinds are public, each the same for everybody, asked with or without a token: files whose address has their hash (for ever),
metadata (an hour in a shared cache, then the old copy serves while the new one is fetched) and pages, which say what mode the
installation is in and are looked at again after five minutes. Errors are never kept, also not on these routes.
"""

import hashlib
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response

IMMUTABLE = "public, max-age=31536000, immutable"
METADATA = "public, max-age=300, s-maxage=3600, stale-while-revalidate=86400"
PAGE = "public, max-age=300, stale-while-revalidate=60"
HASH_BYTES = 12

_T = TypeVar("_T")


def hash_of(body: bytes) -> str:
    """What the address of a file carries, and what an `ETag` is."""
    return hashlib.blake2b(body, digest_size=HASH_BYTES).hexdigest()


def revalidated(request: Request[Any, Any, Any], content: _T, cache_control: str, *, media_type: str = "application/json") -> Response[Any]:
    """`content` (bytes as they are), or 304 when the client has it."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    tag = f'"{hash_of(body)}"'
    headers = {"ETag": tag, "Cache-Control": cache_control}
    known = request.headers.get("if-none-match", "")
    if known.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in known.split(",")):
        return Response(b"", status_code=304, headers=headers, media_type=media_type)
    return Response(body, headers=headers, media_type=media_type)


def static(request: Request[Any, Any, Any], body: bytes, media_type: str) -> Response[Any]:
    """A file of a page. Asked for by another hash (a page of another version), it is kept no longer than the page."""
    asked_by_hash = request.scope["query_string"].decode("latin-1") == hash_of(body)
    return revalidated(request, body, IMMUTABLE if asked_by_hash else PAGE, media_type=media_type)
