"""Everything that an operator may set, read once.

Order, the later wins: defaults, `stores.toml` (written by the embedded stores: addresses with their passwords), `phase.toml` (written
by `piggybank phase apply`: what the phase sets), `piggybank.toml` (the operator's), the environment. This is the only module that reads
the environment. The settings themselves are in `fields.py`.
"""

import json
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from piggybank import errors
from piggybank.settings.checks import CLUSTER_SCHEMES, check_together, cluster_nodes, without_password
from piggybank.settings.fields import PREFIX, REPLICATED_PHASE, STORE_FIELDS, Durability, Pooling, ProviderMode, Settings

__all__ = [
    "CLUSTER_SCHEMES",
    "PREFIX",
    "REPLICATED_PHASE",
    "STORE_FIELDS",
    "Durability",
    "Pooling",
    "ProviderMode",
    "Settings",
    "cluster_nodes",
]

OPERATOR_FILE = "piggybank.toml"
STORES_FILE = "stores.toml"
PHASE_FILE = "phase.toml"
NOT_SETTINGS = frozenset({"PIGGYBANK_REQUIRE"})  # read by the test run only: tools whose absence is a failure
LIST_FIELDS = frozenset({"trusted_proxies", "replica_urls", "metrics_networks"})  # commas between the items in the environment
GIVEN_TOGETHER = (STORE_FIELDS[:2], STORE_FIELDS[2:])  # or not at all
OWNER = "owner_database_url"  # who is reached from outside does without it
# what runs in the data folder, unless this address is given
STORES = {"postgres": "database_url", "cache": "cache_url", "queue": "queue_url"}

COUNTING_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's word; the supervisor gives it to what it starts

SECRET_NAMES = ("key", "secret", "password", "token", "url")  # a value whose name has one of these words is not shown


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that say the same: how another process is told."""
    fields = msgspec.structs.fields(Settings)
    values = {
        field.name: getattr(settings, field.name) for field in fields if field.required or getattr(settings, field.name) != field.default
    }
    return {PREFIX + name.upper(): ",".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}


def load(data_dir: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of the installation in `data_dir` (else of `PIGGYBANK_DATA_DIR`, else of the default folder).

    Raises `errors.BadSetting` with the name, the value and what is allowed.
    """
    environment = os.environ if environment is None else environment
    folder = (data_dir or Path(environment.get(f"{PREFIX}DATA_DIR") or default_data_dir())).expanduser().absolute()
    values: dict[str, Any] = {}
    for name in (STORES_FILE, PHASE_FILE, OPERATOR_FILE):
        values |= _from_file(folder / name)
    values |= _from_environment(environment)
    values["data_dir"] = folder
    settings = _convert(values)
    check_together(settings)
    return settings


