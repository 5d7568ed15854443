"""What the type of one setting cannot tell: addresses, and what goes together."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from piggybank import errors
from piggybank.settings.fields import PREFIX, STORE_FIELDS, Settings

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster", "valkey+cluster", "valkeys+cluster")


def check_together(settings: Settings) -> None:
    """Raises `errors.BadSetting`."""
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
        raise errors.BadSetting(setting="PIGGYBANK_BACKUP_TARGET", value=without_password(settings.backup_target), allowed=allowed)
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
        raise errors.BadSetting(setting=PREFIX + name.upper(), value=without_password(value), allowed=allowed)


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
        raise errors.BadSetting(setting=PREFIX + name.upper(), value=without_password(value), allowed=allowed)


def _check_json_object(name: str, value: str) -> None:
    try:
        msgspec.json.decode(value, type=dict[str, Any])
    except msgspec.MsgspecError as cause:
        raise errors.BadSetting(setting=PREFIX + name.upper(), value="(hidden)", allowed="a JSON object") from cause


def without_password(url: str) -> str:
    """As it may be shown."""
    return re.sub(r"//[^@]*@", "//(hidden)@", url)
