"""The second half with --docker: the folder with its secrets, the image, the containers. Every step may be repeated.

The folder is whole by itself: compose.yaml, what it mounts, `.env` with the secrets and the phase, and two commands in `bin`. The
checkout may go. `.env` is written line by line: what stands there stays, but for what a flag asks to change.
"""

import hashlib
import ipaddress
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import docker
from docker.errors import BuildError, DockerException, ImageNotFound

from installer import act, putting_back, rolling
from installer.act import step
from installer.containers import PORTS, not_free, project
from installer.options import ENV_FILE, ENV_NAMES, LOOPBACK, SETTING_FLAGS, SETTINGS_ENV, Options, read_env
from installer.program import CHECKOUT, Failed

SECRETS = (
    "OWNER_PASSWORD",
    "APPLICATION_PASSWORD",
    "REPLICATION_PASSWORD",
    "CACHE_PASSWORD",
    "QUEUE_PASSWORD",
    "SIMULATOR_KEY",
    "GRAFANA_PASSWORD",
)
SECRET_BYTES = 24
PHASE_KEY = "PIGGYBANK_PHASE"
PRIMARY = "postgres-1"
BACKUP = "backup"
OURS_TO_REPLACE = (rolling.WEB, "worker", "door")  # after the stores that they need
COPIED = ("compose.yaml", "deploy/compose", "deploy/prometheus", "deploy/grafana")
TLS_FILE = "tls/door.pem"
HEADING = "# Written by installer/install.sh --docker."
# all that is ours in the folder, and what a purge deletes there: the command itself last
ENTRIES = (
    *(*COPIED, TLS_FILE, SETTINGS_ENV, f"{ENV_FILE}.new", ENV_FILE, ".install.lock"),
    *("bin/compose.new", "bin/compose", "bin/piggybank.new", "bin/piggybank"),
)
UP_TIMEOUT_S = 1_800  # images are pulled, and a standby copies the database
PULL_TIMEOUT_S = 600  # of what only watches, where a registry neither answers nor refuses
READY_TIMEOUT_S = 300
LOG_TAIL_LINES = 15

COMPOSE = """\
#!/bin/sh
# docker compose for this installation, with its phase; written by installer/install.sh --docker.
cd {data_dir} || exit 1
exec docker compose --env-file .env --env-file "deploy/compose/phase-$(sed -n 's/^PIGGYBANK_PHASE=//p' .env).env" "$@"
"""
COMMAND = """\
#!/bin/sh
# The command of the installation in {data_dir}; written by installer/install.sh --docker.
place={data_dir}
compose=$place/bin/compose
case "${{1:-}}" in
  up) exec "$compose" up --detach ;;
  down) exec "$compose" stop ;;
  uninstall)
    shift
    purge= name=
    while [ $# -gt 0 ]; do
      case $1 in
        --purge) purge=yes ;;
        --yes-really) name=${{2:-}}; [ $# -gt 1 ] && shift ;;
        *) echo "usage: $0 uninstall [--purge [--yes-really NAME]]" >&2; exit 2 ;;
      esac
      shift
    done
    if [ -z "$purge" ]; then
      [ -z "$name" ] || {{ echo "--yes-really goes with --purge" >&2; exit 2; }}
      "$compose" --profile '*' down --remove-orphans || exit
      echo "The data stays in the volumes {project}_.., the secrets in $place/.env; start again with: $0 up"
      echo "To delete it: $0 uninstall --purge"
      exit
    fi
    cd -P "$place" || exit 1
    kept() {{ sed -n "s/^$1=//p" .env; }}
    # what goes are the volumes of the project that .env names, and what stands in the folders that are ours
    [ "$(kept COMPOSE_PROJECT_NAME)" = {project} ] || {{ echo "$place/.env is not that of {project}; nothing was changed" >&2; exit 1; }}
    backups=$(kept BACKUP_FOLDER)
    case $(realpath -m -- "${{backups:-backups}}")/ in
      "$PWD"/deploy/*) echo "the backups are in $backups: move them elsewhere first; nothing was changed" >&2; exit 1 ;;
    esac
    echo "This deletes the volumes {project}_.. and what is piggybank's in $place: every account, every movement, every key,"
    echo "and the backups in the volume {project}_backups, if that is where they go. It cannot be undone."
    if [ -z "$name" ]; then
      printf 'Type the name of the installation (%s) to go on: ' {project}
      read -r name || name=
    fi
    [ "$name" = {project} ] || {{ echo "that is not its name, {project}; nothing was changed" >&2; exit 1; }}
    "$compose" --profile '*' down --volumes --remove-orphans || exit
    rm -rf {entries}
    for folder in deploy tls bin; do rmdir "$folder" 2>/dev/null; done
    if rmdir "$PWD" 2>/dev/null; then
      echo "deleted $place and its volumes"
    else
      echo "deleted the volumes {project}_.. and what is piggybank's in $place; left, because it is not:"
      find "$PWD" -mindepth 1 -maxdepth 1
    fi
    exit 0 ;;
esac
terminal=; [ -t 0 ] && [ -t 1 ] || terminal=-T
# shellcheck disable=SC2086
exec "$compose" --progress quiet run --rm --no-deps $terminal cli "$@"
"""


