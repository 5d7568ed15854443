"""How often somebody may ask.

Fixed windows of a minute. Users, keys and strangers are counted in this process, in one dictionary that lives for a minute: a
request costs one look-up (the in-memory store of `limits` walks over every key at each hit). What guesses passwords is counted in
Valkey for all processes together, and in this process while that is away.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from math import ceil
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import RedisClusterStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from litestar.types import Scope
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from piggybank import errors, telemetry
from piggybank.cache import cluster
from piggybank.cache.servers import plain_url
from piggybank.identity.tokens import Principal
from piggybank.settings import Settings

WINDOW_S = 60
SHARED_TIMEOUT_S = 0.1
SHARED_PATIENCE_S = 0.3  # for all that one count asks
SHARED_REST_S = 1.0  # after a failure, so long Valkey is not asked
KEY_PREFIX = "piggybank:rate"
IPV6_CLIENT_BITS = 64  # one customer's network: its addresses are one client

_OF_PROXIES = frozenset({b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"})
_STRANGERS = {"general": "anonymous", "sign_in": "sign_in"}  # which limit one without a token has

_log = telemetry.logger("limits")


class _Window(Protocol):
    async def count(self, kind: str, who: str, limit: int) -> tuple[int, int]:
        """How many are left after this one (negative: one too many), and in how many seconds the window ends."""


class LocalWindow:
    """Counts of the current minute, thrown away when it ends."""

    def __init__(self) -> None:
        self._minute = 0
        self._counts: dict[str, int] = {}

    async def count(self, kind: str, who: str, limit: int) -> tuple[int, int]:
        now = time.time()
        minute = int(now) // WINDOW_S
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        key = f"{kind} {who}"
        used = self._counts[key] = self._counts.get(key, 0) + 1
        return limit - used, WINDOW_S - int(now) % WINDOW_S


class SharedWindow:
    """Counts of all processes, in Valkey; this process's own while that is away."""

    def __init__(self, url: str) -> None:
        store, self._close = _shared_store(url)
        self._limiter = FixedWindowRateLimiter(store)
        self._local = LocalWindow()
        self._resting_until = 0.0
        self._asking: set[asyncio.Task[tuple[int, int]]] = set()

    async def count(self, kind: str, who: str, limit: int) -> tuple[int, int]:
        if time.monotonic() >= self._resting_until:
            try:
                return await self._patiently(RateLimitItemPerMinute(limit), kind, who)
            except (RedisError, RedisClusterException, OSError, TimeoutError) as cause:
                self._resting_until = time.monotonic() + SHARED_REST_S
                _log.warning("the shared rate limit is away; counting in this process", cause=type(cause).__name__)
        return await self._local.count(kind, who, limit)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._close()

    async def _patiently(self, item: RateLimitItem, kind: str, who: str) -> tuple[int, int]:
        """Who waits too long leaves, and lets it end: a connection of redis-py's cluster client that is cancelled fails the next caller."""
        asking = asyncio.create_task(self._ask(item, kind, who), name="shared rate limit")
        self._asking.add(asking)
        asking.add_done_callback(self._ended)
        done, _ = await asyncio.wait([asking], timeout=SHARED_PATIENCE_S)
        if not done:
            raise TimeoutError
        return asking.result()

    def _ended(self, asking: "asyncio.Task[tuple[int, int]]") -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # nobody may be there any more to hear it

    async def _ask(self, item: RateLimitItem, kind: str, who: str) -> tuple[int, int]:
        allowed = await self._limiter.hit(item, kind, who)
        stats = await self._limiter.get_window_stats(item, kind, who)
        return stats.remaining if allowed else -1, max(1, ceil(stats.reset_time - time.time()))


