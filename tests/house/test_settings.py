"""Settings: where they come from, and that a wrong one stops the start with its name, its value and what is allowed."""

from pathlib import Path

import pytest

from piggybank import errors, settings

STORES = {
    "PIGGYBANK_DATABASE_URL": "postgresql://app:secret@db/piggybank",
    "PIGGYBANK_OWNER_DATABASE_URL": "postgresql://owner:secret@db:5432/piggybank",
    "PIGGYBANK_CACHE_URL": "redis://:secret@cache:6379/0",
    "PIGGYBANK_QUEUE_URL": "valkey://queue:6380",
}


def test_the_environment_wins_over_the_file_and_the_file_over_the_stores(tmp_path: Path) -> None:
    (tmp_path / "stores.toml").write_text('cache_url = "redis://generated:1"\nqueue_url = "redis://generated:2"\n')
    (tmp_path / "piggybank.toml").write_text('port = 9000\nsign_up = "open"\nqueue_url = "redis://mine:2"\n')
    loaded = settings.load(tmp_path, {"PIGGYBANK_PORT": "9001", "PIGGYBANK_TRUSTED_PROXIES": "10.0.0.0/8, ::1", "HOME": "/"})
    assert (loaded.port, loaded.sign_up, loaded.cache_url, loaded.queue_url) == (9001, "open", "redis://generated:1", "redis://mine:2")
    assert loaded.trusted_proxies == ["10.0.0.0/8", "::1"]
    assert loaded.data_dir == tmp_path


