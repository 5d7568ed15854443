"""Everything that an operator may set, read once.

Order, the later wins: defaults, `stores.toml` (written by the embedded stores: addresses with their passwords), `phase.toml` (written
by `piggybank phase apply`: what the phase sets), `piggybank.toml` (the operator's), the environment. This is the only module that reads
the environment.
"""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from piggybank import errors

PREFIX = "PIGGYBANK_"
OPERATOR_FILE = "piggybank.toml"
STORES_FILE = "stores.toml"
PHASE_FILE = "phase.toml"
NOT_SETTINGS = frozenset({"PIGGYBANK_REQUIRE"})  # read by the test run only: tools whose absence is a failure
LIST_FIELDS = frozenset({"trusted_proxies", "replica_urls", "metrics_networks"})  # commas between the items in the environment
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster", "valkey+cluster", "valkeys+cluster")
STORE_FIELDS = ("database_url", "owner_database_url", "cache_url", "queue_url")
GIVEN_TOGETHER = (STORE_FIELDS[:2], STORE_FIELDS[2:])  # or not at all
# what runs in the data folder, unless this address is given
STORES = {"postgres": "database_url", "cache": "cache_url", "queue": "queue_url"}

COUNTING_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's word; the supervisor gives it to what it starts

SECRET_NAMES = ("key", "secret", "password", "token", "url")  # a value whose name has one of these words is not shown
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}  # noqa: S104 - compared, not bound