def _shared_store(url: str) -> tuple[RedisStorage, Callable[[], Awaitable[None]]]:
    """In one server or in a cluster, and how it is closed; neither tries again, since this process can count."""
    options: dict[str, Any] = {"socket_timeout": SHARED_TIMEOUT_S, "socket_connect_timeout": SHARED_TIMEOUT_S}
    if not cluster.is_cluster(url):
        pool = ConnectionPool.from_url(plain_url(url), **options)
        store = RedisStorage(f"async+{plain_url(url)}", implementation="redispy", key_prefix=KEY_PREFIX, connection_pool=pool)  # type: ignore[arg-type]
        return store, pool.aclose
    scheme, _, rest = plain_url(url).partition("+")
    if password := urlsplit(url).password:
        options["password"] = unquote(password)  # the library takes it as it stands in the address
    store = RedisClusterStorage(
        f"async+redis+{rest}",
        implementation="redispy",
        key_prefix=KEY_PREFIX,
        ssl=scheme == "rediss",
        require_full_coverage=False,
        retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
        **options,
    )
    return store, partial(cluster.close, store.bridge.storage)  # type: ignore[attr-defined]


class Limiter:
    """The limits of this installation. `count` puts the `RateLimit-*` headers of the answer into the request's state."""

    def __init__(self, settings: Settings) -> None:
        self._limits = {
            "anonymous": settings.rate_anonymous_per_minute,
            "sign_in": settings.rate_sign_in_per_minute,
            "user": settings.rate_user_per_minute,
            "service": settings.rate_service_per_minute,
        }
        self._proxies = networks(settings.trusted_proxies)
        self._local = LocalWindow()
        self._shared = SharedWindow(settings.cache_url)

    async def count(self, scope: Scope, limit: Literal["general", "sign_in", "none"], principal: Principal | None) -> None:
        """One more request; raises `errors.TooManyRequests`."""
        if limit == "none":
            return
        kind = principal.kind if principal is not None else _STRANGERS[limit]
        allowed = self._limits[kind]
        if not allowed:
            return
        who = client_of(scope, self._proxies) if principal is None else str(principal.user_id or principal.token_id)
        window: _Window = self._shared if kind == "sign_in" else self._local
        left, reset_s = await window.count(kind, who, allowed)
        scope["state"]["rate"] = (allowed, max(left, 0), reset_s)
        if left < 0:
            raise errors.TooManyRequests(retry_after_s=reset_s, limit_per_minute=allowed)

    async def close(self) -> None:
        """Close every connection."""
        await self._shared.close()


Network = IPv4Network | IPv6Network


def networks(texts: Sequence[str], setting: str = "PIGGYBANK_TRUSTED_PROXIES") -> list[Network]:
    """Those of a setting; raises `errors.BadSetting`."""
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ip_network(text, strict=False))
        except ValueError as cause:
            raise errors.BadSetting(setting=setting, value=text, allowed="addresses or networks, as 10.0.0.0/8") from cause
    return found


def is_near(scope: Scope, near: list[Network]) -> bool:
    """Whether a request comes straight from one of these networks: what a proxy sends on may be anybody's."""
    client: Any = scope.get("client")
    address = _address(client[0]) if client else None
    by_proxy = any(name in _OF_PROXIES for name, _ in scope["headers"])
    return address is not None and not by_proxy and _trusted(address, near)


def client_of(scope: Scope, proxies: list[Network]) -> str:
    """The client's address, an IPv6 one by its /64. `X-Forwarded-For` is read from the right, as far as proxies are trusted."""
    client: Any = scope.get("client")
    address = _address(client[0]) if client else None
    if address is None:
        return "unknown"
    if proxies and _trusted(address, proxies):
        forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
        for text in reversed([part for part in forwarded.split(",") if part.strip()]):
            further = _address(text)
            if further is None:
                break
            address = further
            if not _trusted(address, proxies):
                break
    if isinstance(address, IPv6Address):
        return str(ip_network((address, IPV6_CLIENT_BITS), strict=False))
    return str(address)


def _trusted(address: IPv4Address | IPv6Address, proxies: list[Network]) -> bool:
    return any(address in network for network in proxies)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address out of `1.2.3.4`, `1.2.3.4:80`, `::1` or `[::1]:80`; IPv4 in IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
