"""Whether a folder outlives its container: what is put there is about to be the only copy of a month.

By the mount that it lies on. A container's own root, memory and an `emptyDir` go with the container or its pod; an `emptyDir` is on
the node's disk, as many a volume is that stays, so its device says nothing and its path on the node does.
"""

import re
from pathlib import Path, PurePath

MOUNTS = Path("/proc/self/mountinfo")
_EMPTY_DIR = "kubernetes.io~empty-dir"
_GOES = {"overlay", "tmpfs", "ramfs"}  # kinds of file systems
_ESCAPED = re.compile(r"\\([0-7]{3})")


def lasts(folder: Path, mounts: str | None = None) -> bool:
    """Whether `folder`, in a container, is on a volume that stays. `mounts`: as in MOUNTS, whose text it is."""
    place, best, source, kind = folder.resolve(), PurePath("/"), "", "overlay"
    for line in (MOUNTS.read_text(encoding="utf-8") if mounts is None else mounts).splitlines():
        mounted, _, rest = line.partition(" - ")
        root, point = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), text) for text in mounted.split()[3:5])
        if place.is_relative_to(point) and len(PurePath(point).parts) >= len(best.parts):  # of two on one point the later hides the other
            best, source, kind = PurePath(point), root, rest.split()[0]
    return best != PurePath("/") and kind not in _GOES and _EMPTY_DIR not in source
