"""What `deploy/railway` is made from, and its file as Railway's own command evaluates it.

`python -m tests.deploy.railway_files` writes `.railway/phases.ts` anew, after phases.toml or the settings changed.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from piggybank import worker
from piggybank.capacity import phases, railway
from piggybank.cli import serving
from piggybank.settings import PREFIX, Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "railway"
MADE = FOLDER / ".railway" / "phases.ts"
IMAGE = "you/piggybank:0.1.0"
TIMEOUT_S = 60
DRAIN_MARGIN_S = 10  # between the end of our own draining and Railway's SIGKILL

# What `railway config plan` of the Railway CLI (5.42) runs, but for the print: it calls the program with an empty context.
_EVALUATE = """
import { pathToFileURL } from "node:url";
import { validateGraph } from "railway/iac";
const mod = await import(pathToFileURL(process.argv[1]).href);
const project = await mod.default({});
const edges = [];
for (const resource of project.resources) {
  for (const attached of Object.values(resource.volumeAttachments ?? {})) edges.push({ from: resource.address, to: attached.volume });
  if (resource.groupId) edges.push({ from: resource.address, to: `group.${resource.groupId}` });
}
const wrong = validateGraph({ version: 1, project: { name: project.name }, environments: [], resources: project.resources, edges });
process.stdout.write(JSON.stringify({ partial: mod.partial, project, wrong }));
"""


def setting_names() -> list[str]:
    return [PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)]


def made() -> str:
    """The text of `phases.ts`."""
    rows = []
    for number in phases.BUILT_PHASES:
        there = railway.runs(phases.of(number))
        values = f"web: {there.web}, worker: {there.worker}, poolConnections: {there.pool}, cacheMiB: {there.cache_memory_mib}"
        rows.append(f"  {{ number: {number}, {values} }},")
    draining = f"{{ web: {serving.DRAIN_S + DRAIN_MARGIN_S}, worker: {worker.DRAIN_S + DRAIN_MARGIN_S} }}"
    return "\n".join(
        [
            "// Made by `python -m tests.deploy.railway_files` from phases.toml and the settings; a test compares. Do not edit.",
            "export const PHASES = [",
            *rows,
            "];",
            f"export const DRAINING_SECONDS = {draining}; // more than the processes take themselves",
            "export const SETTINGS = [",
            *(f'  "{name}",' for name in setting_names()),
            "];",
            "",
        ]
    )


def evaluated(folder: Path, node: Path, **environment: str) -> dict[str, Any]:
    """The project that the file in `folder` describes."""
    return dict(json.loads(_run(folder, node, environment).stdout))


def complaint(folder: Path, node: Path, **environment: str) -> str:
    """What it says where it refuses."""
    done = _run(folder, node, environment)
    assert done.returncode != 0
    return done.stderr


def _run(folder: Path, node: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "RAILWAY_", "NODE_"))}
    words = ["--experimental-strip-types", "--disable-warning=ExperimentalWarning", "--input-type=module", "-e", _EVALUATE, "--"]
    return subprocess.run(
        [node, *words, str(folder / ".railway" / "railway.ts")],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def copy_with(folder: Path, *packages: tuple[str, Path]) -> Path:
    """`deploy/railway` in a folder of its own, with npm packages beside it."""
    shutil.copytree(FOLDER, folder)
    for name, package in packages:
        place = folder / "node_modules" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(package)
    return folder


if __name__ == "__main__":
    MADE.write_text(made(), encoding="utf-8")
