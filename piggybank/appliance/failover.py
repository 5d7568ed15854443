"""A standby becomes the primary.

With `ANY 1` of two standbys an answered commit is on one of them, and nobody knows on which. So the one that takes over must be known to
have it: either the old primary still answers, and sends what it has before it stops, or every standby answers, and the one whose log
goes furthest is taken. Otherwise the operator has to say that loss is accepted.

Who the primary is is written down before anything is promoted. From then on the old one is never started but through pg_rewind, as a
standby; interrupted anywhere after that, the next start ends what was begun.
"""

import signal
import time
from contextlib import suppress

from piggybank import errors
from piggybank.appliance import store_files, topology
from piggybank.appliance.embedded import Embedded, Tell, quietly
from piggybank.appliance.postgres import Postgres, Standing
from piggybank.appliance.topology import POOLER

ARRIVAL_S = 5.0  # what was sent is on the other's disk by then
POLL_S = 0.05


def fail_over(stores: Embedded, to: str = "", tell: Tell = quietly, *, accept_loss: bool = False) -> str:
    """Make a standby the primary; returns its name. The old one is stopped, or killed, first, and becomes a standby.

    Raises `errors.CannotProceed`, with nothing changed, where no standby is sure to have every answered commit.
    """
    old = stores.postgres.primary
    stores.busy.add(old)  # nobody starts it again while it is looked at
    try:
        new = _choose(stores, to, accept_loss=accept_loss)
        tell(f"{new} becomes the primary, in the place of {old}")
        stores.postgres.fence(old, stores.running.pop(old, None))
        tell(f"{old} takes nothing any more")
        try:
            if not accept_loss and stores.topology.synchronous and not _has_all(stores, old, new):
                raise errors.CannotProceed(
                    what=f"{new} did not get all that {old} had, so {old} goes on", do="piggybank status, then again; or --accept-loss"
                )
            stores.postgres.name_primary(new)
        except BaseException:
            stores.ensure(old)
            raise
        store_files.write_addresses(stores.data_dir, stores.addresses(), stores.user)
        stores.take_over(new)
        tell(f"{new} takes writes")
        _follow(stores, old, new, tell)
    finally:
        stores.busy.discard(old)
    return new


def _choose(stores: Embedded, to: str, *, accept_loss: bool) -> str:
    postgres, standbys = stores.postgres, topology.standbys_of(stores.dir, stores.topology.replicas)
    answering, silent = {}, {}
    for name in standbys:
        try:
            answering[name] = postgres.look(name)
        except errors.StoreFailed as cause:
            silent[name] = str(cause.details["says"])
    if not answering:
        because = "; ".join(f"{name}: {says}" for name, says in silent.items()) or "this phase has none"
        raise errors.CannotProceed(
            what=f"no standby answers ({because})", do="a failover needs phase 2 and a live standby: piggybank status"
        )
    if to and to not in answering:
        raise errors.CannotProceed(what=f"{to} is no standby that answers", do=f"choose one of {', '.join(sorted(answering))}")
    furthest = max(answering.values(), key=lambda standing: standing.received)
    chosen = answering[to] if to else furthest
    if not accept_loss and stores.topology.synchronous:
        _check(postgres, chosen, furthest, sorted(silent))
    return chosen.name


def _check(postgres: Postgres, chosen: Standing, furthest: Standing, silent: list[str]) -> None:
    if postgres.is_ready(postgres.primary) and chosen.name in postgres.streaming():
        return  # it gets all that there is before the old primary stops
    if silent:
        raise errors.CannotProceed(
            what=f"{', '.join(silent)} does not answer, and an answered write may be there alone",
            do="start it first (piggybank status), or accept that: piggybank failover --accept-loss",
        )
    if chosen.received < furthest.received:
        behind = furthest.received - chosen.received
        raise errors.CannotProceed(
            what=f"{chosen.name} is {behind} bytes behind {furthest.name}: answered writes could be missing",
            do=f"piggybank failover --to {furthest.name}",
        )


def _has_all(stores: Embedded, old: str, new: str) -> bool:
    """The old primary has ended: has the new one all that it sent, or, where every standby answers, all that any of them confirmed?

    The second counts where the old one wrote by itself before it ended, as a start after a crash does, with nobody connected.
    """
    end, until = stores.postgres.shut_down_at(old), time.monotonic() + ARRIVAL_S
    while True:
        had = stores.postgres.look(new).received
        if end is not None and had >= end:
            return True
        with suppress(errors.StoreFailed):
            if had >= max(stores.postgres.look(name).received for name in topology.standbys_of(stores.dir, stores.topology.replicas)):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)


def _follow(stores: Embedded, old: str, new: str, tell: Tell) -> None:
    """Everybody follows the new primary: the pooler, the other standbys, the old primary."""
    others = [name for name in topology.standbys_of(stores.dir, stores.topology.replicas) if name != old]
    stores.write_configuration(new)
    stores.postgres.reload(new)  # its commits wait for a standby before anybody comes
    if stores.topology.pooled:
        stores.write_configuration(POOLER)
        stores.ensure(POOLER).signal(signal.SIGHUP)  # it reads where the primary is
    for name in others:
        stores.postgres.make_slot(name)
        stores.write_configuration(name)
        if stores.is_ready(name):
            stores.postgres.reload(name)
    tell(f"{old}: {stores.postgres.make_follow(old, stores.topology)}")
    for name in (old, *others):
        stores.add_standby(name, tell)
