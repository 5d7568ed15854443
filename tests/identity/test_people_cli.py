"""`piggybank users` and `piggybank apikeys`: from nothing to a working key without a browser."""

import json
import time

import httpx
import pytest

from piggybank.identity import apikeys
from piggybank.settings import Settings
from tests.conftest import Server, command, run_command
from tests.identity.conftest import PASSWORD


def test_from_nothing_to_a_working_key(server: Server) -> None:
    key = json.loads(command(server.settings, "apikeys", "create", "--name", "script", "--scopes", "users:read, users:write", "--json"))
    assert key.keys() == {"id", "name", "scopes", "token"}
    assert (key["name"], key["scopes"]) == ("script", ["users:read", "users:write"])
    headers = {"Authorization": f"Bearer {key['token']}"}
    assert httpx.get(f"{server.url}/v1/users", headers=headers).status_code == 200
    listed = command(server.settings, "apikeys", "list", "--json")
    assert key["token"] not in listed
    assert key["id"] in [item["id"] for item in json.loads(listed)["items"]]
    assert command(server.settings, "apikeys", "revoke", key["id"]) == "revoked\n"
    assert run_command(server.settings, "apikeys", "revoke", key["id"]).returncode == 1


def test_the_first_operator_by_command(server: Server, email: str) -> None:
    created = run_command(
        server.settings, "users", "create", "--operator", "--email", email, "--password-stdin", "--json", given=PASSWORD + "\n"
    )
    assert created.returncode == 0, created.stderr
    assert json.loads(created.stdout)["role"] == "operator"
    session = httpx.post(f"{server.url}/v1/sessions", json={"email": email, "password": PASSWORD}).json()
    headers = {"Authorization": f"Bearer {session['token']}"}
    assert httpx.get(f"{server.url}/v1/api-keys", headers=headers).status_code == 200
    assert email in command(server.settings, "users", "list")
    assert "was not locked" in command(server.settings, "users", "unlock", email)
    again = run_command(server.settings, "users", "create", "--email", email, "--password-stdin", given=PASSWORD)
    assert again.returncode == 1
    assert "Another user has this e-mail address." in again.stderr


def test_the_first_operator_by_link(server: Server, email: str) -> None:
    link = command(server.settings, "users", "operator-link").splitlines()[0]
    address, _, token = link.partition("#operator=")
    assert address == f"{server.url}/welcome"
    assert httpx.get(link).status_code == 200
    body = {"token": token, "email": email, "password": PASSWORD}
    assert httpx.post(f"{server.url}/v1/users/claim", json=body).status_code == 201
    assert httpx.post(f"{server.url}/v1/users/claim", json=body).json()["code"] == "link_invalid"
    assert token not in server.log.read_text()


def test_an_operator_is_one_no_more(server: Server, email: str) -> None:
    for address in (email, f"other-{email}"):
        run_command(server.settings, "users", "create", "--operator", "--email", address, "--password-stdin", given=PASSWORD)
    sessions = [
        httpx.post(f"{server.url}/v1/sessions", json={"email": address, "password": PASSWORD}).json()
        for address in (email, f"other-{email}")
    ]
    theirs, others = [{"Authorization": f"Bearer {session['token']}"} for session in sessions]
    assert httpx.get(f"{server.url}/v1/ops/audit", headers=theirs).status_code == 200
    assert "1 sessions ended" in command(server.settings, "users", "demote", email.upper())
    time.sleep(1.1)  # a process believes itself for a second
    assert httpx.get(f"{server.url}/v1/ops/audit", headers=theirs).status_code == 401
    assert httpx.post(f"{server.url}/v1/sessions", json={"email": email, "password": PASSWORD}).json()["user"]["role"] == "user"
    assert "is no operator" in run_command(server.settings, "users", "demote", email).stderr
    log = httpx.get(f"{server.url}/v1/ops/audit", params={"action": "user.demote"}, headers=others).json()
    assert (log["items"][0]["actor"], log["items"][0]["target_name"]) == ("cli", email)


def test_invites_and_resets_by_link(server: Server, email: str) -> None:
    invite = json.loads(command(server.settings, "users", "invite", "--json"))
    assert invite["link"] == f"{server.url}/welcome#invite={invite['token']}"
    body = {"email": email, "password": PASSWORD, "invite": invite["token"]}
    assert httpx.post(f"{server.url}/v1/users", json=body).status_code == 201
    reset = json.loads(command(server.settings, "users", "reset-link", email, "--json"))
    body = {"token": reset["token"], "password": PASSWORD + "!"}
    assert httpx.post(f"{server.url}/v1/users/reset", json=body).status_code == 204


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("apikeys", "create", "--scopes", "everything"), 2, "everything is not a scope; allowed: users:read"),
        (("apikeys", "create"), 2, "--scopes"),
        (("apikeys", "revoke", "x"), 2, "not a valid UUID"),
        (("users", "create"), 2, "--email"),
        (("users", "create", "--email", "ada", "--password-stdin"), 1, "not an address"),
        (("users", "create", "--email", "ada@example.com"), 2, "--password-stdin"),
        (("users", "create", "--email", "ada@example.com", "--password-stdin"), 1, "10 to 256 characters"),
        (("users", "reset-link", "nobody@example.com"), 1, "No user has this e-mail address"),
        (("users", "unlock", "nobody@example.com"), 1, "No user has this e-mail address"),
    ],
)
def test_mistakes_are_said_in_a_sentence(settings: Settings, words: tuple[str, ...], code: int, said: str) -> None:
    done = run_command(settings, *words)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("users",), ("apikeys",), ("users", "create"), ("apikeys", "create")])
def test_help_has_an_example(settings: Settings, words: tuple[str, ...]) -> None:
    assert "Example" in command(settings, *words, "--help")


def test_every_scope_has_a_line() -> None:
    assert all(line.endswith(".") for line in apikeys.SCOPES.values())