def act_out(options: Options) -> dict[str, str | None]:
    """Bring the installation to what the options say; returns what `--json` prints. Raises `Failed`."""
    with _alone(options), _client() as client:
        image = _image_name()
        if _has_image(client, image):
            step(2, f"The image is there: {image}")
        else:
            step(2, f"Building the image {image} (about a minute)")
            _build(client, image)
        step(3, "Folder and secrets")
        _start(client, options, image, phase_of(options))
        step(6, "Asking what the provider is")
        mode = _choose_provider(client, options)
        step(7, "Making the operator's one-time link, and the recovery key of the backups")
        link = act.operator_link(options)
        key = act.recovery_key(options)
        _start_backups(options)
    return {
        "url": act.url(options),
        "data_dir": str(options.data_dir),
        "cli": str(options.cli),
        "operator_link": link,
        "recovery_key": key,
        "provider_mode": mode,
    }


def _start(client: docker.DockerClient, options: Options, image: str, number: int) -> None:
    """What fails here must not be what `bin/piggybank up` starts later."""
    before = read_env(options.data_dir / ENV_FILE).get(PHASE_KEY, "0")
    with _putting_back(options):
        _copy_files(options)
        _write_env(client, options, image, number)
        _write_commands(options)
        step(4, f"Starting phase {number}")
        _up(client, options, goes_down=number < int(before))
        _remove_unwanted(client, options)
        step(5, "Waiting until it answers")
        _wait_ready(client, options)


def phase_of(options: Options) -> int:
    """The one that was asked for, else the one that this installation has, else the first."""
    kept = read_env(options.data_dir / ENV_FILE).get(PHASE_KEY, "0")
    return int(kept) if options.phase is None else options.phase


def phase_values(number: int, options: Options) -> dict[str, str]:
    """What the phase's file says, changed by what `.env` has."""
    kept = read_env(options.data_dir / ENV_FILE)
    stated = read_env(CHECKOUT / "deploy" / "compose" / f"phase-{number}.env")
    values = {name: value.strip('"') for name, value in stated.items()}
    for name, value in values.items():
        if (usual := re.fullmatch(rf"\$\{{{name}:-(.*)\}}", value)) is not None:
            values[name] = kept.get(name) or usual[1]
    return values


@contextmanager
def _alone(options: Options) -> Iterator[None]:
    options.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    options.data_dir.chmod(0o700)
    with act.locked(options.data_dir):
        yield


