"""What the command line asks of the supervisor waits in one place, for one of them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from piggybank import errors
from piggybank.appliance import orders
from piggybank.appliance.orders import Order

AT_ONCE = 8
ROUNDS = 20


def test_of_orders_that_are_given_at_once_one_is_taken_and_the_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    starting = Barrier(AT_ONCE)

    def give(number: int) -> str | None:
        starting.wait()
        try:
            orders.give(tmp_path, Order(id=str(number), verb="phase", argument=str(number)))
        except errors.CannotProceed:
            return None
        return str(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(ROUNDS):
            given = [id_ for id_ in pool.map(give, range(AT_ONCE)) if id_ is not None]
            taken = orders.take(tmp_path)
            assert taken is not None
            assert given == [taken.id]
            assert list((tmp_path / "run").iterdir()) == []
