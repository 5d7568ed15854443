"""A standby becomes the primary.

The one that takes over must be known to have every answered commit. An old primary that still answers sends what it has before it stops,
and one that ended in order says how far its log goes: the new one must have all of that. Of one that crashed nobody knows it. With `ANY 1`
of two standbys an answered commit is on one of them, so every standby must answer, and the one whose log goes furthest is taken; with
`durability = "local"` it may be on none. Otherwise the operator has to say that loss is accepted. Only who is on the old primary's timeline
is asked: of one that went its own way after an earlier failover more bytes say nothing.

Who the primary is is written down before anything is promoted. From then on the old one is never started but through pg_rewind, as a
standby; interrupted anywhere after that, the next start ends what was begun. The old one comes last, when everybody else has moved: to
rewind it, or to copy it anew, may take hours, and may fail.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from piggybank import errors
from piggybank.appliance import store_files, topology
from piggybank.appliance.embedded import Embedded, Tell, quietly
from piggybank.appliance.postgres import Postgres
from piggybank.appliance.standings import Standing
from piggybank.appliance.topology import POOLER

ARRIVAL_S = 5.0  # what was sent is on the other's disk by then
STREAMS_S = 5.0  # so long after its start a primary has its standbys again, if they are well
POLL_S = 0.05


def fail_over(
    stores: Embedded, to: str = "", tell: Tell = quietly, *, accept_loss: bool = False, roll: Callable[[], None] = lambda: None
) -> str:
    """Make a standby the primary; returns its name. The old one is stopped, or killed, first, and becomes a standby.

    `roll` moves the web processes over. Raises `errors.CannotProceed`: with nothing changed, where no standby is sure to have every
    answered commit; and where something failed after the old one was given up, saying what is so: another failover would not mend it.
    """
    old = stores.postgres.primary
    stores.busy.add(old)  # nobody starts it again while it is looked at
    try:
        new, crashed = choose(stores, to, accept_loss=accept_loss)
        tell(f"{new} becomes the primary, in the place of {old}")
        stores.postgres.fence(old, stores.running.pop(old, None))
        tell(f"{old} takes nothing any more")
        try:
            if not accept_loss and not has_all(stores, old, new, crashed=crashed):
                raise errors.CannotProceed(
                    what=f"{new} did not get all that {old} had, so {old} goes on", do="piggybank status, then again; or --accept-loss"
                )
            stores.postgres.name_primary(new)
        except BaseException:
            stores.ensure(old)
            raise
        _move(stores, old, new, tell, roll)
    finally:
        stores.busy.discard(old)
    return new


def _move(stores: Embedded, old: str, new: str, tell: Tell, roll: Callable[[], None]) -> None:
    so = f"{old} is not the primary any more, and {new} is not yet"
    try:
        store_files.write_addresses(stores.data_dir, stores.addresses(), stores.user)
        stores.take_over(new)
        so = f"{new} takes writes"
        tell(so)
        others = [name for name in topology.standbys_of(stores.dir, stores.topology.replicas) if name != old]
        _lead(stores, new, others)
        roll()
        so += ", and every process knows it"
        _bring_back(stores, (*others, old), tell)
    except Exception as cause:
        what = cause.details.get("what", cause) if isinstance(cause, errors.Error) else f"{type(cause).__name__}: {cause}"
        raise errors.CannotProceed(what=f"{so}; but {what}", do=f"piggybank phase apply {stores.topology.phase}, not a failover") from cause


def choose(stores: Embedded, to: str, *, accept_loss: bool) -> tuple[str, bool]:
    """Who takes over, and whether the old primary crashed: then its standbys alone know what was answered."""
    postgres, standbys = stores.postgres, topology.standbys_of(stores.dir, stores.topology.replicas)
    answering, silent = {}, {}
    for name in standbys:
        try:
            standing = postgres.look(name)
        except errors.StoreFailed as cause:
            silent[name] = str(cause.details["says"])
        else:
            if standing.in_recovery:
                answering[name] = standing
            else:
                silent[name] = "it follows nobody"
    if not answering:
        because = "; ".join(f"{name}: {says}" for name, says in silent.items()) or "this phase has none"
        raise errors.CannotProceed(
            what=f"no standby answers ({because})", do="a failover needs phase 2 and a live standby: piggybank status"
        )
    if to and to not in answering:
        raise errors.CannotProceed(what=f"{to} is no standby that answers", do=f"choose one of {', '.join(sorted(answering))}")
    fed = _fed(postgres, to)
    ended = postgres.ended(postgres.primary)
    timeline = ended.timeline or max(standing.timeline for standing in answering.values())

    def merits(standing: Standing) -> tuple[bool, bool, int, int]:
        return standing.timeline == timeline, standing.name in (fed or ()), standing.timeline, standing.received

    furthest = max(answering.values(), key=merits)
    chosen = answering[to] if to else furthest
    if accept_loss:
        return chosen.name, fed is None
    if chosen.timeline != timeline:
        raise errors.CannotProceed(
            what=f"{chosen.name} is of another history than {postgres.primary} (timeline {chosen.timeline}, not {timeline})",
            do=f"piggybank failover --to {furthest.name}" if furthest.timeline == timeline else "piggybank status; or --accept-loss",
        )
    if fed is not None:
        if chosen.name not in fed:
            raise errors.CannotProceed(
                what=f"{postgres.primary} answers, and {chosen.name} gets nothing from it: answered writes could be missing",
                do=f"piggybank failover --to {min(fed)}" if fed else "piggybank status, then again; or --accept-loss",
            )
        return chosen.name, False
    if ended.at is not None:
        return chosen.name, False
    unsure = [each.name for each in answering.values() if not _is_sure(each, timeline)]
    _check_crashed(stores, chosen, furthest, sorted([*silent, *unsure]))
    return chosen.name, True


def _fed(postgres: Postgres, to: str) -> set[str] | None:
    """The standbys that get all that the primary has before it stops; None where it does not answer."""
    until = time.monotonic() + STREAMS_S
    try:
        while postgres.is_ready(postgres.primary):
            found = postgres.streaming()
            if (to in found if to else found) or time.monotonic() > until:
                return found
            time.sleep(POLL_S)
    except errors.StoreFailed:  # it ended meanwhile
        return None
    return None


def _check_crashed(stores: Embedded, chosen: Standing, furthest: Standing, silent: list[str]) -> None:
    if not stores.confirmed:
        raise errors.CannotProceed(
            what=f"{stores.postgres.primary} did not end in order, and no standby confirmed what it answered last"
            " (durability is local, or the first copies are being made): that may be nowhere else",
            do="start it again (piggybank status), or accept that: piggybank failover --accept-loss",
        )
    if silent:
        raise errors.CannotProceed(
            what=f"{', '.join(silent)} does not answer, or not for all that it got: an answered write may be there alone",
            do="start it first (piggybank status), or accept that: piggybank failover --accept-loss",
        )
    if chosen.received < furthest.received:
        behind = furthest.received - chosen.received
        raise errors.CannotProceed(
            what=f"{chosen.name} is {behind} bytes behind {furthest.name}: answered writes could be missing",
            do=f"piggybank failover --to {furthest.name}",
        )


def has_all(stores: Embedded, old: str, new: str, *, crashed: bool) -> bool:
    """The old primary has ended: has the new one all that it had, or, where it did not end in order, all that any standby confirmed?

    One that had crashed may have been started again under our hands: what it then wrote by itself, with nobody connected, is not missed.
    """
    ended, until = stores.postgres.ended(old), time.monotonic() + ARRIVAL_S
    while True:
        had = stores.postgres.look(new)
        if ended.at is not None and _position(had) >= (ended.timeline, ended.at):
            return True
        if (crashed or ended.at is None) and stores.confirmed and _is_furthest(stores, had):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)


def _is_furthest(stores: Embedded, had: Standing) -> bool:
    """Every standby answers, and none has more."""
    try:
        others = [stores.postgres.look(name) for name in topology.standbys_of(stores.dir, stores.topology.replicas)]
    except errors.StoreFailed:
        return False
    return all(_position(each) <= _position(had) and _is_sure(each, had.timeline) for each in others)


def _is_sure(standing: Standing, timeline: int) -> bool:
    """Not so of one that may have more of that timeline than it can say yet."""
    return standing.read and (standing.timeline == timeline or standing.replayed)


def _position(standing: Standing) -> tuple[int, int]:
    return standing.timeline, standing.received


def _lead(stores: Embedded, new: str, others: list[str]) -> None:
    """Who is there already follows the new primary: the pooler, the other standbys."""
    stores.write_configuration(new)
    stores.reload_primary()  # its commits wait for a standby before anybody comes
    if stores.topology.pooled:
        stores.write_configuration(POOLER)
        stores.ensure(POOLER).signal(signal.SIGHUP)  # it reads where the primary is
    for name in others:
        stores.postgres.make_slot(name)
        stores.write_configuration(name)
        if stores.is_ready(name):
            with suppress(errors.StoreFailed):  # it is looked after with the old primary
                stores.postgres.reload(name)


def _bring_back(stores: Embedded, names: tuple[str, ...], tell: Tell) -> None:
    """What can be had of them: one that cannot is in nobody's way."""
    troubles = []
    for name in names:
        try:
            stores.add_standby(name, tell)
        except (errors.Error, OSError, subprocess.SubprocessError) as cause:
            tell(f"{name} is missing: {cause}")
            troubles.append(f"{name} does not follow: {cause}")
    if troubles:
        raise errors.CannotProceed(what="; ".join(troubles))
