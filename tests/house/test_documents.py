"""README and CHANGELOG say what is so."""

import re
import subprocess
from pathlib import Path

import pytest

import piggybank
from piggybank import settings
from piggybank.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    rows = [
        f"| `{name}` | {allowed.replace('|', chr(92) + '|')} | {default} | {about} |"
        for name, allowed, default, about in settings.described()
    ]
    return "\n".join(["| variable | allowed | default | what it is |", "|---|---|---|---|", *rows])


def test_settings_table_is_the_one_of_the_code() -> None:
    assert settings_table() in README, f"put this into README.md:\n{settings_table()}"


def test_changelog_knows_this_version() -> None:
    assert f"## {piggybank.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_names_the_two_commands() -> None:
    assert "./installer/install.sh" in README
    assert "make test" in README
    continuous = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "./installer/install.sh" in continuous
    assert "make test" in continuous


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_commands_of_the_readme_are_those_of_the_program() -> None:
    assert set(re.findall(r"^\| `piggybank ([a-z-]+)", README, re.MULTILINE)) == set(COMMANDS)


def test_no_file_names_the_machine_it_was_made_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode != 0:
        return  # not a checkout: an unpacked archive holds no more than was in the repository
    named = re.compile(rf"(?<![A-Za-z0-9_.-])/({'|'.join(('wo' + 'rk', 'fa' + 'rm'))})/[a-z.]")
    texts = (ROOT / name for name in listed.stdout.split("\0") if name)
    assert [str(path) for path in texts if path.is_file() and named.search(path.read_text(encoding="utf-8", errors="replace"))] == []
