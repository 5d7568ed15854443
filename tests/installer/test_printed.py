"""What people copy runs with old tools: curl before 7.82 has no --json, and jq is not on every machine."""

import re
from pathlib import Path

import pytest

from installer.__main__ import GOODBYE

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [README, GOODBYE], ids=["readme", "installer"])
def test_curls_need_no_new_curl_and_no_jq(text: str) -> None:
    curls = re.findall(r"curl (?:[^\n]|(?<=\\)\n)*", text)
    assert curls
    assert [curl for curl in curls if "--json" in curl] == []
    assert len([curl for curl in curls if "-H 'Content-Type: application/json' -d" in curl]) >= 1
    assert "jq" not in text
