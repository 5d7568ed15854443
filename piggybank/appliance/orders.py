"""What the command line asks of the supervisor that runs, and what it says while it does it.

Two files in `run/`, which only the owner of the data folder can write: `order` and `report`. No socket: their paths would be too long
for many data folders.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank.appliance import folder, processes

POLL_S = 0.1
TAKEN_WITHIN_S = 30  # a supervisor that is well looks five times a second
CUT_SHORT, REPEAT = "a failover came first, and this was cut short", "piggybank phase show, then repeat it"

Verb = Literal["phase", "failover", "rotate"]
State = Literal["running", "done", "failed"]


class Order(Struct, frozen=True, kw_only=True):
    """`phase` with its number, `failover` with the name of a standby (empty: the best one), or `rotate` with what (`rotation.NAMES`)."""

    id: str
    verb: Verb
    argument: str = ""
    accept_loss: bool = False  # of a failover


class Report(Struct, frozen=True, kw_only=True):
    """How far an order is. Of a failure: what is so, and what to do."""

    id: str
    state: State
    lines: list[str]
    what: str = ""
    do: str = ""


class Reporting:
    """The supervisor's side of one order."""

    def __init__(self, data_dir: Path, order: Order) -> None:
        self._path = _report_path(data_dir)
        self._id = order.id
        self._lines: list[str] = []
        self._write("running")

    def tell(self, line: str) -> None:
        """A step was begun or done."""
        self._lines.append(line)
        self._write("running")

    def done(self) -> None:
        """All of it."""
        self._write("done")

    def failed(self, what: str, do: str) -> None:
        """It stopped there."""
        self._write("failed", what, do)

    def _write(self, state: State, what: str = "", do: str = "") -> None:
        report = Report(id=self._id, state=state, lines=self._lines, what=what, do=do)
        with suppress(OSError):  # saying what happens never decides what happens
            processes.write_file(self._path, msgspec.json.encode(report).decode() + "\n", 0o640)


def give(data_dir: Path, order: Order) -> None:
    """Lay it where the supervisor looks; raises `errors.CannotProceed` where another one lies there: of two at once one is told so."""
    path = _order_path(data_dir)
    making = path.with_name(f"{path.name}-{order.id}")
    processes.write_file(making, msgspec.json.encode(order).decode() + "\n", 0o640)
    try:
        os.link(making, path)
    except FileExistsError:
        raise errors.CannotProceed(what="another order waits for the supervisor", do="wait until that is done, then again") from None
    finally:
        making.unlink()


def take(data_dir: Path) -> Order | None:
    """The order that waits, if one does; it is taken once."""
    path = _order_path(data_dir)
    try:
        order = msgspec.json.decode(path.read_bytes(), type=Order)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        order = None
    with suppress(OSError):
        path.unlink()
    return order


def waiting(data_dir: Path) -> Verb | None:
    """What the order is that waits, if one does; it goes on waiting."""
    try:
        return msgspec.json.decode(_order_path(data_dir).read_bytes(), type=Order).verb
    except (OSError, msgspec.MsgspecError):
        return None


def forget(data_dir: Path) -> None:
    """What was asked of an earlier supervisor, and what it said."""
    for path in (_order_path(data_dir), _report_path(data_dir)):
        with suppress(OSError):
            path.unlink()


def carry_out(data_dir: Path, verb: Verb, argument: str = "", *, accept_loss: bool = False) -> Iterator[str]:
    """Give an order to the running supervisor; its lines as they come.

    A failover waits for none that is under way: that is cut short. Raises `errors.CannotProceed` where it fails, where another order is
    under way, and where the supervisor ends meanwhile.
    """
    if (said := under_way(data_dir)) and verb != "failover":
        raise errors.CannotProceed(what=f"the supervisor is at work: {said}", do="wait until that is done, then again")
    order = Order(id=uuid4().hex[:12], verb=verb, argument=argument, accept_loss=accept_loss)
    give(data_dir, order)
    told, began, given = 0, False, time.monotonic()
    while True:
        report = _read(data_dir)
        mine = report if report is not None and report.id == order.id else None
        if mine is not None:
            yield from mine.lines[told:]
            told = len(mine.lines)
            if mine.state == "done":
                return
            if mine.state == "failed":
                raise errors.CannotProceed(what=mine.what, do=mine.do)
        elif began:
            raise errors.CannotProceed(what="another order came before this one had said how it ended", do=REPEAT)
        elif under_way(data_dir):
            given = time.monotonic()  # it ends what it is at work on
        began |= mine is not None
        ended = folder.read_card(data_dir) is None
        if ended or (mine is None and time.monotonic() - given > TAKEN_WITHIN_S):
            if (left := take(data_dir)) is not None and left.id != order.id:
                with suppress(errors.CannotProceed):
                    give(data_dir, left)
            log = f"{data_dir}/logs/supervisor.log"
            if ended:
                raise errors.CannotProceed(what="the supervisor has ended", do=f"piggybank up --detach ends what was begun; see {log}")
            raise errors.CannotProceed(what="the supervisor takes no orders now", do=f"see in {log} what it is at work on; then again")
        time.sleep(POLL_S)


def under_way(data_dir: Path) -> str:
    """The last word about the order that the supervisor is at work on; empty: it is on none."""
    report = _read(data_dir)
    if report is None or report.state != "running" or folder.read_card(data_dir) is None:
        return ""
    return report.lines[-1] if report.lines else "it has just begun"


def _read(data_dir: Path) -> Report | None:
    try:
        return msgspec.json.decode(_report_path(data_dir).read_bytes(), type=Report)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _order_path(data_dir: Path) -> Path:
    return data_dir / "run" / "order"


def _report_path(data_dir: Path) -> Path:
    return data_dir / "run" / "report"
