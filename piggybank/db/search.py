"""What people type to find a user or an account, as statements that indexes answer (migration 0009).

An e-mail address and an id of the team's own are found by how they begin, a name by how its words begin ("lovel" finds Ada Lovelace),
a thing by its whole id. Each way is a statement of its own: with OR between them no plan would use the indexes. (A colon that begins no
parameter has a backslash before it.)
"""

import re
from typing import Any
from uuid import UUID

_NAME_HAS = """to_tsvector('simple', regexp_replace(name, '[[\\:punct\\:]]+', ' ', 'g')) @@ (
    SELECT to_tsquery('simple', string_agg(quote_literal(word) || '\\:*', ' & '))
    FROM regexp_split_to_table(:search, '[[\\:punct\\:][\\:space\\:]]+') AS word
    WHERE word <> ''
)"""

USERS = f"""
SELECT id FROM users WHERE {_NAME_HAS}
UNION ALL SELECT id FROM users WHERE lower(email) LIKE :begins
UNION ALL SELECT id FROM users WHERE lower(external_id) LIKE :begins
UNION ALL SELECT id FROM users WHERE id = CAST(:searched_id AS uuid)
"""

# also those of the people who are found
ACCOUNTS = f"""
SELECT id FROM accounts WHERE {_NAME_HAS}
UNION ALL SELECT id FROM accounts WHERE lower(external_id) LIKE :begins
UNION ALL SELECT id FROM accounts WHERE id = CAST(:searched_id AS uuid)
UNION ALL SELECT id FROM accounts WHERE user_id IN ({USERS})
"""


def given(search: str) -> dict[str, Any]:
    """The parameters of both; nothing in it is a pattern."""
    begins = re.sub(r"([\\%_])", r"\\\1", search.strip().lower()) + "%"
    return {"search": search, "begins": begins, "searched_id": _id(search.strip())}


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
