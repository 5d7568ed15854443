"""Admission: a movement that would wait too long in the ledger's queue is refused before anything is done for it.

Under overload a refusal takes its time from a posting. So nothing is decoded, nobody is looked up and the answer is ready-made; one
line a second says how many there were.
"""

import time

from piggybank import errors, telemetry
from piggybank.api import problems
from piggybank.api.fast_path import Answer, sized
from piggybank.ledger import Ledger

TELL_EVERY_S = 1.0
_PLACE = "00000000000000000000000000000000"  # of the request's name in the ready-made answer


class Admission:
    """One process's view of its ledger's queue."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        error = errors.Overloaded()
        self._status = problems.status_of(errors.Overloaded)
        self._body = problems.body(error, self._status, _PLACE)
        self._refused = 0
        self._told_at = 0.0
        self._log = telemetry.logger("admission")

    @property
    def is_full(self) -> bool:
        """True while the next movement would be refused anyway."""
        return self._ledger.full

    def refusal(self, request_id: str) -> Answer:
        """503, to be tried again with the same key."""
        self._refused += 1
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._log.warning("overloaded: movements are refused", refused=self._refused, waiting=self._ledger.waiting)
            self._refused, self._told_at = 0, now
        headers = [(b"retry-after", b"%d" % problems.RETRY_AFTER_S)]
        body = self._body.replace(_PLACE.encode(), problems.escaped(request_id), 1)
        return sized(self._status, headers, problems.MEDIA_TYPE.encode(), body)