def embedded_stores(data_dir: Path, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The names of the stores that run in the data folder: those for which the operator gave no address."""
    chosen = operator_values(data_dir, environment)
    for together in GIVEN_TOGETHER:
        missing = [name for name in together if not chosen.get(name)]
        if missing == [OWNER] and not (data_dir / STORES_FILE).exists():
            continue  # of a container that is reached from outside: it may change no table
        if missing and len(missing) < len(together):
            allowed = f"all of {', '.join(together)} together, or none; missing: {', '.join(missing)}"
            raise errors.BadSetting(setting=next(name for name in together if chosen.get(name)), value="(set)", allowed=allowed)
    return tuple(name for name, address in STORES.items() if not chosen.get(address))


def in_environment(*names: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Those of the settings that the environment gives, as variables: they win over every file."""
    given = _from_environment(os.environ if environment is None else environment)
    return [PREFIX + name.upper() for name in names if given.get(name)]


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The text of `piggybank.toml` with these settings in it, and all else, comments too, as it was."""
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in values]
    return "\n".join([*(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()), *kept]) + "\n"


def without_values(text: str, names: Collection[str]) -> tuple[str, list[str]]:
    """The text of `piggybank.toml` with those of these settings that it has made comments; and which ones."""
    lines, found = [], []
    for line in text.splitlines():
        name = line.partition("=")[0].strip()
        if name in names:
            found.append(name)
        lines.append(f"# not restored: {line}" if name in names else line)
    return "\n".join(lines) + "\n" * bool(lines), found


def operator_values(data_dir: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the operator set, in `piggybank.toml` or in the environment, by the names of the settings."""
    return _from_file(data_dir / OPERATOR_FILE) | _from_environment(os.environ if environment is None else environment)


def platform(environment: Mapping[str, str] | None = None) -> Literal["compose", "helm", "railway", "ecs"] | None:
    """The container platform that this process runs on; None on a plain machine."""
    environment = os.environ if environment is None else environment
    if "RAILWAY_PROJECT_ID" in environment:
        return "railway"
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "helm"
    if "ECS_CONTAINER_METADATA_URI_V4" in environment:
        return "ecs"
    return "compose" if Path("/.dockerenv").exists() else None


def counting_folder(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where the processes of this installation count together; None: each for itself."""
    given = (os.environ if environment is None else environment).get(COUNTING_FOLDER)
    return Path(given) if given else None


def helm_release(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Name and namespace of the release that this pod is of, as the chart says them."""
    environment = os.environ if environment is None else environment
    return environment.get("HELM_RELEASE", "piggybank"), environment.get("HELM_NAMESPACE", "default")


def orchestrator(data_dir: Path) -> str | None:
    """The platform that runs our processes, each in a container of its own; None where a supervisor of ours does, be it in a container."""
    return None if embedded_stores(data_dir) or (data_dir / "run" / "supervisor.json").exists() else platform()


def default_data_dir() -> Path:
    """`/var/lib/piggybank` for root, else below the user's own data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/piggybank")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "piggybank"


def configuration_dir() -> Path:
    """Where an ordinary user's systemd looks, among others."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def described() -> list[tuple[str, str, str, str]]:
    """Rows (environment variable, allowed, default, description) of the settings table in the README."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        shown = (
            "" if field.name == "data_dir" else _shown(field.default if field.default is not msgspec.NODEFAULT else field.default_factory())
        )
        rows.append((PREFIX + field.name.upper(), _allowed(field.name), shown, field.type.__metadata__[-1].description))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _from_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise errors.BadSetting(setting=str(path), value="(file)", allowed=f"valid TOML: {cause}") from cause
    known = _known_names()
    for name, value in values.items():
        if name not in known or name == "data_dir":
            allowed = f"one of {', '.join(sorted(known - {'data_dir'}))}"
            raise errors.BadSetting(setting=f"{name} in {path}", value=_shown_value(name, value), allowed=allowed)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = _known_names()
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known or variable != variable.upper():
            allowed = f"one of {', '.join(PREFIX + known_name.upper() for known_name in sorted(known))}"
            raise errors.BadSetting(setting=variable, value=_shown_value(name, value), allowed=allowed)
        if name != "data_dir":
            values[name] = [part.strip() for part in value.split(",") if part.strip()] if name in LIST_FIELDS else value
    return values


def _convert(values: dict[str, Any]) -> Settings:
    """Field by field first, so that an error can name the one that is wrong."""
    for field in msgspec.structs.fields(Settings):
        if field.name not in values:
            continue
        try:
            values[field.name] = msgspec.convert(values[field.name], field.type, strict=False)
        except msgspec.ValidationError as cause:
            shown = without_password(str(values[field.name])) if "_url" in field.name else values[field.name]
            raise errors.BadSetting(setting=PREFIX + field.name.upper(), value=shown, allowed=_allowed(field.name)) from cause
    return Settings(**values)


def _shown_value(name: str, value: Any) -> Any:
    """A misspelt secret is still one."""
    return "(hidden)" if any(word in name.lower() for word in SECRET_NAMES) else value


def _known_names() -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(Settings))


def _allowed(name: str) -> str:
    """What a field takes, in words, from its type."""
    field = next(field for field in msgspec.structs.fields(Settings) if field.name == name)
    info = msgspec.inspect.type_info(field.type)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    match info:
        case msgspec.inspect.LiteralType(values=values):
            return " \\| ".join(str(value) for value in values).replace("\\", "")
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"{low} to {high}" if high is not None else f"{low} or more"
        case msgspec.inspect.FloatType():
            return "number above 0"
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.ListType():
            return "list (commas in the environment)"
        case _:
            return "path" if name in ("data_dir", "tls_cert", "tls_key") else ("URL" if name.endswith(("_url", "_endpoint")) else "text")
