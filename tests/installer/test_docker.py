"""`install.sh --docker` before there is an engine: flags, and what it says. With one: `make test-images`."""

import gc
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from installer import compose, engine, look
from installer.__main__ import _goodbye
from installer.options import ENV_FILE, Options, parse, read_env
from installer.program import CHECKOUT, Failed


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
        assert re.findall(r"\{\{|\}\}|(?<!\$)\{\w+\}", text) == []
        subprocess.run(["sh", "-n", chosen.cli.with_name(name)], check=True)


def installed(place: Path) -> Path:
    """What an installation leaves in its folder; the engine is away, so `bin/compose` does nothing."""
    client: Any = NoNetworks()
    chosen = options(place)
    with compose._alone(chosen):
        compose._copy_files(chosen)
        compose._write_env(client, chosen, "piggybank:1", 0)
        compose._write_commands(chosen)
    chosen.cli.with_name("compose").unlink()
    chosen.cli.with_name("compose").symlink_to("/bin/true")
    (place / "settings.env").write_text("PIGGYBANK_REVIO_KEY=secret\n", encoding="utf-8")
    return place


def ask(place: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([place / "bin" / "piggybank", *words], input=typed, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["stores/secrets.toml", "piggybank.toml", "current", "versions/0.1.0/finished"])
def test_an_installation_without_containers_is_not_taken_over(tmp_path: Path, name: str) -> None:
    for each in (name, ".install.lock"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()
    found = engine.whose(options(tmp_path))
    assert found.level == "stop"
    assert "without containers" in found.found
    assert "--data-dir" in found.do


def test_an_env_file_of_something_else_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / ENV_FILE).write_text("COMPOSE_PROJECT_NAME=shop\nPOSTGRES_PASSWORD=x\n", encoding="utf-8")
    assert engine.whose(options(tmp_path)).level == "stop"
    (tmp_path / ".install.lock").touch()
    assert engine.whose(options(tmp_path)).level == "stop"


def test_our_own_folder_goes_on_also_where_the_first_try_was_cut_short(tmp_path: Path) -> None:
    assert engine.whose(options(tmp_path / "new")).level == "ok"
    place = installed(tmp_path / "bank")
    assert "installed here before" in engine.whose(options(place)).found
    env = (place / ENV_FILE).read_text(encoding="utf-8")
    (place / ENV_FILE).write_text("".join(env.splitlines(keepends=True)[1:]), encoding="utf-8")
    assert engine.whose(options(place)).level == "ok", "without the heading it has the secrets"
    (place / ENV_FILE).unlink()
    assert engine.whose(options(place)).level == "ok", "copied files, no secrets yet"
    (place / "photos").mkdir()
    assert engine.whose(options(place)).level == "stop"


def test_a_purge_wants_the_name_and_takes_what_is_ours(tmp_path: Path) -> None:
    place = installed(tmp_path / "bank")
    (place / "my-backups").mkdir()
    (place / "my-backups" / "one.dump").touch()
    (place / "notes.txt").touch()
    before = sorted(place.rglob("*"))
    for words in (("--yes-delete-everything",), ("--purge", "--yes-delete-everything"), ("--yes-really", "piggybank-bank")):
        assert ask(place, "uninstall", *words).returncode == 2
    assert ask(place, "uninstall", "--purge", typed="yes\n").returncode == 1
    assert ask(place, "uninstall", "--purge", "--yes-really", "another").returncode == 1
    assert sorted(place.rglob("*")) == before
    done = ask(place, "uninstall", "--purge", "--yes-really", "piggybank-bank")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in place.rglob("*")) == ["my-backups", "notes.txt", "one.dump"]
    assert "my-backups" in done.stdout
    assert "notes.txt" in done.stdout


def test_a_purge_leaves_nothing_where_nothing_else_is(tmp_path: Path) -> None:
    place = installed(tmp_path / "bank")
    done = ask(place, "uninstall", "--purge", typed="piggybank-bank\n")
    assert (done.returncode, place.exists()) == (0, False), done.stderr


def test_a_purge_stops_where_env_names_other_volumes_or_backups_lie_among_our_files(tmp_path: Path) -> None:
    place = installed(tmp_path / "bank")
    env = (place / ENV_FILE).read_text(encoding="utf-8")
    (place / ENV_FILE).write_text(env.replace("PROJECT_NAME=piggybank-bank", "PROJECT_NAME=shop"), encoding="utf-8")
    purge = ("uninstall", "--purge", "--yes-really", "piggybank-bank")
    assert "nothing was changed" in ask(place, *purge).stderr
    (place / ENV_FILE).write_text(f"{env}BACKUP_FOLDER=./deploy/backups\n", encoding="utf-8")
    assert "move them elsewhere first" in ask(place, *purge).stderr
    assert (place / ENV_FILE).exists()


