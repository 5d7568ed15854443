"""`piggybank cache form`: the nodes of the cache's cluster become one, where no supervisor of ours does it."""

import time

import click

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import cache_cluster
from piggybank.cache.cluster import is_cluster

KEEP_EVERY_S = 5.0
START_WITHIN_S = 15.0  # without --keep: nodes that are just starting
START_POLL_S = 0.25


@click.group()
def cache() -> None:
    """The cache's cluster, on containers: form it, and see that it stays one.

    \b
    Examples:
      piggybank cache form
      piggybank cache form --keep
      piggybank cache form --check
    """


@cache.command()
@click.option("--keep", is_flag=True, help="Go on looking, and mend it whenever nodes come back with other addresses.")
@click.option("--check", is_flag=True, help="Change nothing; end with 1 unless every node says by itself that the cluster is whole.")
@click.pass_context
def form(ctx: click.Context, *, keep: bool, check: bool) -> None:
    """Make the nodes that `cache_url` names one cluster: the first half masters, the others replicas. Safe to repeat.

    A node is known by its name (nodes.conf): what comes back with another address is met again, and a node that was lost for good is
    forgotten once another stands in its place. Names in `cache_url` are looked up at each try.

    \b
    Examples:
      piggybank cache form
      piggybank cache form --keep
      piggybank cache form --check
    """
    if keep and check:
        raise click.UsageError("give --keep or --check: one mends, the other only looks")
    url = settings_file.load((ctx.find_root().obj or {}).get("data_dir")).cache_url
    if not is_cluster(url):
        raise errors.CannotProceed(
            what="cache_url names no cluster", do="set it to redis+cluster://:password@host:port,host:port.., each node once"
        )
    if check:
        ctx.exit(0 if _is_whole(url) else 1)
    said, until = "", time.monotonic() + START_WITHIN_S
    while True:
        try:
            seen = cache_cluster.form_at(url)
            line = f"{seen.state}: {len(seen.masters)} masters and {len(seen.replicas)} replicas hold all slots"
        except (errors.StoreFailed, OSError) as cause:  # OSError: a name that is not known yet
            if not keep and time.monotonic() < until:
                time.sleep(START_POLL_S)
                continue
            if not keep:
                raise errors.CannotProceed(what=f"no cluster yet: {cause}", do="see that every node of cache_url runs") from cause
            line = f"no cluster yet: {cause}"
        if line != said:
            click.echo(line)
            said = line
        if not keep:
            return
        time.sleep(KEEP_EVERY_S)


def _is_whole(url: str) -> bool:
    """Says what each node says that is not so."""
    seen = cache_cluster.said_by_each(url)
    whole = True
    for place, one in seen.items():
        if not one.is_whole or len(one.members) != len(seen):
            whole = False
            up = sum(member.up for member in one.members)
            click.echo(f"{place}: {one.state}, {one.slots_covered} of {cache_cluster.SLOTS} slots, {up} of {len(seen)} nodes", err=True)
    return whole
