"""`install.sh --docker` for real: to a deposit with what it printed, again, to another phase, and away."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from installer.options import read_env
from tests.installer.test_look import INSTALL, a_free_port

from .project import FEWER, Installed, Payer

INSTALL_TIMEOUT_S = 1_500
COMMAND_TIMEOUT_S = 300
TRIES_MOST = 3  # of one payment, while web containers are replaced


def install(data_dir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(INSTALL), "--docker", "--data-dir", str(data_dir), "--json", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=INSTALL_TIMEOUT_S)


def installed(data_dir: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """What it says to machines, and to people."""
    done = install(data_dir, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def data_dir(substituted: list[str], tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / f"bank-{a_free_port()}"
    yield place
    if (place / "bin" / "piggybank").exists():
        purge = [str(place / "bin" / "piggybank"), "uninstall", "--purge", "--yes-really", project_of(place / ".env")]
        subprocess.run(purge, check=False, timeout=COMMAND_TIMEOUT_S)


def test_from_nothing_to_a_deposit_to_another_phase_and_away(data_dir: Path) -> None:
    port = a_free_port()
    made, printed = installed(data_dir, "--port", str(port))
    assert made.keys() == {"url", "data_dir", "cli", "operator_link", "provider_mode", "recovery_key"}
    assert made["recovery_key"].startswith("AGE-SECRET-KEY-1")
    assert printed.count(made["recovery_key"]) == 1
    assert made["operator_link"].startswith(made["url"])
    lines = re.search(r"^    PB=.*first-deposit .*?$", printed, re.MULTILINE | re.DOTALL)
    assert lines is not None
    typed = subprocess.run(["bash", "-euc", lines[0]], capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_S)
    assert json.loads(typed.stdout)["balance"]["balance"] == 10_000

    env = data_dir / ".env"
    secrets = read_env(env)
    env.write_text(env.read_text(encoding="utf-8") + "".join(f"{name}={value}\n" for name, value in FEWER.items()), encoding="utf-8")
    bank = Installed(port, made["cli"])
    payer = Payer(bank, account := bank.account())
    payer.start()
    # another phase while somebody pays: the primary starts again, so some tries are refused; none is lost or counts twice
    again, _ = installed(data_dir, "--phase", "2")
    assert again["recovery_key"] is None
    print(f"{payer.paid} deposits answered while the phase changed; {bank.unanswered} tries were not, at most {bank.most_tries} for one")
    # a change of ours alone, as a new version is: a web container always answers
    (data_dir / "settings.env").write_text("PIGGYBANK_LOG_LEVEL=warning\n", encoding="utf-8")
    paid, bank.unanswered, bank.most_tries, webs = payer.paid, 0, 0, web_containers(env)
    installed(data_dir)
    paid = payer.paid - paid
    assert not webs & web_containers(env)
    assert len(web_containers(env)) == int(FEWER["WEB"])
    print(f"{paid} deposits answered while the web was replaced; {bank.unanswered} tries were not, at most {bank.most_tries} for one")
    assert bank.most_tries <= TRIES_MOST
    answered = payer.stop()
    assert bank.balance(account) == answered
    bank.http.close()
    kept = read_env(env)
    assert {name: kept[name] for name in secrets if name != "PIGGYBANK_PHASE"} == {
        name: value for name, value in secrets.items() if name != "PIGGYBANK_PHASE"
    }
    seen = subprocess.run(
        [made["cli"], "phase", "show", "--observed", "--json"], capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_S
    )
    assert json.loads(seen.stdout)["observed"]["replicas"] == 2

    # the secrets are gone and the database is not: nobody makes new ones
    away = env.rename(data_dir / "env.away")
    refused = install(data_dir, "--check")
    assert refused.returncode == 2
    found = {finding["check"]: finding for finding in json.loads(refused.stdout.splitlines()[-1])["findings"]}
    assert found["existing"]["level"] == "stop"
    assert not env.exists()
    away.rename(env)

    volume = f"{kept['COMPOSE_PROJECT_NAME']}_postgres-1"
    subprocess.run([made["cli"], "uninstall"], check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S)
    assert has_volume(volume)
    purge = [made["cli"], "uninstall", "--purge"]
    wrong = subprocess.run(purge, input="no\n", text=True, capture_output=True, check=False, timeout=COMMAND_TIMEOUT_S)
    assert (wrong.returncode, has_volume(volume)) == (1, True)
    subprocess.run(purge, input=f"{kept['COMPOSE_PROJECT_NAME']}\n", text=True, check=True, timeout=COMMAND_TIMEOUT_S)
    assert not has_volume(volume)
    assert not data_dir.exists()


def project_of(env: Path) -> str:
    return read_env(env)["COMPOSE_PROJECT_NAME"]


def web_containers(env: Path) -> set[str]:
    words = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={project_of(env)}"]
    words += ["--filter", "label=com.docker.compose.service=web"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


def has_volume(name: str) -> bool:
    return subprocess.run(["docker", "volume", "inspect", name], capture_output=True, check=False).returncode == 0