ProviderMode = Literal["simulator", "live"]
Pooling = Literal["none", "transaction", "transaction+prepared"]
Durability = Literal["disk", "synchronous", "local"]  # what a commit waits for: its own disk, a standby too, or not even where asked to
REPLICATED_PHASE = 2  # from here on there are standbys
Port = Annotated[int, Meta(ge=1, le=65_535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field, one setting: `port` is `PIGGYBANK_PORT` in the environment and `port` in `piggybank.toml`."""

    data_dir: Annotated[Path, Meta(description="Folder of the installation: stores, logs, `piggybank.toml`.")]
    listen: Annotated[str, Meta(description="Address to listen on. Beyond loopback it needs TLS, a proxy or `insecure`.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port of the HTTP API.")] = 8080
    public_url: Annotated[str, Meta(description="URL that people reach it by; goes into links. Empty: made of `listen` and `port`.")] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of the certificate; with `tls_key`.")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key.")] = ""
    insecure: Annotated[bool, Meta(description="Allow listening beyond loopback without TLS or a trusted proxy.")] = False
    trusted_proxies: Annotated[list[str], Meta(description="Addresses or networks whose `X-Forwarded-For` is believed.")] = []
    web_processes: Annotated[int, Meta(ge=1, le=64, description="Web processes that the supervisor starts.")] = 1
    worker_processes: Annotated[
        int, Meta(ge=0, le=64, description="Job workers that the supervisor starts; 0: inside the web process.")
    ] = 0
    database_url: Annotated[str, Meta(description="PostgreSQL, application role. Empty: the embedded one.")] = ""
    owner_database_url: Annotated[
        str, Meta(description="PostgreSQL, owner role, direct (no pooler): migrations, `verify`, partitions.")
    ] = ""
    phase: Annotated[int, Meta(ge=0, le=3, description="Phase that this installation runs as (`piggybank phase`).")] = 0
    replica_urls: Annotated[
        list[str], Meta(description="PostgreSQL, application role: read replicas that stream from the primary, from phase 2.")
    ] = []
    pooler_url: Annotated[
        str, Meta(description="PgBouncer in front of the primary, application role, from phase 2. Empty: `database_url` is used directly.")
    ] = ""
    pooler: Annotated[
        Literal["phase", "none", "transaction", "transaction+prepared"],
        Meta(description="How the pooler pools; `phase`: none below phase 2, then transaction. `+prepared` needs PgBouncer 1.21 or newer."),
    ] = "phase"
    pool_connections: Annotated[
        int,
        Meta(ge=2, le=100, description="Connections that a process may open to PostgreSQL or its pooler, beside the ledger's own."),
    ] = 10
    durability: Annotated[
        Literal["synchronous", "local"],
        Meta(description="From phase 2, whether a commit waits for a replica; `local`: not, and a lost primary may lose answered writes."),
    ] = "synchronous"
    cache_url: Annotated[
        str,
        Meta(description="Valkey or Redis for the cache (LRU); `redis+cluster://:password@host:port,host:port`. Empty: the embedded one."),
    ] = ""
    cache_balances: Annotated[bool, Meta(description="Keep balances in the cache, 5 minutes; without them no counts and pages either.")] = (
        True
    )
    cache_counts: Annotated[bool, Meta(description="Take an account's number of transactions from the cache, 5 minutes.")] = True
    cache_pages: Annotated[bool, Meta(description="Keep first pages of histories in the cache, 1 minute.")] = True
    cache_sessions: Annotated[bool, Meta(description="Keep sessions, 7 days, and API keys, 5 minutes, in the cache.")] = True
    queue_url: Annotated[str, Meta(description="Valkey or Redis for the jobs (AOF, noeviction). Empty: the embedded one.")] = ""
    sign_up: Annotated[Literal["open", "invite", "closed"], Meta(description="Who may create an account on their own.")] = "invite"
    smtp_url: Annotated[str, Meta(description="`smtp://user:password@host:587` or `smtps://`; empty: no mail is sent.")] = ""
    mail_from: Annotated[str, Meta(description="Sender of the mails.")] = ""
    provider_mode: Annotated[
        ProviderMode,
        Meta(description="What a new database starts with; an existing one keeps its own (`piggybank provider mode`)."),
    ] = "simulator"
    revio_url: Annotated[str, Meta(description="Revio's payment orchestration API.")] = "https://gate.reviopay.com/api/v1/"
    revio_key: Annotated[str, Meta(description="Secret key of the Revio account (the standard one, not S2S).")] = ""
    revio_brand_id: Annotated[str, Meta(description="Brand that purchases and payouts are made for.")] = ""
    revio_webhook_keys: Annotated[
        str, Meta(description="Public keys (PEM) of webhooks that were registered by hand, one after the other.")
    ] = ""
    revio_fallback_email: Annotated[str, Meta(description="Address that Revio is given for people who have none.")] = ""
    revio_proxy: Annotated[str, Meta(description="HTTP proxy on the way to Revio; that of the environment is not used.")] = ""
    revio_timeout_s: Annotated[int, Meta(ge=1, le=15, description="Seconds that a call of Revio may take.")] = 10
    revio_payouts: Annotated[Literal["orchestration", "eft"], Meta(description="How money goes out: two-step payouts, or EFT credits.")] = (
        "orchestration"
    )
    eft_url: Annotated[str, Meta(description='Revio\'s EFT API; with `revio_payouts = "eft"`.')] = ""
    eft_token_url: Annotated[str, Meta(description="Where its OAuth2 tokens come from.")] = ""
    eft_client_id: Annotated[str, Meta(description="OAuth2 client of the EFT API.")] = ""
    eft_client_secret: Annotated[str, Meta(description="Its secret.")] = ""
    eft_profile_code: Annotated[str, Meta(description="Profile code of the EFT contract.")] = ""
    eft_abbreviated_name: Annotated[str, Meta(description="Name that people see on their statements (PASA).")] = ""
    eft_debtor: Annotated[str, Meta(description="The account that EFT credits are paid from, as the JSON object `debtor` of the API.")] = ""
    eft_callback_secret: Annotated[
        str,
        Meta(description="Last part of the path that EFT callbacks come to; two with a comma while it is changed; empty: none are taken."),
    ] = ""
    simulator_listen: Annotated[str, Meta(description="Address that the simulator of Revio listens on, in simulator mode.")] = "127.0.0.1"
    simulator_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_535,
            description="Its port; 0: one that was free at the first start, or the one after `port` with stores of your own.",
        ),
    ] = 0
    simulator_url: Annotated[str, Meta(description="URL that people reach its checkout page by. Empty: made of the two above.")] = ""
    simulator_key: Annotated[str, Meta(description="Its secret key. Empty: the embedded one.")] = ""
    simulator_faults: Annotated[
        str, Meta(description="How it misbehaves: `timeout_after_commit:0.01,dup_event:0.05`; `piggybank simulator --help` lists all.")
    ] = ""
    simulator_time_scale: Annotated[float, Meta(gt=0, description="Its waits (back-off, settlement) are divided by this.")] = 1.0
    rate_anonymous_per_minute: Annotated[int, Meta(ge=0, description="Requests a minute and client without a token; 0: no limit.")] = 120
    rate_sign_in_per_minute: Annotated[int, Meta(ge=0, description="Sign-ins, sign-ups and resets a minute and client; 0: no limit.")] = 20
    rate_user_per_minute: Annotated[int, Meta(ge=0, description="Requests a minute and user; 0: no limit.")] = 1_200
    rate_service_per_minute: Annotated[int, Meta(ge=0, description="Requests a minute and API key; 0: no limit.")] = 0
    metrics_networks: Annotated[
        list[str],
        Meta(
            description="Addresses or networks that may read `/metrics` without a token, if not through a proxy. Empty: nobody, for a"
            " proxy on this machine that adds no `X-Forwarded-For`: whoever comes by it seems to be this machine."
        ),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1", "::1"])
    worker_metrics_port: Annotated[
        int, Meta(ge=0, le=65_535, description="Port on which a worker answers `/metrics`, for containers; 0: none. It asks for no token.")
    ] = 0
    worker_metrics_listen: Annotated[
        str, Meta(description="Address of that port; beyond loopback, as `0.0.0.0` in a container, let nobody but Prometheus come to it.")
    ] = "127.0.0.1"
    alert_email: Annotated[str, Meta(description="Address that alerts are mailed to; needs `smtp_url` and `mail_from`.")] = ""
    alert_webhook_url: Annotated[str, Meta(description="URL that alerts are posted to as JSON.")] = ""
    alert_ping_url: Annotated[
        str, Meta(description="URL asked each minute while alerts are watched: a dead man's switch elsewhere tells when that ends.")
    ] = ""
    alert_pace: Annotated[float, Meta(gt=0, description="The alerts' waits and windows are divided by this (for trying them).")] = 1.0
    otlp_url: Annotated[
        str, Meta(description="OTLP/HTTP receiver of traces (`http://host:4318/v1/traces`); empty: none. Needs the extra `tracing`.")
    ] = ""
    backup_target: Annotated[
        str,
        Meta(description="Where backups go: a folder, `ssh://user@host[:port]/folder` or `s3://bucket/prefix`. Empty: none are made."),
    ] = ""
    backup_every_h: Annotated[
        int, Meta(ge=0, le=720, description="Hours between two backups that are made by themselves; 0: only `piggybank backup create`.")
    ] = 24
    backup_keep: Annotated[int, Meta(ge=1, le=1_000, description="Backups that are kept; the newest good one always is.")] = 14
    backup_keep_days: Annotated[int, Meta(ge=1, le=3_650, description="Days after which a backup goes, whatever their number.")] = 30
    backup_drill_days: Annotated[
        int, Meta(ge=0, le=366, description="Days between two restore drills that are made by themselves; 0: only `backup drill`.")
    ] = 30
    backup_recipient: Annotated[
        str, Meta(description="Public half of the recovery key (`age1..`), to which secrets in backups are encrypted.")
    ] = ""
    backup_ssh_key: Annotated[str, Meta(description="File of the private key that `ssh://` signs in with.")] = ""
    backup_ssh_known_hosts: Annotated[
        str,
        Meta(description="File with the keys of `ssh://` hosts, as `ssh-keyscan` prints them; a host that it does not have is refused."),
    ] = ""
    backup_s3_endpoint: Annotated[str, Meta(description="URL of an S3-compatible service. Empty: AWS.")] = ""
    backup_s3_region: Annotated[str, Meta(description="Region of the bucket.")] = ""
    backup_s3_access_key: Annotated[str, Meta(description="Access key; empty: as AWS's own tools find it.")] = ""
    backup_s3_secret_key: Annotated[str, Meta(description="Its secret.")] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged.")] = "info"
    log_format: Annotated[Literal["json", "console"], Meta(description="How log lines are written.")] = "json"

    @property
    def pooling(self) -> Pooling:
        """What stands between the application and PostgreSQL."""
        if self.pooler == "phase":
            return "transaction" if self.phase >= REPLICATED_PHASE and self.pooler_url else "none"
        return self.pooler

    @property
    def eft_callback_secrets(self) -> list[str]:
        """Those that are good: two while Revio is told of another one."""
        return [part.strip() for part in self.eft_callback_secret.split(",") if part.strip()]

    @property
    def read_replicas(self) -> list[str]:
        """Those that may answer reads, in this phase."""
        return self.replica_urls if self.phase >= REPLICATED_PHASE else []

    @property
    def waits_for(self) -> Durability:
        """What a commit waits for, in this phase."""
        return self.durability if self.phase >= REPLICATED_PHASE else "disk"

    @property
    def url(self) -> str:
        """Where people reach the API, without a trailing slash."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return self.own_address

    @property
    def own_address(self) -> str:
        """Where this machine reaches the API itself, whatever people call it."""
        return f"{'https' if self.tls_cert else 'http'}://{_LOOPBACK_OF.get(self.listen, self.listen)}:{self.port}"

    @property
    def simulator_address(self) -> str:
        """Where the simulator is reached from this machine, without a trailing slash."""
        host = _LOOPBACK_OF.get(self.simulator_listen, self.simulator_listen)
        return f"http://{host}:{self.simulator_port or self.port + 1}"

    @property
    def simulator_page(self) -> str:
        """Where people reach the simulator, without a trailing slash."""
        return (self.simulator_url or self.simulator_address).rstrip("/")


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
    _check_together(settings)
    return settings


def embedded_stores(data_dir: Path, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The names of the stores that run in the data folder: those for which the operator gave no address."""
    chosen = operator_values(data_dir, environment)
    for together in GIVEN_TOGETHER:
        given = [name for name in together if chosen.get(name)]
        if given and len(given) < len(together):
            missing = ", ".join(sorted(set(together) - set(given)))
            raise errors.BadSetting(
                setting=given[0], value="(set)", allowed=f"all of {', '.join(together)} together, or none; missing: {missing}"
            )
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


def platform(environment: Mapping[str, str] | None = None) -> Literal["compose", "helm", "railway"] | None:
    """The container platform that this process runs on; None on a plain machine."""
    environment = os.environ if environment is None else environment
    if "RAILWAY_PROJECT_ID" in environment:
        return "railway"
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "helm"
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
            shown = _without_password(str(values[field.name])) if "_url" in field.name else values[field.name]
            raise errors.BadSetting(setting=PREFIX + field.name.upper(), value=shown, allowed=_allowed(field.name)) from cause
    return Settings(**values)


def _check_together(settings: Settings) -> None:
    """What one field alone cannot tell."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise errors.BadSetting(setting="PIGGYBANK_TLS_CERT", value=settings.tls_cert, allowed="both of tls_cert and tls_key, or neither")
    for name in ("tls_cert", "tls_key"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise errors.BadSetting(setting=PREFIX + name.upper(), value=path, allowed="the path of a readable PEM file")
    loopback = settings.listen in ("127.0.0.1", "::1", "localhost")
    if not (loopback or settings.tls_cert or settings.trusted_proxies or settings.insecure):
        raise errors.BadSetting(
            setting="PIGGYBANK_LISTEN",
            value=settings.listen,
            allowed="127.0.0.1, or any address with tls_cert and tls_key, with trusted_proxies, or with insecure = true",
        )
    for url in settings.replica_urls:
        _check_url("replica_urls", url, ("postgresql", "postgres"))
    _check_url("pooler_url", settings.pooler_url, ("postgresql", "postgres"))
    for name in STORE_FIELDS:
        if "database" in name:
            _check_url(name, getattr(settings, name), ("postgresql", "postgres"))
        elif name == "cache_url" and urlsplit(settings.cache_url).scheme in CLUSTER_SCHEMES:
            _check_cluster_url(name, settings.cache_url)
        else:
            _check_url(name, getattr(settings, name), ("redis", "rediss", "valkey", "valkeys"), needs_port=True)
    _check_url("smtp_url", settings.smtp_url, ("smtp", "smtps"))
    _check_backup(settings)
    for name in (
        "public_url",
        "revio_url",
        "revio_proxy",
        "eft_url",
        "eft_token_url",
        "simulator_url",
        "alert_webhook_url",
        "alert_ping_url",
        "otlp_url",
        "backup_s3_endpoint",
    ):
        _check_url(name, getattr(settings, name), ("http", "https"))
    if settings.eft_debtor:
        _check_json_object("eft_debtor", settings.eft_debtor)


def _check_backup(settings: Settings) -> None:
    target = urlsplit(settings.backup_target)
    named = target.hostname if target.scheme in ("ssh", "s3") else not target.scheme and target.path.startswith("/")
    if settings.backup_target and not (named and not target.password):
        allowed = "an absolute path, ssh://user@host[:port]/folder (signs in with backup_ssh_key) or s3://bucket[/prefix]"
        raise errors.BadSetting(setting="PIGGYBANK_BACKUP_TARGET", value=_without_password(settings.backup_target), allowed=allowed)
    if settings.backup_recipient and not re.fullmatch(r"age1[a-z0-9]{58}", settings.backup_recipient):
        allowed = "age1.. with 62 characters, as `piggybank backup key` prints it"
        raise errors.BadSetting(setting="PIGGYBANK_BACKUP_RECIPIENT", value="(hidden)", allowed=allowed)


def _check_url(name: str, value: str, schemes: tuple[str, ...], *, needs_port: bool = False) -> None:
    if not value:
        return
    try:
        parts = urlsplit(value)
        # several hosts, as PostgreSQL's drivers take them: with target_session_attrs=read-write the one that takes writes is found
        hosts = parts.netloc.rpartition("@")[2].split(",") if "postgresql" in schemes else [parts.netloc]
        each = [urlsplit(f"//{host}") for host in hosts]
        well_formed = parts.scheme in schemes and all(host.hostname and (host.port is not None or not needs_port) for host in each)
    except ValueError:
        well_formed = False
    if not well_formed:
        port = ":port" if needs_port else "[:port]"
        allowed = " or ".join(f"{scheme}://host{port}[/name]" for scheme in schemes)
        raise errors.BadSetting(setting=PREFIX + name.upper(), value=_without_password(value), allowed=allowed)


def cluster_nodes(url: str) -> list[tuple[str, int]]:
    """The nodes that `redis+cluster://:password@host:port[,host:port..]` names; raises ValueError."""
    nodes = [urlsplit(f"//{part}") for part in urlsplit(url).netloc.rpartition("@")[2].split(",")]
    if any(not node.hostname or node.port is None for node in nodes):
        raise ValueError(url)
    return [(node.hostname or "", node.port or 0) for node in nodes]


def _check_cluster_url(name: str, value: str) -> None:
    try:
        cluster_nodes(value)
        well_formed = urlsplit(value).path in ("", "/", "/0")  # a cluster has one database
    except ValueError:
        well_formed = False
    if not well_formed:
        allowed = " or ".join(f"{scheme}://host:port,host:port" for scheme in CLUSTER_SCHEMES)
        raise errors.BadSetting(setting=PREFIX + name.upper(), value=_without_password(value), allowed=allowed)


def _check_json_object(name: str, value: str) -> None:
    try:
        msgspec.json.decode(value, type=dict[str, Any])
    except msgspec.MsgspecError as cause:
        raise errors.BadSetting(setting=PREFIX + name.upper(), value="(hidden)", allowed="a JSON object") from cause


def _without_password(url: str) -> str:
    return re.sub(r"//[^@]*@", "//(hidden)@", url)


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
