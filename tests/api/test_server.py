"""What only a real server shows: bodies that lie about their length, health while it starts, status."""

import json
import socket
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgspec
import pytest

from piggybank.api import bodies
from piggybank.settings import Settings
from tests.conftest import Server, start_server

CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


def ask(server: Server, head: str, *parts: bytes) -> tuple[int, bytes]:
    """Send raw bytes, as far as the server takes them; its status and the rest of what it says."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        lines = [
            head,
            f"Host: {address.netloc}",
            f"Authorization: Bearer {server.token}",
            "Content-Type: application/json",
            "Connection: close",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        said = b""
        try:
            for part in parts:
                connection.sendall(part)
            while received := connection.recv(65_536):
                said += received
        except (BrokenPipeError, ConnectionResetError):
            while received := connection.recv(65_536):
                said += received
    return int(said.split(b" ", 2)[1]), said


DEPOSIT = f"POST /v1/accounts/{uuid4()}/deposits HTTP/1.1\r\nIdempotency-Key: {uuid4()}"


def test_a_long_body_is_refused_before_it_is_read(server: Server) -> None:
    status, said = ask(server, f"{DEPOSIT}\r\nContent-Length: 10000000", b"x")
    assert status == 413
    assert b"payload_too_large" in said


def test_a_long_body_in_chunks_is_refused(server: Server) -> None:
    status, said = ask(server, f"{DEPOSIT}\r\nTransfer-Encoding: chunked", *[CHUNK] * (bodies.BODY_MAX_BYTES // 0x10000 + 1), b"0\r\n\r\n")
    assert status == 413
    assert b"payload_too_large" in said


def test_a_body_longer_than_it_says_is_cut_there(server: Server) -> None:
    body = json.dumps({"amount": 1, "method": "direct"}).encode()
    status, said = ask(server, f"{DEPOSIT}\r\nContent-Length: {len(body)}", body + b" " * 100)
    assert status == 404
    assert b"not_found" in said


@pytest.mark.parametrize(
    "path", ["/v1/accounts/%ff%fe", "/v1/users?external_id=%ff", "/v1/users?external_id=%ed%a0%80", "/%", "/v1/users?%%%"]
)
def test_bytes_that_are_no_text(server: Server, path: str) -> None:
    status, said = ask(server, f"GET {path} HTTP/1.1")
    assert status in (200, 400, 404), said


def test_the_server_is_well(server: Server) -> None:
    assert httpx.get(f"{server.url}/health/live").json() == {"status": "ok", "reasons": []}
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ok", "reasons": []}
    status = httpx.get(f"{server.url}/v1/ops/status", headers=server.headers).json()
    assert status["ready"] is True
    assert status["stores"] == {"database": True, "cache": True, "queue": True}
    assert status["schema_revision"]
    assert status["epoch"]
    assert status["clock_off_s"] < 1
    assert status["outbox"]["waiting"] >= 0
    assert "token" in status["cache"]


def test_it_needs_no_owner(fresh_settings: Settings) -> None:
    """Who is reached from outside may change no table: only `migrate` and workers sign in as the owner."""
    running = start_server(msgspec.structs.replace(fresh_settings, owner_database_url="", worker_processes=1))
    try:
        user = httpx.post(f"{running.url}/v1/users", json={"external_id": "u"}, headers={**running.headers, "Idempotency-Key": "u"})
        assert user.status_code == 201
    finally:
        running.stop()


def test_head_has_no_body_on_the_wire(server: Server) -> None:
    status, said = ask(server, "HEAD /health/live HTTP/1.1")
    assert status == 200
    assert said.endswith(b"\r\n\r\n")


def test_a_client_that_hangs_up_is_no_fault(server: Server) -> None:
    before = server.log.read_text().count("request_failed")
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        head = f"{DEPOSIT}\r\nHost: {address.netloc}\r\nAuthorization: Bearer {server.token}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    assert server.log.read_text().count("request_failed") == before


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/console/", 308, "../console"),
        ("/console//", 308, "../../console"),
        ("/welcome/", 308, "../welcome"),
        ("/schema/", 308, "../schema"),
        ("/v1/currencies/", 200, ""),
        ("/health/live/", 200, ""),
        ("//evil.example/", 404, ""),  # a Location made of it would lead there
        ("//evil.example/console/", 404, ""),
        ("/console/../../evil.example/", 404, ""),
    ],
)
def test_a_slash_at_the_end_is_no_other_address(server: Server, path: str, status: int, location: str) -> None:
    answered, said = ask(server, f"GET {path} HTTP/1.1")
    found = [line.partition(": ")[2] for line in said.decode().split("\r\n") if line.lower().startswith("location: ")]
    assert (answered, "".join(found)) == (status, location)
