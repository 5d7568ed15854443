"""Pages for people. What they load they name by relative addresses, so that they also work below a path of a proxy."""

from typing import Any

from litestar import Request, Response
from litestar.response import Redirect

from piggybank.api import caching


def shown(request: Request[Any, Any, Any], html: bytes, policy: str) -> Response[Any]:
    """The page; who asks for it with slashes behind its name is sent to the name: from `/console/` the addresses would lead elsewhere.

    Nothing that was asked for is in the answer's `Location`, so it leads nowhere else.
    """
    path, name = request.scope["raw_path"], request.scope["path_template"].rpartition("/")[2]  # `path` has lost them
    if slashes := len(path) - len(path.rstrip(b"/")):
        return Redirect("../" * slashes + name, status_code=308)
    response = caching.revalidated(request, html, caching.PAGE, media_type="text/html")
    response.headers["Content-Security-Policy"] = policy
    return response
