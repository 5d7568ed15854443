"""The long flips; `python -m tests.phases.soak` draws them."""

from pathlib import Path

import pytest

from piggybank.appliance import store_files
from tests.appliance.bank import Bank
from tests.conftest import require
from tests.phases.soak import CLIENTS, PHASES, STEADY_S, plot, soak


@pytest.mark.deep
async def test_minutes_of_load_through_all_phases(open_path: Path) -> None:
    require("pgbouncer")
    bank = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    try:
        bank.do("up", "--detach")
        soaked = await soak(bank, STEADY_S, CLIENTS)
        assert plot(soaked).startswith("<svg")
        assert [flip.number for flip in soaked.flips] == list(PHASES)
    finally:
        bank.run("down")
