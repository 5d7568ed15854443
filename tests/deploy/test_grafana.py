"""The dashboards are what Grafana's own types allow."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from piggybank.capacity import dashboards
from tests.conftest import ROOT
from tests.deploy import npm
from tests.deploy.conftest import fetched, typescript

SCHEMA = ("13.2.3", "sha512-rk8FEO7yuFfRTK/JD39747SZFQ+iCTQbpm6Mh2OjnqGx/g/uQQFx56t64eCLXWEyoR68ru4cigcGKrXk+ozrLg==")
TYPES = Path(__file__).with_name("grafana.ts")
OPTIONS = {"strict": True, "noEmit": True, "skipLibCheck": True, "target": "es2022", "module": "esnext", "moduleResolution": "bundler"}


@pytest.fixture
def folder(tmp_path: Path, npm_cache: Path) -> Path:
    """Where each dashboard is a typed constant."""
    schema = fetched(npm_cache, "@grafana/schema", *SCHEMA)
    paths = {"@grafana/schema": [f"{schema}/dist/types/index.d.ts"], "@grafana/schema/*": [f"{schema}/*"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS | {"types": [], "paths": paths}, "include": ["*.ts"]}))
    shutil.copy(TYPES, tmp_path)
    for path in sorted((ROOT / dashboards.FOLDER).glob("*.json")):
        written = f'import type {{ File }} from "./grafana";\nexport const board: File = {path.read_text(encoding="utf-8")};\n'
        (tmp_path / f"{path.stem}.ts").write_text(written, encoding="utf-8")
    return tmp_path


def complaints(folder: Path, compiler: Path) -> str:
    words = [str(npm.NODE), str(compiler), "-p", str(folder)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=npm.TIMEOUT_S).stdout


def test_each_dashboard_is_of_grafanas_types(folder: Path, npm_cache: Path) -> None:
    compiler = typescript(npm_cache)
    assert complaints(folder, compiler) == ""
    seeded = {
        "piggybank-overview": ('"type": "stat"', '"type": "stats"'),
        "piggybank-api": ('"showLegend": true', '"showLegends": true'),
        "piggybank-ledger": ('"mode": "absolute"', '"mode": "absolutely"'),
    }
    for name, (before, after) in seeded.items():
        file = folder / f"{name}.ts"
        text = file.read_text(encoding="utf-8")
        assert before in text, name
        file.write_text(text.replace(before, after, 1), encoding="utf-8")
    said = complaints(folder, compiler)
    assert all(f"{name}.ts(" in said for name in seeded), said
