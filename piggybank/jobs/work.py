"""What a job gets to work with."""

from msgspec import Struct

from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider


class Work(Struct, frozen=True):
    """The parts of the process that runs the job."""

    settings: Settings
    db: Database
    cache: Cache
    ledger: Ledger
    provider: Provider