def test_without_docker_a_folder_of_containers_is_not_taken_over(tmp_path: Path) -> None:
    place = installed(tmp_path / "bank")
    found = look._installation(parse(["--data-dir", str(place)], {}, "python3"))
    assert (found.level, "--docker" in found.do) == ("stop", True)


class NoContainers(NoNetworks):
    class containers:  # noqa: N801 - the SDK's name
        @staticmethod
        def list(**_: Any) -> list[Any]:
            return []

    class volumes:  # noqa: N801 - the SDK's name
        @staticmethod
        def list(**_: Any) -> list[Any]:
            return []


def test_the_disk_of_the_database_is_measured(tmp_path: Path) -> None:
    info: dict[str, Any] = {
        "ServerVersion": "28.1.0",
        "OSType": "linux",
        "SystemTime": datetime.now(UTC).isoformat(),
        "MemTotal": 8 * 1024**3,
        "NCPU": 2,
        "DockerRootDir": str(tmp_path),
    }
    chosen = options(tmp_path / "data")
    found = {finding.check: finding for finding in engine.findings(cast("Any", NoContainers()), info, chosen)}
    assert " ms" in found["fsync"].found
    assert not list(tmp_path.iterdir())
    assert engine._volumes(info, chosen) == tmp_path
    assert engine._volumes(info | {"DockerRootDir": "/not/on/this/machine"}, chosen) == tmp_path, "the nearest of its own folder"


def bytes_of(place: Path) -> dict[Path, tuple[bytes, int, int]]:
    return {path: (path.read_bytes(), path.stat().st_mode, path.stat().st_ino) for path in place.rglob("*") if path.is_file()}


def test_an_upgrade_that_fails_leaves_the_files_of_what_ran_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `docker` is found here, so starting fails as it does with an image that does not come up."""
    place = installed(tmp_path / "bank")
    chosen, client = options(place, "--phase", "2", "--port", "18200"), NoContainers()
    env, script, newer = place / ENV_FILE, place / "deploy/compose/postgres.sh", place / "deploy/compose/valkey.sh"
    env.write_text(env.read_text(encoding="utf-8").replace("GRAFANA_PASSWORD", "#"), encoding="utf-8")
    script.write_text("# of the version before\n", encoding="utf-8")
    newer.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    before = bytes_of(place)
    with pytest.raises(Failed) as failed:
        compose._start(cast("Any", client), chosen, "piggybank:2", 2)
    assert "bin/compose config --services ended with" in str(failed.value)
    assert "put back as they were (piggybank:1, phase 0)" in str(failed.value)
    after = bytes_of(place)
    made = read_env(env)["GRAFANA_PASSWORD"]
    assert len(made) == 2 * compose.SECRET_BYTES, "a secret that was made stays: a store may have begun with it"
    assert (before.pop(env)[0].decode() + f"\nGRAFANA_PASSWORD={made}\n").encode() == after.pop(env)[0]
    cli = (place / "bin" / "compose", place / "bin" / "piggybank")
    assert {path: kept for path, kept in before.items() if path not in cli} == {
        path: kept for path, kept in after.items() if path not in cli
    }


def test_a_first_installation_that_fails_keeps_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failed):
        compose._start(cast("Any", NoContainers()), options(tmp_path), "piggybank:1", 0)
    assert all(read_env(tmp_path / ENV_FILE)[name] for name in compose.SECRETS)


def test_an_upgrade_that_is_ended_puts_its_files_back_too(tmp_path: Path) -> None:
    kept, made = tmp_path / "kept", tmp_path / "made"
    kept.write_text("before", encoding="utf-8")
    script = f"""
import os, signal
from pathlib import Path
from installer import putting_back
with putting_back.unless_done([Path({str(kept)!r}), Path({str(made)!r})], "put back"):
    for name in ({str(kept)!r}, {str(made)!r}):
        Path(name).write_text("after")
    os.kill(os.getpid(), signal.SIGHUP)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert (done.returncode, done.stderr.strip()) == (129, "put back")
    assert (kept.read_text(encoding="utf-8"), made.exists()) == ("before", False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "loses everything"),
        ("BACKUP_FOLDER=backups", "loses everything"),
        ("BACKUP_FOLDER=/mnt/other", "at most one day"),
        ("BACKUP_TARGET=s3://bucket", "at most one day"),
    ],
)
def test_the_ending_says_what_can_be_lost(tmp_path: Path, line: str, said: str) -> None:
    place = installed(tmp_path / "bank")
    with (place / ENV_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    made = {"url": "http://127.0.0.1:8080", "cli": "c", "operator_link": "l", "recovery_key": None, "provider_mode": "simulator"}
    ending = _goodbye(options(place), made)
    assert said in ending
    assert "no log" in ending
    assert "no log" not in _goodbye(parse(["--data-dir", str(place)], {}, "python3"), made)