@pytest.mark.parametrize(
    ("environment", "setting", "value", "allowed"),
    [
        ({"PIGGYBANK_PROT": "1"}, "PIGGYBANK_PROT", "1", "PIGGYBANK_PORT"),
        ({"PIGGYBANK_port": "1"}, "PIGGYBANK_port", "1", "PIGGYBANK_PORT"),
        ({"PIGGYBANK_PORT": "0"}, "PIGGYBANK_PORT", "0", "1 to 65535"),
        ({"PIGGYBANK_PORT": "80.5"}, "PIGGYBANK_PORT", "80.5", "1 to 65535"),
        ({"PIGGYBANK_SIGN_UP": "maybe"}, "PIGGYBANK_SIGN_UP", "maybe", "closed | invite | open"),
        ({"PIGGYBANK_INSECURE": "perhaps"}, "PIGGYBANK_INSECURE", "perhaps", "true or false"),
        ({"PIGGYBANK_RATE_USER_PER_MINUTE": "-1"}, "PIGGYBANK_RATE_USER_PER_MINUTE", "-1", "0 or more"),
        ({"PIGGYBANK_LISTEN": "0.0.0.0"}, "PIGGYBANK_LISTEN", "0.0.0.0", "insecure"),
        ({"PIGGYBANK_TLS_CERT": "/nowhere.pem"}, "PIGGYBANK_TLS_CERT", "/nowhere.pem", "both"),
        ({"PIGGYBANK_PUBLIC_URL": "bank.example"}, "PIGGYBANK_PUBLIC_URL", "bank.example", "https://"),
        ({"PIGGYBANK_REVIO_SECRET_KEY": "hunter2"}, "PIGGYBANK_REVIO_SECRET_KEY", "(hidden)", "PIGGYBANK_REVIO_KEY"),
        ({"PIGGYBANK_EFT_DEBTOR": "hunter2"}, "PIGGYBANK_EFT_DEBTOR", "(hidden)", "a JSON object"),
        ({"PIGGYBANK_REVIO_PAYOUTS": "cash"}, "PIGGYBANK_REVIO_PAYOUTS", "cash", "eft | orchestration"),
        ({"PIGGYBANK_SIMULATOR_TIME_SCALE": "0"}, "PIGGYBANK_SIMULATOR_TIME_SCALE", "0", "number above 0"),
        ({"PIGGYBANK_CACHE_URL": "redis://u:hunter2@cache"}, "PIGGYBANK_CACHE_URL", "redis://(hidden)@cache", "redis://host:port"),
        (
            {"PIGGYBANK_DATABASE_URL": "postgresql://u:hunter2@a:1,b:x/p"},
            "PIGGYBANK_DATABASE_URL",
            "postgresql://(hidden)@a:1,b:x/p",
            "postgresql://",
        ),
        ({"PIGGYBANK_DATABASE_URL": "mysql://u:hunter2@db"}, "PIGGYBANK_DATABASE_URL", "mysql://(hidden)@db", "postgresql://"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, environment: dict[str, str], setting: str, value: str, allowed: str) -> None:
    with pytest.raises(errors.BadSetting) as caught:
        settings.load(tmp_path, environment)
    said = caught.value.details
    assert (said["setting"], str(said["value"])) == (setting, value)
    assert allowed in said["allowed"]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["prot = 1", "data_dir = '/elsewhere'", "port = [", "[section]\nport = 1", "port = '80x'"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "piggybank.toml").write_text(text)
    with pytest.raises(errors.BadSetting):
        settings.load(tmp_path, {})


def test_a_database_may_be_at_one_of_several_addresses(tmp_path: Path) -> None:
    url = "postgresql://app:secret@a:5432,b:5433/piggybank?target_session_attrs=read-write"
    assert settings.load(tmp_path, {"PIGGYBANK_DATABASE_URL": url}).database_url == url


def test_addresses_of_external_stores_are_given_together(tmp_path: Path) -> None:
    assert settings.embedded_stores(tmp_path, {}) == ("postgres", "cache", "queue")
    assert settings.embedded_stores(tmp_path, STORES) == ()
    (tmp_path / settings.STORES_FILE).touch()
    for left_out in STORES:
        with pytest.raises(errors.BadSetting, match=left_out.removeprefix("PIGGYBANK_").lower()):
            settings.embedded_stores(tmp_path, {name: url for name, url in STORES.items() if name != left_out})


def test_only_the_owners_address_may_be_missing_where_no_stores_are(tmp_path: Path) -> None:
    for left_out in STORES:
        given = {name: url for name, url in STORES.items() if name != left_out}
        if left_out == "PIGGYBANK_OWNER_DATABASE_URL":
            assert settings.embedded_stores(tmp_path, given) == ()
            continue
        with pytest.raises(errors.BadSetting, match=left_out.removeprefix("PIGGYBANK_").lower()):
            settings.embedded_stores(tmp_path, given)


def test_the_valkeys_stay_where_only_the_database_is_elsewhere(tmp_path: Path) -> None:
    database = {name: url for name, url in STORES.items() if "DATABASE" in name}
    assert settings.embedded_stores(tmp_path, database) == ("cache", "queue")


def test_addresses_go_into_the_operators_file_and_leave_the_rest_of_it(tmp_path: Path) -> None:
    file = tmp_path / "piggybank.toml"
    file.write_text('# ours\nport = 9000 # the old one\n database_url = "postgresql://old:x@db/piggybank"\n')
    wanted = {"database_url": 'postgresql://app:"\\@db/new', "owner_database_url": "postgresql://owner:x@db/new"}
    file.write_text(settings.with_values(file.read_text(), wanted))
    assert "# ours\nport = 9000 # the old one\n" in file.read_text()
    loaded = settings.load(tmp_path, {})
    assert {name: getattr(loaded, name) for name in wanted} == wanted
    assert loaded.port == 9000
    assert settings.in_environment(*wanted, environment=STORES) == ["PIGGYBANK_DATABASE_URL", "PIGGYBANK_OWNER_DATABASE_URL"]


def test_a_test_runs_own_variable_is_no_setting(tmp_path: Path) -> None:
    assert settings.load(tmp_path, {"PIGGYBANK_REQUIRE": "all"}).port == 8080
