"""New passwords for the embedded stores while people pay: at each moment both the old and the new one are good for somebody.

PostgreSQL has one password a role, so a second role, a member of the first, stands in: every process signs in as that one, the first
gets its new password, every process goes back to it. The owner's, the replication's and the administrator's are used by nothing that
answers requests, and change with it. Valkey takes two passwords for one user.

The new passwords lie beside the old ones (`store_files.NEXT_FILE`) while the server is told: whoever is killed in between finds out at
the next start which of them it takes.
"""

import secrets
import signal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from piggybank import errors
from piggybank.appliance import store_files, topology
from piggybank.appliance.embedded import Embedded, Tell
from piggybank.appliance.postgres import QUIETLY
from piggybank.appliance.store_files import PASSWORD_BYTES, Secrets
from piggybank.appliance.topology import CACHE, CACHE_NODES, POOLER, QUEUE
from piggybank.db.roles import ROLE_SETTINGS

DATABASE, SETTINGS = "database", "settings"
NAMES = (DATABASE, CACHE, QUEUE)
STAND_IN = f"{store_files.APPLICATION_ROLE}_next"

Roll = Callable[[], None]  # every process begins anew with the settings as they are now


def rotate(stores: Embedded, name: str, roll: Roll, tell: Tell) -> None:
    """New passwords for one kind of store. Raises `errors.CannotProceed`, `errors.StoreFailed`."""
    if (topology.DATABASE if name == DATABASE else name) not in stores.topology.embedded:
        raise errors.CannotProceed(
            what=f"the {name} is yours, elsewhere", do="change its password there, then its address in piggybank.toml"
        )
    if name == DATABASE:
        _rotate_database(stores, roll, tell)
    else:
        _rotate_valkeys(stores, name, roll, tell)


def _rotate_database(stores: Embedded, roll: Roll, tell: Tell) -> None:
    stores.settle_passwords()
    _write(stores, stores.addresses())
    roll()  # who is still the stand-in of a rotation that failed; else nobody has anything to change
    fresh = msgspec.structs.replace(
        stores.secrets,
        admin_password=_password(),
        owner_password=_password(),
        application_password=_password(),
        replication_password=_password(),
    )
    stand_in = _password()
    stores.psql(QUIETLY + _dropped() + _made(stand_in))
    stores.stand_in = (STAND_IN, stand_in)  # also after a failure: who signed in as that one goes on
    _reload_pooler(stores)
    _write(stores, _signed_in(stores.addresses(), STAND_IN, stand_in))
    tell(f"every process signs in as {STAND_IN}")
    roll()
    _exchange(stores, fresh)
    tell("the roles have new passwords")
    _reload_pooler(stores)
    _write(stores, stores.addresses())
    roll()
    stores.stand_in = None
    stores.psql(_dropped())
    _reload_pooler(stores)
    tell("the old passwords are good no longer")


def _rotate_valkeys(stores: Embedded, name: str, roll: Roll, tell: Tell) -> None:
    field = f"{name}_password"
    old, fresh = getattr(stores.secrets, field), _password()
    nodes = [node for node in stores.names if node == name or (name == CACHE and node in CACHE_NODES)]
    for node in nodes:
        _say(stores.secrets, node, old, "ACL", "SETUSER", "default", f">{fresh}")
    for node in nodes:
        if node in CACHE_NODES:
            _say(stores.secrets, node, old, "CONFIG", "SET", "masterauth", fresh)
    tell(f"{', '.join(nodes)} take the old and the new password")
    stores.keep_secrets(msgspec.structs.replace(stores.secrets, **{field: fresh}))
    for node in nodes:
        stores.write_configuration(node)
    _write(stores, stores.addresses())
    roll()
    for node in nodes:
        # all others go, also one that a rotation left that failed
        _say(stores.secrets, node, fresh, "ACL", "SETUSER", "default", "resetpass", f">{fresh}")
    tell("the old password is good no longer")


def _exchange(stores: Embedded, fresh: Secrets) -> None:
    """Tell the server, and the standbys what their primary takes from now on."""
    store_files.save_next(stores.dir, fresh, stores.user)
    stores.postgres.set_passwords(fresh)
    stores.keep_secrets(fresh)
    store_files.forget_next(stores.dir)
    for name in filter(stores.postgres.is_made, topology.standbys_of(stores.dir, stores.topology.replicas)):
        stores.write_configuration(name)
        stores.postgres.reload(name)


def _reload_pooler(stores: Embedded) -> None:
    """It reads who may come."""
    if POOLER in stores.running:
        stores.write_configuration(POOLER)
        stores.running[POOLER].signal(signal.SIGHUP)


def _write(stores: Embedded, addresses: Mapping[str, Any]) -> None:
    store_files.write_addresses(stores.data_dir, addresses, stores.user)


def _say(kept: Secrets, node: str, password: str, *words: str) -> None:
    try:
        with Redis(host="127.0.0.1", port=kept.port_of(node), password=password, socket_timeout=5) as client:
            client.execute_command(*words)
    except RedisError as cause:
        raise errors.StoreFailed(store=node, says=str(cause)) from cause


def _made(password: str) -> str:
    role = store_files.APPLICATION_ROLE
    settings = "".join(f"ALTER ROLE {STAND_IN} SET {name} = '{value}';\n" for name, value in ROLE_SETTINGS.items())
    return f"CREATE ROLE {STAND_IN} LOGIN PASSWORD '{password}' IN ROLE {role};\n{settings}"


def _dropped() -> str:
    """Also what a rotation left that was killed."""
    return f"SELECT 'DROP ROLE {STAND_IN}' WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = '{STAND_IN}') \\gexec\n"


def _signed_in(addresses: Mapping[str, Any], role: str, password: str) -> dict[str, Any]:
    """The application's addresses with another role in them."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(each) for each in value]
        head, found, tail = str(value).partition(f"//{store_files.APPLICATION_ROLE}:")
        return f"{head}//{role}:{password}@{tail.partition('@')[2]}" if found else value

    return {name: changed(value) for name, value in addresses.items()}


def _password() -> str:
    return secrets.token_hex(PASSWORD_BYTES)
