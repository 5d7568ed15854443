"""The primary's folder is gone, and its copies are there: one of them is named primary, and the next start promotes it.

Which one is decided as in a failover (`failover.py`): by what all of them say, or the operator accepts a loss.
"""

from piggybank.appliance import topology
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.failover import choose
from piggybank.appliance.folder import Lock
from piggybank.settings import Settings


def is_orphaned(settings: Settings) -> bool:
    """True where standbys have a folder, and their primary has none."""
    stores = settings.data_dir / "stores"
    made = [name for name in topology.NODES if (stores / name).exists()]
    return bool(made) and topology.primary_of(stores) not in made


def name_heir(settings: Settings, to: str, tell: Tell, *, accept_loss: bool) -> str:
    """Start the standbys for a moment, and write down which one goes furthest; returns its name. Raises `errors.CannotProceed`."""
    stores = Embedded(settings.data_dir, topology.wanted(settings))
    with Lock(settings.data_dir):
        stores.prepare(orphaned=True)
        old = stores.postgres.primary
        try:
            for name in topology.standbys_of(stores.dir, stores.topology.replicas):
                if stores.postgres.is_made(name):
                    tell(f"asking {name}")
                    stores.ensure(name)
                    stores.wait_ready(name)
            new, _ = choose(stores, to, accept_loss=accept_loss)
            stores.postgres.name_primary(new)
        finally:
            stores.stop()
    tell(f"{new} takes the place of {old}")
    return new
