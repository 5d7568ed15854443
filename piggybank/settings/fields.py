"""Every setting: its name, its type, what is allowed and what it is for; and what follows from several of them."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "PIGGYBANK_"
STORE_FIELDS = ("database_url", "owner_database_url", "cache_url", "queue_url")
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
        str,
        Meta(description="URL asked each minute while alerts are watched and told and somebody serves: a dead man's switch tells its end."),
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
