"""How the command says what is wrong."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from piggybank.cli import main

UNKNOWN = "piggybank: no database is known in {place}; start one: piggybank up\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("migrate",), "piggybank: no owner_database_url is known for {place}; start it: piggybank up; or set it\n"),
        (("users", "list"), UNKNOWN),
        (("apikeys", "list"), UNKNOWN),
        (("uninstall",), "piggybank: there is no installation in {place}; name its folder: --data-dir\n"),
    ],
)
def test_what_and_what_to_do_are_a_sentence(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    place = tmp_path / "nothing"
    said = CliRunner().invoke(main, [*words, "--data-dir", str(place)])
    assert (said.exit_code, said.stderr) == (1, says.format(place=place))