def _putting_back(options: Options) -> AbstractContextManager[None]:
    """A first installation keeps what it wrote: the secrets are in it."""
    env, cli = options.data_dir / ENV_FILE, options.cli
    if not (kept := read_env(env)):
        return nullcontext()
    lacking = [name for name in SECRETS if not kept.get(name)]
    if lacking:  # before it is remembered: what has begun with a new one goes on with it
        with env.open("a", encoding="utf-8") as file:
            file.write("".join(f"\n{name}={secrets.token_hex(SECRET_BYTES)}" for name in lacking) + "\n")
    was = f"{kept.get('PIGGYBANK_IMAGE')}, phase {kept.get(PHASE_KEY, '0')}"
    said = f"{env} and the files beside it were put back as they were ({was}); to have that in every container: {cli} up"
    copied = [options.data_dir / path.relative_to(CHECKOUT) for name in COPIED for path in _files_of(CHECKOUT / name)]
    return putting_back.unless_done([*copied, options.data_dir / TLS_FILE, env, cli.with_name("compose"), cli], said)


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


@contextmanager
def _client() -> Iterator[docker.DockerClient]:
    try:
        with closing(docker.from_env(timeout=UP_TIMEOUT_S)) as client:
            yield client
    except DockerException as cause:
        raise Failed(f"the engine says: {cause}") from cause


