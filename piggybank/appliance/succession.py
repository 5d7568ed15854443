"""Nothing supervises, since the primary cannot be had: its folder is gone, or it does not start. One of its copies is named primary, and
the next start promotes it.

Which one is decided as in a failover (`failover.py`): by what all of them say, or the operator accepts a loss.
"""

from piggybank import errors
from piggybank.appliance import topology
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.failover import choose, has_all
from piggybank.appliance.folder import Lock
from piggybank.settings import Settings


def has_copies(settings: Settings) -> bool:
    """True where standbys have a folder."""
    stores = settings.data_dir / "stores"
    return any((stores / name).exists() for name in topology.NODES if name != topology.primary_of(stores))


def name_heir(settings: Settings, to: str, tell: Tell, *, accept_loss: bool) -> str:
    """Start the standbys for a moment, and write down which one goes furthest; returns its name. Raises `errors.CannotProceed`, also
    where the primary can be had.
    """
    stores = Embedded(settings.data_dir, topology.wanted(settings))
    with Lock(settings.data_dir):
        stores.prepare(orphaned=True)
        old = stores.postgres.primary
        try:
            if stores.postgres.is_made(old):
                _check_broken(stores, old, tell)
            for name in topology.standbys_of(stores.dir, stores.topology.replicas):
                if stores.postgres.is_made(name):
                    tell(f"asking {name}")
                    stores.ensure(name)
                    stores.wait_ready(name)
            new, _ = choose(stores, to, accept_loss=accept_loss)
            # also of one that ended in order: its standbys ended first, and lack what it wrote after them, which nobody confirmed
            if not accept_loss and not has_all(stores, old, new, crashed=True):
                raise errors.CannotProceed(
                    what=f"{new} did not get all that {old} had", do="mend that (its log says why), or accept it: --accept-loss"
                )
            stores.postgres.name_primary(new)
        finally:
            stores.stop()
    tell(f"{new} takes the place of {old}")
    return new


def _check_broken(stores: Embedded, primary: str, tell: Tell) -> None:
    """One that starts takes nobody's place by itself: who is to supervise it does not run."""
    tell(f"starting {primary}")
    try:
        stores.ensure(primary)
        stores.wait_ready(primary)
    except errors.StoreFailed:
        stores.postgres.fence(primary, stores.running.pop(primary, None))
        tell(f"{primary} does not start")
    else:
        raise errors.CannotProceed(what=f"{primary} starts, and nothing supervises it", do="piggybank up --detach, then again")
