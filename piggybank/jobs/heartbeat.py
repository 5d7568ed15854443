"""A sign of life of the primary, for replicas that cannot be looked at from there: see `db/replicas.py`."""

from sqlalchemy import text

from piggybank.jobs.work import Work

# Every worker comes by each second; one of them beats. Nothing hangs on its being on disk, so it waits for nobody.
_WAITS_FOR_NOBODY = text("SET LOCAL synchronous_commit = off")
_BEAT = text("UPDATE heartbeat SET beat = clock_timestamp() WHERE beat < clock_timestamp() - interval '0.9 s' RETURNING 1")


async def beat(work: Work) -> int:
    """Write the time; answers 0 where another worker just did."""
    async with work.db.write() as write:
        await write.execute(_WAITS_FOR_NOBODY)
        return len((await write.execute(_BEAT)).all())
