"""The installer runs before anything is installed, so it repeats a few facts of the program: they must be the same."""

from pathlib import Path

import msgspec
import pytest

from installer import look, units
from installer.act import _url
from installer.options import DEFAULT_LISTEN, DEFAULT_PORT, SETTING_FLAGS, SETTINGS_FILE, Options, default_data_dir, parse
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
    assert _url(chosen) == settings.load(tmp_path, {f"PIGGYBANK_{name.upper()}": str(value) for name, value in chosen.chosen.items()}).url


def test_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    assert options(tmp_path).port == DEFAULT_PORT
    (tmp_path / SETTINGS_FILE).write_text("port = 9001\n")
    assert options(tmp_path).port == 9001
    assert options(tmp_path, PIGGYBANK_PORT="9002").port == 9002
    assert options(tmp_path, "--port", "9003", PIGGYBANK_PORT="9002").port == 9003
    assert options(tmp_path).chosen == {}
