"""Versions that may not be skipped: `upgrades.toml`, and the migrations that take something away.

Old and new code run side by side for a moment, and a new version that fails is exchanged for the old one again, so a migration only adds
(expand). One that takes something away (contract) names the first version whose code does without: `CONTRACT = "0.4.0"` in its module.
It is applied only where that version, or a newer one, runs already.

`piggybank upgrade` sees what runs. Whoever else migrates (`up`, `migrate`, and so containers, Helm and Railway) goes by the version that
did it last, which stands in the database.
"""

import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files

import msgspec
from alembic.script import Script

from piggybank import errors

TABLE = "upgrades.toml"
MARK = "CONTRACT"  # in a migration's module
UNNOTED = "0.1.0"  # of a database whose last version did not note itself: later ones do


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that has to be installed, by whoever comes from an older one, before any newer one."""

    version: str
    why: str


def numbers(version: str) -> tuple[int, ...]:
    """To compare by; raises `errors.CannotProceed`."""
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as cause:
        raise errors.CannotProceed(what=f"{version} is no version", do="versions are numbers with dots: 0.2.0") from cause


def table() -> list[Stop]:
    """What the running version says."""
    values = tomllib.loads((files("piggybank") / TABLE).read_text(encoding="utf-8"))
    return msgspec.convert(values["stop"], list[Stop])


def of_migrations(scripts: Iterable[Script]) -> list[Stop]:
    """What the migrations say that would be applied."""
    marked = [(script, getattr(script.module, MARK)) for script in scripts if hasattr(script.module, MARK)]
    return [Stop(version, f"migration {script.revision} takes away what older versions still use") for script, version in marked]


def check(present: str, wanted: str, stops: Sequence[Stop], *, contracts: Sequence[Stop] = ()) -> None:
    """Raises `errors.CannotProceed`, naming the version to install first."""
    skipped = [stop for stop in stops if numbers(present) < numbers(stop.version) < numbers(wanted)]
    skipped += [stop for stop in contracts if numbers(present) < numbers(stop.version)]
    if skipped:
        first = min(skipped, key=lambda stop: numbers(stop.version))
        raise errors.CannotProceed(
            what=f"{wanted} cannot be installed over {present}: {first.version} may not be skipped ({first.why}); nothing was changed",
            do=f"install {first.version} first, then {wanted}",
        )
