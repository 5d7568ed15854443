"""The first half with --docker: what the engine is and has, without changing it.

Of what is looked at without containers Python's parts, the C library and the kernel are left out: images bring their own, and each web
container has one process, so nothing is handed over by the kernel.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException

from installer import look
from installer.compose import ENTRIES, HEADING, PHASE_KEY, PRIMARY, SECRETS, phase_of, phase_values
from installer.containers import PORTS, not_free, project
from installer.look import Finding
from installer.options import ENV_FILE, SETTINGS_FILE, Options, read_env

ENGINE_FLOOR = (20, 10)
COMPOSE_FLOOR = (2, 24)  # `required: false`
MEMORY_FLOOR_MIB = 1_536
PROCESS_MIB = 160
POSTGRES_MIB = 1_024
CPUS_ADVISED = 2
CLOCK_TOLERANCE_S = 2.0
DISK_FLOOR_MIB = 4 * 1_024  # the image, those of the stores, and a database that begins
DISK_ADVISED_MIB = 20 * 1_024
MIB = 1024 * 1024
COMMAND_TIMEOUT_S = 30
LOCK = ".install.lock"
NATIVE = ("stores", "current", "versions", SETTINGS_FILE, "stores.toml", ".piggybank")  # what containers never put into the folder
WATCHING = ("PROMETHEUS_PORT", "GRAFANA_PORT")  # nobody listens there with WATCH=none


def look_around(options: Options) -> list[Finding]:
    """Everything worth knowing before anything is changed."""
    try:
        client = docker.from_env(timeout=COMMAND_TIMEOUT_S)
        info: dict[str, Any] = client.info()
    except (DockerException, OSError) as cause:
        do = "install and start a Docker engine (Debian: apt-get install docker.io), and be root or in the group docker"
        return [Finding("engine", "stop", f"no Docker engine answers: {str(cause)[:200]}", do)]
    with closing(client):
        return findings(client, info, options)


def findings(client: docker.DockerClient, info: dict[str, Any], options: Options) -> list[Finding]:
    """Of an engine that answers."""
    return [
        _engine(info),
        _compose(),
        _clock(info),
        _memory(info, options),
        _cpus(info),
        look.folder(options),
        _disk(info, options),
        look.fsync(_volumes(info, options)),
        _existing(client, options),
        *_ports(client, options),
        look.reach(options),
        *look.environment(options),
    ]


def _engine(info: dict[str, Any]) -> Finding:
    version = str(info["ServerVersion"])
    if _numbers(version) < ENGINE_FLOOR:
        return Finding("engine", "stop", f"Docker {version}", "20.10 or newer is needed")
    if info.get("OSType") != "linux":
        return Finding("engine", "stop", f"Docker {version} runs {info.get('OSType')} containers", "switch it to Linux containers")
    return Finding("engine", "ok", f"Docker {version}, {info.get('Architecture')}, {info.get('OperatingSystem')}")


def _compose() -> Finding:
    do = "install the compose plugin (packages docker-compose-plugin or docker-compose-v2; Debian 14: docker-compose)"
    try:
        said = subprocess.run(
            ["docker", "compose", "version", "--short"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Finding("compose", "stop", "`docker compose` does not run", do)
    version = said.stdout.strip()
    if _numbers(version) < COMPOSE_FLOOR:
        return Finding("compose", "stop", version, f"{'.'.join(map(str, COMPOSE_FLOOR))} or newer is needed: {do}")
    return Finding("compose", "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _clock(info: dict[str, Any]) -> Finding:
    here = look.clock()
    if here.level == "stop":
        return here
    said = re.sub(r"(\.\d{6})\d+", r"\1", str(info["SystemTime"])).replace("Z", "+00:00")
    off = abs(datetime.fromisoformat(said).timestamp() - time.time())
    if off > CLOCK_TOLERANCE_S:
        return Finding("clock", "stop", f"the engine's is {off:.0f} s from this machine's", "synchronise both: ids carry the time")
    return here


def _memory(info: dict[str, Any], options: Options) -> Finding:
    mib = int(info["MemTotal"]) // MIB
    values = phase_values(phase_of(options), options)
    nodes = len(values["CACHE_NODES"].split(","))
    standbys = len(values.get("STANDBYS", "").split())
    advised = (int(values["WEB"]) + int(values["WORKER"])) * PROCESS_MIB + nodes * int(values["CACHE_MIB"]) + (1 + standbys) * POSTGRES_MIB
    found = f"{mib:,} MiB inside the engine"
    if mib < MEMORY_FLOOR_MIB:
        return Finding("memory", "stop", found, f"{MEMORY_FLOOR_MIB:,} MiB is the least")
    if mib < advised:
        do = (
            f"phase {values[PHASE_KEY]} may take {advised:,} MiB: fewer containers (WEB=, WORKER=, CACHE_MIB= in {ENV_FILE}) or more memory"
        )
        return Finding("memory", "warn", found, do)
    return Finding("memory", "ok", found)


def _cpus(info: dict[str, Any]) -> Finding:
    count = int(info["NCPU"])
    return Finding(
        "cpus", "ok" if count >= CPUS_ADVISED else "warn", f"{count} inside the engine", "" if count >= CPUS_ADVISED else "2 are advised"
    )


def _disk(info: dict[str, Any], options: Options) -> Finding:
    """Where the engine keeps its volumes, if that is on this machine."""
    try:
        free = shutil.disk_usage(str(info["DockerRootDir"])).free // MIB
        where = str(info["DockerRootDir"])
    except OSError:
        near = look.nearest_folder(options.data_dir)
        free, where = shutil.disk_usage(near).free // MIB, str(near)
    found = f"{free:,} MiB free in {where}"
    if free < DISK_FLOOR_MIB and not options.cli.exists():
        return Finding("disk", "stop", found, f"{DISK_FLOOR_MIB:,} MiB is the least, {DISK_ADVISED_MIB:,} MiB is advised")
    if free < DISK_ADVISED_MIB:
        return Finding("disk", "warn", found, f"{DISK_ADVISED_MIB:,} MiB is advised")
    return Finding("disk", "ok", found)


def _volumes(info: dict[str, Any], options: Options) -> Path:
    """Where the database will be, if this user may write there; else the nearest that can be measured."""
    root = Path(str(info["DockerRootDir"]))
    return root if os.access(root, os.W_OK | os.X_OK) else look.nearest_folder(options.data_dir)


def _existing(client: docker.DockerClient, options: Options) -> Finding:
    """A database's volume without its secrets must not get new ones: nobody could open it again."""
    found = whose(options)
    if found.level == "stop":
        return found
    kept = read_env(options.data_dir / ENV_FILE)
    missing = [name for name in SECRETS if not kept.get(name)]
    volume = f"{kept.get('COMPOSE_PROJECT_NAME') or project(options)}_{PRIMARY}"
    if missing and any(one.name == volume for one in client.volumes.list(filters={"name": volume})):
        lacks = f"{options.data_dir / ENV_FILE} lacks {', '.join(missing)}" if kept else f"there is no {options.data_dir / ENV_FILE}"
        do = f"put the file back from where you keep it; or, to give up every account: docker volume rm {volume}"
        return Finding("existing", "stop", f"the volume {volume} holds a database, and {lacks}: new secrets would lock it out", do)
    return found


