"""What a stranger needs to help, and nothing that is anybody's: no row of the database, no secret, no address.

Three nets, one behind the other: settings are shown by their kind, not by their name; every secret that this installation knows is taken
out wherever it stands; and so is what looks like a token, an address, a key or a password, whosever it is.
"""

import asyncio
import io
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_origin
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
import psutil

import piggybank
from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import change, doctor, overview, store_files, system_user, versions
from piggybank.settings import Settings

LOG_TAIL_BYTES = 256 * 1024  # of each log
LEAST_SECRET_CHARACTERS = 6  # a shorter value would take half of the text with it
SHOWN_TEXTS = frozenset({"listen", "public_url", "revio_url", "eft_url", "eft_token_url", "simulator_listen"})
SECRET_PATHS = ("alert_webhook_url", "alert_ping_url", "otlp_url")  # whoever knows the whole of it may call it
ASK_TIMEOUT_S = 5
NOT_HAD = (OSError, TimeoutError, ValueError, errors.Error, asyncpg.PostgresError, asyncpg.InterfaceError, psutil.Error)

# 24 characters and more with a digit and a letter in them: a key of anybody's. Ids are not, they look otherwise and help. What has
# slashes may be a path, so it is one only with capitals, too.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD = re.compile(r"[\w+=-]{24,}")
_SLASHED = re.compile(r"[\w+/=-]{24,}")
_DIGIT, _LETTER, _CAPITAL, _SMALL = (re.compile(letters) for letters in (r"\d", r"[A-Za-z]", r"[A-Z]", r"[a-z]"))

# What says of itself that it is one, what PostgreSQL says of a row, an address in a query, a bank account.
_NAMED = (
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|token|api_?key|(?<![a-z])key|credentials?|authorization)[\"']?\s*[=:]\s*)(?!\(set\))"
            r"([\"']?(?:basic\s+|bearer\s+)?)[^\s\"'&,;(){}]+"
        ),
        rf"\1\2{telemetry.REDACTED}",
    ),
    (re.compile(r"(Failing row contains |Key \([^()]*\)=|COPY \w+, line \d+[^:\n]*: ).*"), rf"\1{telemetry.REDACTED}"),
    (re.compile(r"(?<![\w.+-])[\w.+-]+%40[\w.-]+"), telemetry.REDACTED),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), telemetry.REDACTED),
    (re.compile(r"\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b"), telemetry.REDACTED),
)
_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL)

_TABLES = """
SELECT c.oid::regclass::text AS relation, c.reltuples::bigint AS rows_about, pg_total_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public' ORDER BY 3 DESC
"""
_SETTINGS = """
SELECT name, setting, unit, source FROM pg_settings
WHERE source NOT IN ('default', 'client') AND name NOT LIKE '%conninfo%' AND name NOT LIKE '%command%' AND name NOT LIKE '%passphrase%'
ORDER BY name
"""


class Part(NamedTuple):
    """A file of the bundle; its text is redacted already."""

    name: str
    text: str


class Redaction:
    """Takes out what is nobody's business."""

    def __init__(self, settings: Settings) -> None:
        known = {secret for secret in _known(settings) if len(secret) >= LEAST_SECRET_CHARACTERS}
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(telemetry.REDACTED, text)
        text = telemetry.redact(_PEM.sub(telemetry.REDACTED, text))
        for pattern, replacement in _NAMED:
            text = pattern.sub(replacement, text)
        return _SLASHED.sub(_unless_a_path, _WORD.sub(_unless_an_id, text))


def _unless_an_id(found: re.Match[str]) -> str:
    word = found[0]
    return telemetry.REDACTED if _DIGIT.search(word) and _LETTER.search(word) and not _UUID.fullmatch(word) else word


def _unless_a_path(found: re.Match[str]) -> str:
    word = found[0]
    is_key = all(letters.search(word) for letters in (_DIGIT, _CAPITAL, _SMALL)) and "/" in word and not _UUID.search(word)
    return telemetry.REDACTED if is_key else word


