"""One running simulator: its configuration, its book, its dice and what wakes its tasks."""

import asyncio
import time

from piggybank.simulator.book import Book, new_id
from piggybank.simulator.config import Config
from piggybank.simulator.faults import Faults
from piggybank.simulator.keys import Keys

_FACT_COMPANY = "company_id"
_FACT_TIME_SCALE = "time_scale"

# what waits for a moment of the real clock (`due` of a purchase) stays where it is
_RESCALE_TIMERS = "UPDATE timers SET due_at = ?1 + (due_at - ?1) * ?2 WHERE due_at > ?1 AND action <> 'purchase_overdue'"
_RESCALE_DELIVERIES = "UPDATE deliveries SET due_at = ?1 + (due_at - ?1) * ?2 WHERE due_at > ?1 AND state = 'waiting'"


class Simulation:
    """Everything that the handlers and the tasks share; nothing is open before `open`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.book = Book(config.folder)
        self.faults = Faults(config.faults, config.seed)
        self.keys = Keys(self.book)
        self.company_id = ""
        self.timers_changed = asyncio.Event()
        self.deliveries_changed = asyncio.Event()

    async def open(self) -> None:
        """Open the book and make what a new one lacks."""
        self.book.open()
        self.faults.load(self.book)
        await self.keys.open()
        with self.book.writing():
            self.company_id = self.book.fact(_FACT_COMPANY) or new_id()
            self.book.keep_fact(_FACT_COMPANY, self.company_id)
            self._rescale()

    def close(self) -> None:
        """Close the book."""
        self.book.close()

    def wait_s(self, seconds: float) -> float:
        """How long `seconds` of the simulated world take."""
        return seconds / self.config.time_scale

    def up_to_s(self, seconds: float) -> float:
        """A random wait of at most `seconds` of the simulated world."""
        return self.wait_s(self.faults.dice.uniform(0, seconds))

    def _rescale(self) -> None:
        """Waits that began under another time_scale go on under this one."""
        before = float(self.book.fact(_FACT_TIME_SCALE) or self.config.time_scale)
        if before != self.config.time_scale:
            for update in (_RESCALE_TIMERS, _RESCALE_DELIVERIES):
                self.book.execute(update, (time.time(), before / self.config.time_scale))
        self.book.keep_fact(_FACT_TIME_SCALE, repr(self.config.time_scale))
