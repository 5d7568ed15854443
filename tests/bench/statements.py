"""How often the database and the cache are asked, for one transaction: PostgreSQL writes down every statement of a short load.

asyncpg keeps its statements prepared, so each that is written down is one round trip. Rates are not taken here: the log costs.
"""

import asyncio
import re
from collections import Counter
from pathlib import Path

import asyncpg
from redis import Redis

from piggybank.appliance import store_files
from piggybank.bench import database
from piggybank.bench.scenarios import SCENARIOS
from piggybank.bench.serving import serving
from piggybank.settings import Settings
from tests.bench.experiments import ACCOUNTS, CONNECTIONS, Options, load
from tests.bench.results import Row

COUNTED = ("deposits", "hot", "mixed", "transfers", "batch", "reads", "row_locking", "row_locking_hot")
FLUSHED_WITHIN_S = 1.0  # of PostgreSQL's log
ROLE = store_files.APPLICATION_ROLE
_STATEMENT = re.compile(rf"^\S+ \S+ \S+ \[\d+\] {ROLE}@\S+ LOG:  (?:statement|execute [^:]+): ?(.*)$")
# what the statements of a transaction begin with; WRITE begins with its keys
_KINDS = {"BEGIN": "begin", "COMMIT": "commit", "ROLLBACK": "rollback", "SELECT": "select", "WITH": "write", "DELETE": "delete"}
_CACHE_CALLS = ("cmdstat_evalsha", "cmdstat_mget")  # the two that the hot path makes; what a script calls inside is no round trip


async def statements(settings: Settings, options: Options) -> list[Row]:
    """Statements of the web's role, and calls of the cache, for each scenario's transaction."""
    filled = await database.fill(settings, ACCOUNTS)
    await _write_down(settings, True)
    log, cache = settings.data_dir / "logs" / "postgres.log", Redis.from_url(settings.cache_url)
    rows: list[Row] = []
    try:
        with serving(settings) as server:
            for name in COUNTED:
                await load(filled, server, name, seconds=1, connections=CONNECTIONS)
                position, called = log.stat().st_size, _calls(cache)
                result = await load(filled, server, name, seconds=options.seconds, connections=CONNECTIONS)
                await asyncio.sleep(FLUSHED_WITHIN_S)
                answered = sum(count for answer, count in result.answers.items() if answer.rpartition(" ")[2].startswith("2"))
                asked, called = _statements(log, position), _calls(cache) - called
                each = ", ".join(f"{kind} {count / answered:.3f}" for kind, count in asked.most_common())
                said = f"{asked.total() / answered:.3f} statements ({each or 'none'}), {called / answered:.3f} calls of the cache"
                rows.append(Row(what=f"{SCENARIOS[name].what}: for one 2xx", figure=said))
    finally:
        await _write_down(settings, False)
        cache.close()
    return rows


async def _write_down(settings: Settings, wanted: bool) -> None:
    """New sessions of the web's role; only the administrator of the stores may ask for it."""
    admin_url = store_files.load_secrets(settings.data_dir / "stores", None).admin_url
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute(f"ALTER ROLE {ROLE} SET log_statement = 'all'" if wanted else f"ALTER ROLE {ROLE} RESET log_statement")
    finally:
        await admin.close()


def _statements(log: Path, position: int) -> Counter[str]:
    """By kind, as PostgreSQL's log has them since `position`; the rest of a long statement is on lines of its own."""
    found: Counter[str] = Counter()
    with log.open("rb") as lines:
        lines.seek(position)
        texts = (line.decode(errors="replace").rstrip("\n") for line in lines)
        for text in texts:
            match = _STATEMENT.match(text)
            if match:
                words = (match[1] or next(texts, "")).split()  # a statement that begins on a line of its own
                word = words[0].rstrip(";").upper() if words else ""
                found[_KINDS.get(word, word.lower())] += 1
    return found


def _calls(cache: "Redis") -> int:
    spent = cache.info("commandstats")
    return sum(int(spent[name]["calls"]) for name in _CACHE_CALLS if name in spent)
