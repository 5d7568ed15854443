"""A small disk of one's own, to be filled: a tmpfs, which only root may mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import require

MIB = 1024 * 1024
FILLER = "filler"


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """Mounted at `folder` for the block; NOT RUN where that may not be done."""
    require("mount (as root)", os.geteuid() == 0)
    folder.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "tmpfs", str(folder)], capture_output=True, check=False
    )
    require("mount of a tmpfs", mounted.returncode == 0)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def free_mib(disk: Path) -> int:
    """Room that is left."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize // MIB


def fill(disk: Path, left_mib: int) -> None:
    """Leave no more than that."""
    with (disk / FILLER).open("ab") as file:
        size = (free_mib(disk) - left_mib) * MIB
        if size > 0:
            os.posix_fallocate(file.fileno(), file.tell(), size)


def make_room(disk: Path) -> None:
    """As an operator would."""
    (disk / FILLER).unlink()
