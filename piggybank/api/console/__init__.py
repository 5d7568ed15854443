"""The operator console: one page, its modules, a style sheet and a chart library, served as they are; nothing is built.

It is a client of the API like any other and knows nothing that the API does not tell: the page itself holds nothing private, so it is
public, and whoever has no operator's session sees a form to sign in. The session's token is kept by the browser's tab
(`sessionStorage`) and sent as a header: there is no cookie that a foreign page could make a browser send, so there is no request to
forge. What could take it is a script of somebody else's, so the policy lets none in: only files of this server, no inline script, and
`require-trusted-types-for` refuses every way of making elements out of text.

The address of a file carries the hash of all of them. Modules load each other by relative addresses, so no version mixes with another.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException

from piggybank.api import caching, pages
from piggybank.wallet.provider import Provider

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
_FOLDER = Path(__file__).parent
_SIMULATOR = b'<aside class="simulator" aria-label="Mode"><strong>SIMULATOR</strong> payments are play, no real money moves</aside>\n'


@get("/console", include_in_schema=False)
async def page(request: Request[Any, Any, Any], provider: Provider) -> Response[Any]:
    """The page, with the files of this version; in simulator mode it says so."""
    html = _page()
    if not await provider.is_simulator():
        html = html.replace(_SIMULATOR, b"")
    response = pages.shown(request, html, POLICY)
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return response


@get("/console/{version:str}/{name:path}", sync_to_thread=False, include_in_schema=False)
def asset(request: Request[Any, Any, Any], version: str, name: str) -> Response[bytes]:
    """A file of the page. Asked for by another version's address, it is kept no longer than the page."""
    path = name.removeprefix("/")
    if path not in files():
        raise NotFoundException
    kept = caching.IMMUTABLE if version == version_of() else caching.PAGE
    return caching.revalidated(request, files()[path], kept, media_type=MEDIA_TYPES[Path(path).suffix])


routes = [page, asset]


@lru_cache
def files() -> dict[str, bytes]:
    """What the page loads, by its path below the version."""
    found = sorted(path for path in _FOLDER.rglob("*") if path.suffix in MEDIA_TYPES)
    return {path.relative_to(_FOLDER).as_posix(): path.read_bytes() for path in found}


@lru_cache
def version_of() -> str:
    """The hash of all files."""
    return caching.hash_of(b"\0".join(name.encode() + b"\0" + body for name, body in files().items()))


@lru_cache
def _page() -> bytes:
    return (_FOLDER / "console.html").read_bytes().replace(b"{version}", version_of().encode())
