"""Who carries payments out: Revio or its simulator, the client that speaks to it, and the keys that its events are signed with.

Which of the two it is stands in the database, not in the settings: settings that lost their keys must not turn real payments into
play. A live installation without keys answers reads and refuses what needs the provider; it never falls back to the simulator.
"""

import time
from datetime import UTC, datetime

import msgspec
import structlog
from sqlalchemy import text

from piggybank import errors, metrics
from piggybank.db.engines import Database, Read, Write
from piggybank.revio import Client, Credentials, EftPayouts, OrchestrationPayouts, Payouts, signatures
from piggybank.revio.objects import Webhook
from piggybank.revio.payouts import EftAccount
from piggybank.settings import ProviderMode, Settings

MODE_REMEMBERED_S = 5.0
KEYS_REMEMBERED_S = 5.0  # a key that was removed is good no longer than that
KEYS_AGAIN_S = 1.0  # so often a wrong signature may make us look for new keys
WARN_EVERY_S = 10.0  # of wrong signatures
SIMULATOR_BRAND = "6f0c5a3e-0000-4000-8000-000000000001"
SIMULATOR_EFT_CLIENT = "109"
SIMULATOR_EMAIL = "customer@example.com"
EVENTS_PATH = "/v1/revio/events"

_MODE = text("SELECT provider_mode FROM installation")
_KEYS = text("SELECT fingerprint, pem, webhook_id, note, added_at FROM provider_keys WHERE provider = :provider ORDER BY added_at")
_ADD_KEY = text("""
INSERT INTO provider_keys (fingerprint, provider, pem, webhook_id, note, added_at)
VALUES (:fingerprint, :provider, :pem, :webhook_id, :note, :now)
ON CONFLICT (provider, fingerprint) DO NOTHING
RETURNING fingerprint
""")
_REMOVE_KEY = text("DELETE FROM provider_keys WHERE fingerprint = :fingerprint AND provider = :provider RETURNING fingerprint")

_log = structlog.get_logger()


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A public key that events may be signed with."""

    fingerprint: str
    pem: str
    webhook_id: str | None
    note: str
    added_at: datetime


class Provider:
    """One process's way to the provider."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db
        self._mode: ProviderMode | None = None
        self._mode_until = 0.0
        self._clients: dict[ProviderMode, Client] = {}
        self._payouts: dict[ProviderMode, Payouts] = {}
        self._pems: dict[ProviderMode, list[str]] = {}
        self._pems_at = float("-inf")
        self._warned_at = float("-inf")
        self.wrong_signatures = 0
        self.stopping = False  # nothing that moves money is begun any more
        self.introduced = False  # our webhook is known to be registered
        try:
            self._pasted = signatures.public_keys(settings.revio_webhook_keys) if settings.revio_webhook_keys else []
        except ValueError as cause:
            raise errors.BadSetting(
                setting="PIGGYBANK_REVIO_WEBHOOK_KEYS", value="(hidden)", allowed=f"RSA public keys in PEM form: it is {cause}"
            ) from cause

    async def mode(self) -> ProviderMode:
        """`simulator` or `live`; raises DatabaseUnavailable."""
        if self._mode is None or time.monotonic() >= self._mode_until:
            async with self.db.read() as read:
                self._mode = await mode_of(read)
            self._mode_until = time.monotonic() + MODE_REMEMBERED_S
        return self._mode

    async def is_simulator(self) -> bool:
        """For pages that must say so; as it was last known while the database is away."""
        try:
            return await self.mode() == "simulator"
        except errors.DatabaseUnavailable:
            return self._mode == "simulator"

    async def client(self) -> Client:
        """Raises ProviderNotConfigured, DatabaseUnavailable."""
        mode = await self.mode()
        if mode not in self._clients:
            self._clients[mode] = Client(credentials(self.settings, mode))
        return self._clients[mode]

    async def payouts(self) -> Payouts:
        """The driver that the settings name. Raises ProviderNotConfigured, DatabaseUnavailable."""
        mode = await self.mode()
        if mode not in self._payouts:
            self._payouts[mode] = (
                EftPayouts(eft_account(self.settings, mode))
                if self.settings.revio_payouts == "eft"
                else OrchestrationPayouts(await self.client())
            )
        return self._payouts[mode]

    async def check(self) -> ProviderMode:
        """The mode, if payments can be made in it: raises ProviderNotConfigured, saying what is missing."""
        await self.payouts()
        await self.client()
        return await self.mode()

    def email(self, mode: ProviderMode) -> str:
        """For people who have no address; empty where none is set."""
        return self.settings.revio_fallback_email or (SIMULATOR_EMAIL if mode == "simulator" else "")

    async def is_signed(self, body: bytes, signature: str | None) -> bool:
        """True when a key of this installation signed exactly these bytes; counts and tells what is not."""
        mode = await self.mode()
        if mode not in self._pems or time.monotonic() - self._pems_at > KEYS_REMEMBERED_S:
            await self._load_keys(mode)
        if signatures.is_signed(body, signature, self._pems[mode]):
            return True
        if time.monotonic() - self._pems_at > KEYS_AGAIN_S:  # it may be a new one
            await self._load_keys(mode)
            if signatures.is_signed(body, signature, self._pems[mode]):
                return True
        self.wrong_signatures += 1
        metrics.BAD_SIGNATURES.inc()
        if time.monotonic() - self._warned_at > WARN_EVERY_S:
            self._warned_at = time.monotonic()
            _log.warning("provider_event_not_signed", so_far=self.wrong_signatures, keys=len(self._pems[mode]))
        return False

    async def close(self) -> None:
        """Close every connection."""
        for driver in self._payouts.values():
            await driver.close()
        for client in self._clients.values():
            await client.close()

    async def _load_keys(self, mode: ProviderMode) -> None:
        self._pems_at = time.monotonic()
        async with self.db.read() as read:
            known = [key.pem for key in await keys(read, mode)]
        self._pems = {mode: list(dict.fromkeys([*self._pasted, *known])) if mode == "live" else known}


