"""A simulator of Revio: purchases, refunds, chargebacks, payouts, EFT credits, settlement and statements, with a book of its own.

It is the other side: an independent implementation of what the provider's documents say, for trial installations and for tests,
and it misbehaves on demand (see faults.py). It knows nothing of piggybank's own client.

    api/, checkout/     what is answered over HTTP
    purchases.py ..     what may happen to an object, one file each
    clockwork.py        what happens by itself; deliveries.py tells of it
    book.py             the one SQLite file in which all of it is kept
"""

from piggybank.simulator.app import create_app
from piggybank.simulator.config import Config

__all__ = ["Config", "create_app"]
