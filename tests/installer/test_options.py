"""The installer runs before anything is installed, so it repeats a few facts of the program: they must be the same."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from installer import look, units
from installer.act import _write_settings, url
from installer.options import DEFAULT_LISTEN, DEFAULT_PORT, PROVIDER_MODES, SETTING_FLAGS, SETTINGS_FILE, Options, default_data_dir, parse
from piggybank import settings
from piggybank.appliance import data_folder, reboot, system_user
from piggybank.settings import Settings


def options(data_dir: Path, *flags: str, **environment: str) -> Options:
    return parse(["--data-dir", str(data_dir), *flags], environment, "python3")


def test_defaults_and_names_are_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    assert set(SETTING_FLAGS) <= fields.keys()
    assert (fields["listen"], fields["port"]) == (DEFAULT_LISTEN, DEFAULT_PORT)
    assert settings.OPERATOR_FILE == SETTINGS_FILE
    assert default_data_dir() == settings.default_data_dir()
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert default_data_dir() == settings.default_data_dir()


@pytest.mark.parametrize("folder", ["default", "a b/Second Bank", "100%"])
def test_the_unit_and_the_crontab_line_are_found_again(tmp_path: Path, folder: str) -> None:
    data_dir = default_data_dir() if folder == "default" else tmp_path / folder
    chosen = options(data_dir)
    assert units.path(chosen) == reboot.unit_path(data_dir)
    assert units.crontab_line(chosen) == reboot.crontab_line(data_dir)


def test_a_folder_is_ours_by_the_same_marks() -> None:
    assert look.MARKS == data_folder.MARKS


def test_the_units_user_is_the_programs() -> None:
    assert units.SYSTEM_USER == system_user.NAME


@pytest.mark.parametrize(
    "flags",
    [(), ("--port", "9000"), ("--listen", "::1"), ("--listen", "0.0.0.0", "--insecure"), ("--public-url", "https://money.example.com/")],
)
def test_url_is_the_one_that_the_program_says(tmp_path: Path, flags: tuple[str, ...]) -> None:
    chosen = options(tmp_path, *flags)
    assert url(chosen) == settings.load(tmp_path, {f"PIGGYBANK_{name.upper()}": str(value) for name, value in chosen.chosen.items()}).url


def test_the_provider_mode_is_one_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_args(settings.ProviderMode) == PROVIDER_MODES
    assert options(tmp_path, "--provider-mode", "live").chosen == {"provider_mode": "live"}
    assert options(tmp_path, PIGGYBANK_PROVIDER_MODE="simulator").chosen == {"provider_mode": "simulator"}
    with pytest.raises(SystemExit) as stopped:
        options(tmp_path, "--provider-mode", "play")
    assert stopped.value.code == 2
    assert "--provider-mode play: give one of simulator, live" in capsys.readouterr().err


def test_an_existing_database_keeps_its_own_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen goes into the file of a new one only; of an old one the program is asked, which may refuse."""
    monkeypatch.setattr("os.geteuid", lambda: 1_000)  # root would give it to the system user, whom this machine may not know yet
    assert _write_settings(options(tmp_path, "--provider-mode", "live"))
    assert 'provider_mode = "live"' in (tmp_path / SETTINGS_FILE).read_text()
    (tmp_path / "stores" / "postgres").mkdir(parents=True)
    assert not _write_settings(options(tmp_path, "--provider-mode", "simulator"))
    assert 'provider_mode = "live"' in (tmp_path / SETTINGS_FILE).read_text()


def test_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    assert options(tmp_path).port == DEFAULT_PORT
    (tmp_path / SETTINGS_FILE).write_text("port = 9001\n")
    assert options(tmp_path).port == 9001
    assert options(tmp_path, PIGGYBANK_PORT="9002").port == 9002
    assert options(tmp_path, "--port", "9003", PIGGYBANK_PORT="9002").port == 9003
    assert options(tmp_path).chosen == {}
