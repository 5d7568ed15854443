"""Nothing supervises, since the primary cannot be had: its folder is gone, or it does not start. One of its copies is named primary, and
the next start promotes it.

Which one is decided as in a failover (`failover.py`): by what all of them say, or the operator accepts a loss.
"""

import time
from contextlib import suppress

from piggybank import errors
from piggybank.appliance import topology
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.failover import choose, has_all
from piggybank.appliance.folder import Lock
from piggybank.settings import Settings

READ_WITHIN_S = 120.0  # a standby's own log: at most what it keeps
POLL_S = 0.2


def has_copies(settings: Settings) -> bool:
    """True where a standby has its folder, and this phase has standbys, or their primary has none."""
    stores = settings.data_dir / "stores"
    primary = topology.primary_of(stores)
    made = {name for name in topology.NODES if (stores / name).exists()}
    return bool(made - {primary}) and (topology.wanted(settings).replicas > 0 or primary not in made)


def name_heir(settings: Settings, to: str, tell: Tell, *, accept_loss: bool) -> str:
    """Start the standbys for a moment, and write down which one goes furthest; returns its name. Raises `errors.CannotProceed`, also
    where the primary can be had.
    """
    stores = Embedded(settings.data_dir, topology.wanted(settings))
    with Lock(settings.data_dir):
        stores.check_restored()
        stores.prepare(orphaned=True)
        old = stores.postgres.primary
        try:
            if stores.postgres.is_made(old) or stores.is_ready(old):
                _check_broken(stores, old, tell)
            for name in topology.standbys_of(stores.dir, stores.topology.replicas):
                _start(stores, name, tell)
            new, _ = choose(stores, to, accept_loss=accept_loss)
            # also of one that ended in order: its standbys ended first, and lack what it wrote after them, which nobody confirmed
            if not accept_loss and not has_all(stores, old, new, crashed=True):
                raise errors.CannotProceed(
                    what=f"{new} is not known to have all that {old} answered: another is silent or has more, or commits waited for nobody",
                    do="start the others (their logs say why they do not), or accept a loss: --accept-loss",
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


def _start(stores: Embedded, name: str, tell: Tell) -> None:
    """Until it says all that it has. One that is of another past, or does not start, says nothing: the others are asked."""
    if not stores.postgres.is_made(name) or stores.postgres.must_be_rewound(name):
        return
    tell(f"asking {name}")
    with suppress(errors.StoreFailed):
        stores.ensure(name)
        stores.wait_ready(name)
        until = time.monotonic() + READ_WITHIN_S
        while not stores.postgres.look(name).read and time.monotonic() < until:
            time.sleep(POLL_S)
