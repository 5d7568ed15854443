"""The price table, `prices.toml`: dated, each provider with what it was read from."""

import tomllib
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

HOURS_A_MONTH = 730


class Unit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A month of one vCPU, and of one GiB of memory."""

    vcpu_usd: float
    gib_usd: float


class Size(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance that is asked for whole."""

    name: str
    vcpus: int
    gib: float
    usd_an_hour: float


class Tasks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is reserved for one container."""

    web_vcpus: float
    web_gib: float
    worker_vcpus: float
    worker_gib: float


class Extra(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider needs beside our own: by the vCPU and GiB of an app, or with a price of its own."""

    what: str
    from_: Literal["always", "replicas", "pooler"] = msgspec.field(name="from")
    count: int
    vcpus: float = 0
    gib: float = 0
    usd: float = 0


class Provider(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`use`: what is used on average; `size`: what is reserved. Stores by unit, or by instance."""

    name: str
    title: str
    pays_for: Literal["use", "size"]
    read_on: date
    read_from: str
    least_usd: float
    app: Unit
    disk_gib_usd: float
    egress_gib_usd: float
    egress_free_gib: float = 0
    tasks: Tasks | None = None
    stores: Unit | None = None
    database: tuple[Size, ...] = ()
    cache: tuple[Size, ...] = ()
    extra: tuple[Extra, ...] = ()


class Spent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CPU milliseconds of one request, by who spends them."""

    server: float
    postgres: float
    valkey: float

    @property
    def all_ms(self) -> float:
        return self.server + self.postgres + self.valkey


class Idle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vCPUs of one process, or of one server of a store, that nobody asks for anything."""

    web: float
    worker: float
    postgres: float
    valkey: float


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What work takes, when and on what it was measured."""

    at: date
    on: str
    write_ms: Spent
    read_ms: Spent
    answer_bytes: int
    idle_vcpus: Idle
    web_gib: float
    worker_gib: float


class Prices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    measured: Measured
    provider: tuple[Provider, ...]


@cache
def table() -> Prices:
    """Everything that `prices.toml` says."""
    text = Path(__file__).with_name("prices.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Prices)


def names() -> list[str]:
    return [provider.name for provider in table().provider]


def of(name: str) -> Provider:
    """The provider of that name, one of `names()`."""
    return next(provider for provider in table().provider if provider.name == name)