def parts(settings: Settings) -> Iterator[Part]:
    """The files, one after the other. What cannot be had says why, and the rest goes on."""
    redacted = Redaction(settings)
    sources: dict[str, Callable[[], Any]] = {
        "versions": lambda: _versions(settings),
        "settings": lambda: shown_settings(settings),
        "hardware": lambda: _hardware(settings),
        "status": lambda: asyncio.run(overview.look(settings)),
        "doctor": lambda: [check._asdict() for check in asyncio.run(doctor.examine(settings))],
        "phase": lambda: change.declared(settings),
        "database": lambda: asyncio.run(_database(settings)),
    }
    for name, source in sources.items():
        try:
            said = source()
        except NOT_HAD as cause:
            said = {"not_known": f"{type(cause).__name__}: {cause}"}
        yield Part(f"{name}.json", redacted(json.dumps(said, indent=2, default=str) + "\n"))
    for path in sorted((settings.data_dir / "logs").glob("*.log")):
        try:
            text = _tail(path)
        except NOT_HAD as cause:  # it was rotated away, or is a link that somebody planted
            text = f"not known: {type(cause).__name__}: {cause}\n"
        yield Part(f"logs/{path.name}", redacted(text))


def write(path: Path, found: list[Part]) -> None:
    """As a tar.gz that only its owner may read. Raises `errors.CannotProceed`."""
    folder = path.name.removesuffix(".tar.gz")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as cause:
        raise errors.CannotProceed(what=f"{path} cannot be written: {cause.strerror}", do="name another file: --output FILE") from cause
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for part in found:
            content = part.text.encode()
            member = tarfile.TarInfo(f"{folder}/{part.name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(datetime.now(UTC).timestamp())
            archive.addfile(member, io.BytesIO(content))


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Numbers, switches and choices as they are; of texts only whether there is one, but for the few that cannot hold a secret."""
    shown: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        harmless = not isinstance(value, str | list) or get_origin(_bare(field.type)) is Literal or field.name in SHOWN_TEXTS
        shown[field.name] = value if harmless or not value else "(set)"
    return shown


def _bare(kind: Any) -> Any:
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _known(settings: Settings) -> Iterator[str]:
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if any(word in field.name for word in settings_file.SECRET_NAMES) or field.name in ("eft_debtor", "eft_client_id"):
            for text in value if isinstance(value, list) else [str(value)]:
                yield from _secrets_in(field.name, text)
    path = settings.data_dir / "stores" / store_files.SECRETS_FILE
    if path.exists():
        secrets = tomllib.loads(path.read_text(encoding="utf-8"))
        yield from (value for name, value in secrets.items() if isinstance(value, str) and ("password" in name or "key" in name))


def _secrets_in(name: str, value: str) -> Iterator[str]:
    """Of an address its password; of all else the whole, and each of several."""
    if "url" in name:
        password = urlsplit(value).password if "," not in value else value.partition("://")[2].rpartition("@")[0].partition(":")[2]
        if password:
            yield password
            yield unquote(password)
        if name in SECRET_PATHS:
            address = urlsplit(value)
            yield from (address.path.strip("/"), address.query)
        return
    if name not in ("tls_key", "pool_connections"):  # a path
        yield value
        yield from (part.strip() for part in re.split(r"[,\n]", value))


def _versions(settings: Settings) -> dict[str, Any]:
    return {
        "piggybank": piggybank.__version__,
        "here": versions.here(settings.data_dir),
        "present": versions.present(settings.data_dir),
        "python": sys.version,
        "libraries": {found.name: found.version for found in sorted(distributions(), key=lambda found: found.name.lower())},
    }


def _hardware(settings: Settings) -> dict[str, Any]:
    disk = shutil.disk_usage(settings.data_dir)
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": psutil.cpu_count(),
        "load": psutil.getloadavg(),
        "memory_mib": store_files.memory_mib(),
        "memory_available_mib": psutil.virtual_memory().available // store_files.MIB,
        "disk_mib": {"total": disk.total // store_files.MIB, "free": disk.free // store_files.MIB},
        "booted": datetime.fromtimestamp(psutil.boot_time(), UTC).isoformat(),
        "limits": settings_file.platform() or "none of a container",
    }


async def _database(settings: Settings) -> dict[str, Any]:
    connection = await asyncpg.connect(settings.database_url, timeout=ASK_TIMEOUT_S)
    try:
        return {
            "server": await connection.fetchval("SELECT version()"),
            "revision": await connection.fetchval("SELECT version_num FROM alembic_version"),
            "bytes": await connection.fetchval("SELECT pg_database_size(current_database())"),
            "tables": [dict(row) for row in await connection.fetch(_TABLES)],
            "settings": [dict(row) for row in await connection.fetch(_SETTINGS)],
        }
    finally:
        await connection.close()


def _tail(path: Path) -> str:
    """The last lines, the first of them whole: half of a secret is no longer known for one."""
    with os.fdopen(system_user.open_file(path, os.O_RDONLY), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        if size > LOG_TAIL_BYTES:
            file.readline()
        return file.read().decode(errors="replace")
