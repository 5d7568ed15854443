"""Operators see the months over HTTP, too."""

import httpx

from tests.conftest import Server


def test_the_months_are_listed(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/ops/partitions", headers=server.headers)
    assert listed.status_code == 200, listed.text
    assert [(one["name"], one["state"], one["below"]) for one in listed.json()] == [("transactions_all", "attached", None)]
    assert httpx.get(f"{server.url}/v1/ops/partitions").status_code == 401