def _image_name() -> str:
    """Its version, and a mark of everything that it is made of."""
    version = re.search(r'__version__ = "([^"]+)"', (CHECKOUT / "piggybank" / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None, "piggybank/__init__.py names the version"
    mark = hashlib.sha256()
    for name in ("Dockerfile", ".dockerignore", *image_sources()):
        path = CHECKOUT / name
        for file in _files_of(path):
            if "__pycache__" not in file.parts:
                mark.update(str(file.relative_to(CHECKOUT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return f"piggybank:{version[1]}-{mark.hexdigest()[:8]}"


def image_sources() -> list[str]:
    """What the Dockerfile copies out of the checkout."""
    lines = re.findall(r"^COPY (?!--)(.*)$", (CHECKOUT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def _has_image(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _build(client: docker.DockerClient, image: str) -> None:
    version = image.partition(":")[2]
    try:
        client.images.build(
            path=str(CHECKOUT), tag=image, rm=True, forcerm=True, buildargs={"VERSION": version.partition("-")[0], "REVISION": version}
        )
    except BuildError as cause:
        said = [str(line.get("stream") or line.get("error") or "").rstrip() for line in cause.build_log]
        tail = "\n".join(f"    {line}" for line in [line for line in said if line][-LOG_TAIL_LINES:])
        raise Failed(f"the image could not be built: {cause}\n{tail}") from cause


def _copy_files(options: Options) -> None:
    for name in COPIED:
        source, target = CHECKOUT / name, options.data_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copyfile(source, target)
        elif source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
    for path in (options.data_dir / "deploy").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the containers' users read them; strangers do not get into the folder
    if options.settings.get("tls_cert"):
        place = options.data_dir / TLS_FILE
        place.parent.mkdir(exist_ok=True)
        place.write_text(
            "".join(Path(str(options.settings[name])).read_text(encoding="utf-8") for name in ("tls_cert", "tls_key")), encoding="utf-8"
        )
        place.chmod(0o644)


def _write_env(client: docker.DockerClient, options: Options, image: str, number: int) -> None:
    path = options.data_dir / ENV_FILE
    kept = read_env(path)
    first = not kept
    asked: dict[str, str] = {"PIGGYBANK_IMAGE": image, PHASE_KEY: str(number)}
    for name in SETTING_FLAGS:
        if name in options.chosen and (first or name != "provider_mode"):  # a database keeps its own; it is asked below
            value = options.chosen[name]
            asked[ENV_NAMES[name]] = ",".join(value) if isinstance(value, list) else str(value)
    merged = kept | asked
    made = {
        "COMPOSE_PROJECT_NAME": project(options),
        "LISTEN": options.listen,
        "PORT": str(options.port),
        "PROVIDER_MODE": str(options.settings.get("provider_mode", "simulator")),
        **{name: secrets.token_hex(SECRET_BYTES) for name in SECRETS},
        **(_places(client, options) if first else {}),
    }
    merged = {name: value for name, value in made.items() if not merged.get(name)} | merged
    merged |= _following(options, merged)
    text = f"{HEADING} Keep a copy elsewhere: without these secrets nobody opens the database.\n"
    making = path.with_name(f"{ENV_FILE}.new")
    making.touch(mode=0o600)
    making.write_text(text + "".join(f"{name}={value}\n" for name, value in merged.items()), encoding="utf-8")
    making.replace(path)


def _places(client: docker.DockerClient, options: Options) -> dict[str, str]:
    """Ports and networks that nobody has."""
    taken, found = {options.port}, {}
    for name, usual in PORTS.items():
        if name == "PORT":
            continue
        port = usual
        while port in taken or not_free("127.0.0.1", port) is not None:
            port += 1
        taken.add(port)
        found[name] = str(port)
    return found | dict(zip(("DOOR_SUBNET", "EDGE_SUBNET"), _subnets(client, 2), strict=True))


def _subnets(client: docker.DockerClient, count: int) -> list[str]:
    """Networks of 254 addresses each, beside those of the engine and of this machine's routes."""
    used = [
        ipaddress.ip_network(config["Subnet"])
        for network in client.networks.list()
        for config in (network.attrs.get("IPAM") or {}).get("Config") or []
        if "Subnet" in config
    ]
    routes = Path("/proc/net/route")
    for line in routes.read_text(encoding="ascii").splitlines()[1:] if routes.exists() else []:
        destination, mask = (int.from_bytes(bytes.fromhex(line.split()[at]), "little") for at in (1, 7))
        if mask:
            used.append(ipaddress.ip_network((destination, mask.bit_count()), strict=False))
    found: list[str] = []
    while len(found) < count:
        tried = ipaddress.ip_network((0x0A400000 + secrets.randbelow(1 << 14) * 256, 24))  # 10.64.0.0 to 10.127.255.0
        if not any(tried.version == one.version and tried.overlaps(one) for one in used):
            used.append(tried)
            found.append(str(tried))
    return found


def _following(options: Options, env: Mapping[str, str]) -> dict[str, str]:
    """What follows from the rest: addresses, TLS, and whom the door believes."""
    trusts = [part for part in env.get("TRUSTED_PROXIES", "").split(",") if part]
    if trusts and options.listen in LOOPBACK:  # a proxy on this machine comes in by the engine's own address
        trusts.append(str(next(ipaddress.ip_network(env["EDGE_SUBNET"]).hosts())))
    host = "127.0.0.1" if options.listen in ("0.0.0.0", "::", *LOOPBACK) else options.listen  # noqa: S104 - compared
    return {
        "PUBLIC_URL": str(options.chosen.get("public_url") or _chosen_url(env) or _own_url(options)),
        "SIMULATOR_URL": f"http://{host}:{env.get('SIMULATOR_PORT', '8081')}",
        "DOOR_TRUSTS": " ".join(trusts) or "255.255.255.255",
        "WEB_TRUSTS": ",".join(trusts),
        **({"DOOR_TLS": "yes", "TLS_FOLDER": "./tls"} if options.settings.get("tls_cert") else {}),
    }


def _own_url(options: Options) -> str:
    """Made of the address alone."""
    return act.url(replace(options, settings={name: value for name, value in options.settings.items() if name != "public_url"}))


def _chosen_url(env: Mapping[str, str]) -> str:
    """PUBLIC_URL, unless we made it of the address, which a flag may change."""
    return "" if re.match(r"https?://127\.0\.0\.1:", env.get("PUBLIC_URL", "")) else env.get("PUBLIC_URL", "")


def _write_commands(options: Options) -> None:
    words = {"data_dir": f"'{options.data_dir}'", "project": shlex.quote(_project(options)), "entries": " ".join(ENTRIES)}
    options.cli.parent.mkdir(exist_ok=True)
    for name, text in (("compose", COMPOSE), ("piggybank", COMMAND)):
        path = options.cli.with_name(name)
        making = path.with_name(f"{name}.new")
        making.write_text(text.format(**words), encoding="utf-8")
        making.chmod(0o755)
        making.replace(path)


def _compose(options: Options, *words: str, timeout_s: int = UP_TIMEOUT_S) -> str:
    command = [str(options.cli.with_name("compose")), *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired as cause:
        raise Failed(f"{' '.join(command)} did not end within {timeout_s} s") from cause
    if done.returncode != 0:
        tail = "\n".join(f"    {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-LOG_TAIL_LINES:])
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{tail}\n  What a container says: {command[0]} logs SERVICE")
    return done.stdout


def _environment() -> dict[str, str]:
    """What compose sees later, too: no variable of this shell that `.env` or a phase has."""
    read = re.findall(r"\$\{(\w+)", (CHECKOUT / "compose.yaml").read_text(encoding="utf-8"))
    mine = {*read, *ENV_NAMES.values(), "WATCH", "COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME", "COMPOSE_ENV_FILES"}
    return {name: value for name, value in os.environ.items() if name not in mine and not name.startswith("PIGGYBANK_")}


def services(options: Options) -> list[str]:
    """Those that this phase has."""
    return _compose(options, "config", "--services").split()


def _up(client: docker.DockerClient, options: Options, *, goes_down: bool = False) -> None:
    """Stores first, then ours: web containers in the old way of a higher phase would wait for standbys that are there no more, so where
    the phase goes down, what is there stays as it is until they are replaced."""
    wanted = [name for name in services(options) if name != BACKUP]
    for name in ("prometheus", "grafana"):
        if name in wanted and not _can_have(options, name):
            print(
                f"  {name}: its image is not here and cannot be pulled: it stays away (for good: WATCH=none in {ENV_FILE})",
                file=sys.stderr,
            )
            wanted.remove(name)
    up = ("up", "--detach", "--no-build")
    if rolling.containers(client, _project(options), rolling.WEB):
        if goes_down:
            _compose(options, *up, "--no-recreate", *(name for name in wanted if name not in OURS_TO_REPLACE))
            _compose(options, *up, "--no-deps", "migrate")
        else:
            _compose(options, *up, *(name for name in wanted if name not in OURS_TO_REPLACE))
        rolling.replace_web(client, _project(options), partial(_compose, options))
    _compose(options, *up, *wanted)


def _start_backups(options: Options) -> None:
    """Last, so that the first one has the secrets in it. A target that is away keeps nothing else from running."""
    try:
        _compose(options, "up", "--detach", "--no-build", "--no-deps", BACKUP)
    except Failed as cause:
        print(f"  backups are NOT made: {cause}", file=sys.stderr)


def _project(options: Options) -> str:
    return read_env(options.data_dir / ENV_FILE)["COMPOSE_PROJECT_NAME"]


def _can_have(options: Options, service: str) -> bool:
    try:
        _compose(options, "pull", "--quiet", "--policy", "missing", service, timeout_s=PULL_TIMEOUT_S)
    except Failed:
        return False
    return True


def _remove_unwanted(client: docker.DockerClient, options: Options) -> None:
    """Containers of the phase before; their volumes stay."""
    wanted = set(services(options))
    for container in rolling.containers(client, _project(options)):
        if container.labels.get(rolling.SERVICE) not in wanted | {"cli"}:
            container.stop(timeout=30)
            container.remove()


def _wait_ready(client: docker.DockerClient, options: Options) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    while not act.answers(options):
        if time.monotonic() > until:
            found = rolling.containers(client, _project(options))
            ill = ", ".join(f"{one.name} ({one.status})" for one in found if one.status != "running" or one.health == "unhealthy")
            logs = f"{options.cli.with_name('compose')} logs"
            raise Failed(f"it does not answer on {options.listen}:{options.port}; not well: {ill or 'none'}\n  {logs}")
        time.sleep(1)


def _choose_provider(client: docker.DockerClient, options: Options) -> str:
    """The provider's mode is the database's: an older one is asked to change, and says so where it must not."""
    mode = act.run(str(options.cli), "provider", "mode").strip()
    wanted = str(options.chosen.get("provider_mode", mode))
    if wanted != mode:
        act.run(str(options.cli), "provider", "mode", wanted)
        path = options.data_dir / ENV_FILE
        path.write_text(re.sub(r"(?m)^PROVIDER_MODE=.*$", f"PROVIDER_MODE={wanted}", path.read_text(encoding="utf-8")), encoding="utf-8")
        _up(client, options)
        _remove_unwanted(client, options)
        _wait_ready(client, options)
    return wanted