def whose(options: Options) -> Finding:
    """Whether the folder is ours to change: its owner and mode are, and a purge deletes there."""
    place, env = options.data_dir, options.data_dir / ENV_FILE
    names = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
    if native := sorted(names & set(NATIVE)):
        what = f"{place} is an installation without containers ({', '.join(native)})"
        return Finding("existing", "stop", what, "choose another folder: --data-dir, or unset PIGGYBANK_DATA_DIR if that names it")
    if ENV_FILE in names:
        if is_written_by_us(env):
            return Finding("existing", "ok", "installed here before; it is brought up to this version, data and secrets stay")
        do = "choose an empty folder or a new one: --data-dir; if it is ours, put the file back from where you keep it"
        return Finding("existing", "stop", f"{env} is not one that this installer wrote", do)
    begun = LOCK in names and names <= {name.partition("/")[0] for name in ENTRIES}  # and ended before there were secrets
    if names and not begun:
        return Finding("existing", "stop", f"{place} holds other things", "choose an empty folder or a new one: --data-dir")
    return Finding("existing", "ok", "none in this folder")


def is_written_by_us(env: Path) -> bool:
    """By its heading; without it, as where somebody wrote it by hand, by all that a project of ours needs."""
    kept = read_env(env)
    return bool(kept) and (env.read_text(encoding="utf-8").startswith(HEADING) or all(kept.get(name) for name in SECRETS))


def _ports(client: docker.DockerClient, options: Options) -> Iterator[Finding]:
    kept = read_env(options.data_dir / ENV_FILE)
    ours = client.containers.list(filters={"label": f"com.docker.compose.project={kept.get('COMPOSE_PROJECT_NAME') or project(options)}"})
    taken_by_us = {int(one["HostPort"]) for each in ours for maps in each.ports.values() for one in maps or []}
    for name, usual in PORTS.items():
        if name in WATCHING and kept.get("WATCH") == "none":
            continue
        port = options.port if name == "PORT" else int(kept.get(name) or usual)
        listen = options.listen if name in ("PORT", "SIMULATOR_PORT") else "127.0.0.1"
        where = f"{listen}:{port}"
        if port in taken_by_us:
            yield Finding("port", "ok", f"{where}, in use by this installation")
        elif (why := not_free(listen, port)) is None:
            yield Finding("port", "ok", f"{where} is free")
        elif name == "PORT":
            yield Finding("port", "stop", f"{where}: {why}", "give another one with --port")
        else:
            yield Finding(
                "port",
                "ok" if not kept else "stop",
                f"{where}: {why}",
                "another one is taken" if not kept else f"change {name} in {ENV_FILE}",
            )
