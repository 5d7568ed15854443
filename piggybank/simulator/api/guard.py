"""Who may ask: the secret key for the API and the controls, a token of its own for the EFT credits.

Tokens are signed, not stored: they hold over a restart, and 24 h are 24 h whatever `time_scale` is, since the client's clock is real.
"""

import base64
import binascii
import hashlib
import hmac
import time

from piggybank.simulator.api.bodies import Asked
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation

TOKEN_TTL_S = 86_400
_OPEN = ("/checkout/", "/health/", "/oauth2/")
_EFT = "/v2/"


class Guard:
    """Litestar's before_request."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._signing_key = hashlib.sha256(f"{sim.config.eft_client_id}:{sim.config.eft_client_secret}".encode()).digest()

    def admit(self, request: Asked) -> None:
        """Refuse with a 401 who has not said who they are."""
        path = request.scope["path"]
        if path.startswith(_EFT):
            _check(self._holds(_bearer(request)))
        elif not path.startswith(_OPEN):  # so that no other spelling of a path goes without the key
            _check(hmac.compare_digest(_bearer(request).encode(), self._sim.config.key.encode()))

    def may_have_token(self, request: Asked) -> bool:
        """HTTP basic with the client's id and secret."""
        scheme, _, coded = request.headers.get("authorization", "").partition(" ")
        try:
            said = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            return False
        wanted = f"{self._sim.config.eft_client_id}:{self._sim.config.eft_client_secret}".encode()
        return scheme.lower() == "basic" and hmac.compare_digest(said, wanted)

    def new_token(self) -> str:
        """A token until TOKEN_TTL_S from now."""
        until = str(int(time.time()) + TOKEN_TTL_S)
        return f"{until}.{self._signature(until)}"

    def _holds(self, token: str) -> bool:
        until, _, signature = token.partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(until).encode())
        return is_ours and int(until) > time.time()

    def _signature(self, until: str) -> str:
        return hmac.new(self._signing_key, until.encode(), hashlib.sha256).hexdigest()


def _bearer(request: Asked) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _check(may: bool) -> None:
    if not may:
        raise Refused("Authentication credentials were not provided or are wrong.", "authentication_failed", status=401)
