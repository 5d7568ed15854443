"""`install.sh --docker` before there is an engine: flags, and what it says. With one: `make test-images`."""

import gc
from pathlib import Path
from typing import Any

import pytest

from installer import compose, engine
from installer.options import ENV_FILE, Options, parse, read_env


def options(data_dir: Path, *flags: str) -> Options:
    return parse(["--docker", "--data-dir", str(data_dir), *flags], {}, "python3")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves its socket open where nobody answers
def test_without_an_engine_it_stops_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    [found] = engine.look_around(options(tmp_path / "data"))
    assert (found.check, found.level) == ("engine", "stop")
    assert "docker.io" in found.do
    assert not (tmp_path / "data").exists()
    gc.collect()


def test_a_phase_goes_with_docker_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--phase", "2"], {}, "python3")
    assert ended.value.code == 2
    assert "piggybank phase apply" in capsys.readouterr().err
    assert options(tmp_path, "--phase", "2").phase == 2


class NoNetworks:
    """What the engine answers where it has no network yet."""

    class networks:  # noqa: N801 - the SDK's name
        @staticmethod
        def list() -> list[Any]:
            return []


def test_secrets_are_made_once_and_what_people_wrote_stays(tmp_path: Path) -> None:
    client: Any = NoNetworks()
    compose._write_env(client, options(tmp_path, "--port", "18123"), "piggybank:1", 0)
    path = tmp_path / ENV_FILE
    first = read_env(path)
    assert path.stat().st_mode & 0o077 == 0
    assert len({first[name] for name in compose.SECRETS}) == len(compose.SECRETS)
    assert all(len(first[name]) == 2 * compose.SECRET_BYTES for name in compose.SECRETS)
    assert first["PUBLIC_URL"] == "http://127.0.0.1:18123"
    assert first["DOOR_SUBNET"] != first["EDGE_SUBNET"]
    path.write_text(path.read_text(encoding="utf-8") + "WEB=3\n", encoding="utf-8")
    compose._write_env(client, options(tmp_path, "--port", "18124", "--trusted-proxies", "127.0.0.1"), "piggybank:2", 2)
    again = read_env(path)
    changed = {name for name in again if again[name] != first.get(name)}
    assert changed == {"PORT", "PUBLIC_URL", "PIGGYBANK_IMAGE", "PIGGYBANK_PHASE", "WEB", "TRUSTED_PROXIES", "DOOR_TRUSTS", "WEB_TRUSTS"}
    assert again["PUBLIC_URL"] == "http://127.0.0.1:18124"
    assert again["DOOR_TRUSTS"].split()[0] == "127.0.0.1"
    assert again["WEB"] == "3"


def test_secrets_are_added_for_what_an_older_version_did_not_have(tmp_path: Path) -> None:
    (tmp_path / ENV_FILE).write_text("OWNER_PASSWORD=kept\nDOOR_SUBNET=10.70.1.0/24\nEDGE_SUBNET=10.70.2.0/24\n", encoding="utf-8")
    client: Any = NoNetworks()
    compose._write_env(client, options(tmp_path), "piggybank:1", 0)
    made = read_env(tmp_path / ENV_FILE)
    assert made["OWNER_PASSWORD"] == "kept"
    assert all(made[name] for name in compose.SECRETS)


def test_the_folders_commands_are_whole(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    (tmp_path / ENV_FILE).write_text("COMPOSE_PROJECT_NAME=piggybank-x\n", encoding="utf-8")
    compose._write_commands(chosen)
    for name in ("compose", "piggybank"):
        text = chosen.cli.with_name(name).read_text(encoding="utf-8")
        assert str(tmp_path) in text
        assert "{" not in text.replace("${", "").replace("|| {", "")
