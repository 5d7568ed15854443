"""The page behind a one-time link: become an operator, sign up with an invite, set a new password.

The token is in the fragment (`/welcome#invite=..`), which a browser keeps to itself; the script sends it in a body. Nothing is
loaded from elsewhere, and addresses are relative, so the page also works below a path of a proxy.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException

from piggybank.api import caching, pages
from piggybank.wallet.provider import Provider

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOLDER = Path(__file__).parent
_SIMULATOR = b'<p class="simulator"><strong>SIMULATOR</strong> payments are play, no real money moves</p>\n'
_ASSETS = {"welcome.css": "text/css", "welcome.js": "text/javascript"}


@get("/welcome", include_in_schema=False)
async def page(request: Request[Any, Any, Any], provider: Provider) -> Response[Any]:
    """The page, with the assets of this version; in simulator mode it says so."""
    html = _page()
    if not await provider.is_simulator():
        html = html.replace(_SIMULATOR, b"")
    return pages.shown(request, html, POLICY)


@get("/welcome/{name:str}", sync_to_thread=False, include_in_schema=False)
def asset(request: Request[Any, Any, Any], name: str) -> Response[bytes]:
    """What the page loads."""
    if name not in _ASSETS:
        raise NotFoundException
    return caching.static(request, _content(name), _ASSETS[name])


routes = [page, asset]


@lru_cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@lru_cache
def _page() -> bytes:
    html = _content("welcome.html")
    for name in _ASSETS:
        html = html.replace(name.encode(), f"{name}?{caching.hash_of(_content(name))}".encode())
    return html
