"""Acts of the command line, in the audit log, with the owner's role.

Without the tables' classes, whose libraries take half a second to load: every `piggybank ..` would wait for them.
"""

from typing import Any

import asyncpg
import msgspec

from piggybank import ids
from piggybank.db.roles import LOCAL

COMMAND_LINE = "cli"  # the actor of `piggybank ..`: whoever may run commands on the machine

_RECORD = "INSERT INTO audit_log (id, actor, action, target, details) VALUES ($1, $2, $3, $4, $5)"


async def record(connection: asyncpg.Connection, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """In the transaction that this connection is in."""
    given = msgspec.json.encode(details or {}).decode()
    await connection.execute(_RECORD, ids.new_id(0), COMMAND_LINE, action, target, given)


async def record_done(owner_url: str, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """For an act that has no transaction of its own, or many: after it. No standby is waited for: after a failover there may be none."""
    connection = await asyncpg.connect(owner_url, server_settings=LOCAL)
    try:
        await record(connection, action, target, details)
    finally:
        await connection.close()