def credentials(settings: Settings, mode: ProviderMode) -> Credentials:
    """How the orchestration API is spoken to in this mode. Raises ProviderNotConfigured, naming what is missing."""
    if mode == "simulator":
        _need(settings, "simulator_key")
        return Credentials(
            url=f"{settings.simulator_address}/api/v1/",
            key=settings.simulator_key,
            brand_id=SIMULATOR_BRAND,
            timeout_s=settings.revio_timeout_s,
        )
    _need(settings, "revio_url", "revio_key", "revio_brand_id")
    return Credentials(
        url=settings.revio_url.rstrip("/") + "/",
        key=settings.revio_key,
        brand_id=settings.revio_brand_id,
        timeout_s=settings.revio_timeout_s,
        proxy=settings.revio_proxy or None,
    )


def eft_account(settings: Settings, mode: ProviderMode) -> EftAccount:
    """The same for EFT credits."""
    if mode == "simulator":
        _need(settings, "simulator_key")
        return EftAccount(
            url=f"{settings.simulator_address}/v2",
            token_url=f"{settings.simulator_address}/oauth2/token",
            client_id=SIMULATOR_EFT_CLIENT,
            client_secret=settings.simulator_key,
            profile_code="TESTMERCH1",
            abbreviated_name="TESTMERCH1",
            debtor={"accountNumber": "12345678", "branchCode": "051001", "accountType": "CURRENT", "bank": "TEST", "firstName": "TEST1"},
            timeout_s=settings.revio_timeout_s,
        )
    _need(
        settings, "eft_url", "eft_token_url", "eft_client_id", "eft_client_secret", "eft_profile_code", "eft_abbreviated_name", "eft_debtor"
    )
    return EftAccount(
        url=settings.eft_url,
        token_url=settings.eft_token_url,
        client_id=settings.eft_client_id,
        client_secret=settings.eft_client_secret,
        profile_code=settings.eft_profile_code,
        abbreviated_name=settings.eft_abbreviated_name,
        debtor=msgspec.json.decode(settings.eft_debtor, type=dict[str, object]),
        timeout_s=settings.revio_timeout_s,
        proxy=settings.revio_proxy or None,
    )


def _need(settings: Settings, *names: str) -> None:
    missing = [f"PIGGYBANK_{name.upper()}" for name in names if not getattr(settings, name)]
    if missing:
        raise errors.ProviderNotConfigured(missing=missing)


async def mode_of(read: Read) -> ProviderMode:
    """What the database says."""
    mode: ProviderMode = await read.scalar(_MODE)
    return mode


async def keys(read: Read, mode: ProviderMode) -> list[Key]:
    """The keys that the database knows, the oldest first."""
    return [Key(**row._asdict()) for row in await read.execute(_KEYS, {"provider": mode})]


async def add_key(write: Write, mode: ProviderMode, pem: str, *, webhook_id: str | None = None, note: str = "") -> bool:
    """True when it was not known before. Raises ValueError where `pem` is none."""
    found = signatures.public_keys(pem)
    given = [
        {
            "fingerprint": signatures.fingerprint(one),
            "provider": mode,
            "pem": one,
            "webhook_id": webhook_id,
            "note": note,
            "now": datetime.now(UTC),
        }
        for one in found
    ]
    return any([await write.scalar(_ADD_KEY, values) is not None for values in given])


async def remove_key(write: Write, fingerprint: str, mode: ProviderMode) -> bool:
    """False when there is no such key."""
    return await write.scalar(_REMOVE_KEY, {"fingerprint": fingerprint, "provider": mode}) is not None


def callback_url(settings: Settings, mode: ProviderMode) -> str:
    """Where events come to: the simulator is on this machine, and need not know how others reach us."""
    return (settings.own_address if mode == "simulator" else settings.url) + EVENTS_PATH


async def connect(provider: Provider) -> tuple[Webhook, bool]:
    """See that the provider tells us what happens: our webhook is registered, and its key known. True: it was registered now.

    Raises Refused, Unsent, Unclear, ProviderNotConfigured.
    """
    client, mode = await provider.client(), await provider.mode()
    callback = callback_url(provider.settings, mode)
    registered = await client.webhooks()
    ours = [webhook for webhook in registered if webhook.callback == callback]
    made = not ours
    webhooks = ours or [await client.register_webhook(callback)]
    if mode == "simulator":  # it is ours alone: an address that we had before is no one's now
        for left in registered:
            if left.callback != callback:
                await client.delete_webhook(left.id)
    async with provider.db.write() as write:
        for webhook in webhooks:
            if await add_key(write, mode, webhook.public_key, webhook_id=webhook.id, note="webhook"):
                _log.info("provider_key_added", webhook=webhook.id)
    return webhooks[0], made
