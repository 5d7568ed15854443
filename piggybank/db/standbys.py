"""Who follows the primary, and whose word a commit may wait for: the same words wherever they are asked, and by whomever.

Conditions on the rows of `pg_stat_replication`. Without MAY_SEE a role sees the rows, and nothing in them.
"""

MAY_SEE = "pg_has_role('pg_read_all_stats', 'USAGE')"
STREAMS = "state = 'streaming'"
FOLLOWS = f"{STREAMS} AND application_name <> 'pg_basebackup'"  # a copy that is being made streams, too, and is no standby yet
CONFIRMS = f"{STREAMS} AND sync_state IN ('sync', 'quorum')"

# How many a commit may wait for; NULL: this role may not see them. The function of the view pg_stat_replication, without the view's
# join to all sessions, which costs as much again.
CONFIRMING = f"SELECT CASE WHEN {MAY_SEE} THEN (SELECT count(*) FROM pg_stat_get_wal_senders() WHERE {CONFIRMS}) END"
