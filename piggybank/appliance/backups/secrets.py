"""What an installation cannot be put together without and nobody may read: its settings, passwords and key files, encrypted.

They are encrypted to the public half of a recovery key (age, X25519). Its other half is shown once, when it is made, and is not kept on
this machine: whoever has the machine, or the backup, has no more by that.
"""

import io
import json
import tarfile
from pathlib import Path

import pyrage
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.settings import Settings

NAME = "secrets.age"
OF_THE_FOLDER = (settings_file.OPERATOR_FILE, settings_file.PHASE_FILE, settings_file.STORES_FILE, "stores/secrets.toml")
KEY_FILES = ("tls_cert", "tls_key", "backup_ssh_key", "backup_ssh_known_hosts")  # settings that name a file
EFFECTIVE = "settings.json"  # what all of it came to, wherever it was set
KEYS = "keys"
NAMES = frozenset({EFFECTIVE, *OF_THE_FOLDER, *(f"{KEYS}/{name}.pem" for name in KEY_FILES)})  # all that a bundle may hold


class Key(Struct, frozen=True):
    """A recovery key: `identity` is the secret half."""

    identity: str
    recipient: str


def new_key() -> Key:
    """Whose identity nobody keeps but who is shown it."""
    made = pyrage.x25519.Identity.generate()
    return Key(str(made), str(made.to_public()))


def sealed(settings: Settings) -> bytes:
    """The encrypted bundle."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        effective = json.dumps(settings_file.as_environment(settings), indent=1)
        _add(archive, EFFECTIVE, effective.encode())
        for name in OF_THE_FOLDER:
            if (path := settings.data_dir / name).is_file():
                _add(archive, name, path.read_bytes())
        for name in KEY_FILES:
            if (value := getattr(settings, name)) and Path(value).is_file():
                _add(archive, f"{KEYS}/{name}.pem", Path(value).read_bytes())
    recipient = pyrage.x25519.Recipient.from_str(settings.backup_recipient)
    return bytes(pyrage.encrypt(packed.getvalue(), [recipient]))


def opened(bundle: bytes, identity: str, recipient: str) -> dict[str, bytes]:
    """The files of a bundle by their names; raises `errors.CannotProceed` for a key that does not open it. `recipient`: whose does."""
    try:
        packed = pyrage.decrypt(bundle, [pyrage.x25519.Identity.from_str(identity.strip())])
    except pyrage.IdentityError as cause:
        raise errors.CannotProceed(
            what="that is no recovery key", do="it is one line that begins with AGE-SECRET-KEY-1, shown when it was made"
        ) from cause
    except pyrage.DecryptError as cause:
        raise errors.CannotProceed(
            what="this recovery key does not open the secrets of this backup", do=f"use the one whose public half is {recipient}"
        ) from cause
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}
    if strange := sorted(set(found) - NAMES):  # everybody can encrypt to the public half, and these become files of root's
        raise errors.CannotProceed(
            what=f"the secrets hold what does not belong there: {', '.join(strange)}", do="somebody else made them: use another backup"
        )
    return found


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    archive.addfile(entry, io.BytesIO(content))
