"""What the person asked for: one flag for every question; `PIGGYBANK_<NAME>` in the environment counts as the flag."""

import argparse
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

Value = str | int | bool | list[str]

PREFIX = "PIGGYBANK_"
SETTINGS_FILE = "piggybank.toml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_LISTEN = "127.0.0.1"
DEFAULT_PORT = 8080
# flags that become settings, by the setting's name
SETTING_FLAGS = ("listen", "port", "public_url", "tls_cert", "tls_key", "trusted_proxies", "insecure", "provider_mode")
PROVIDER_MODES = ("simulator", "live")
ENV_FILE = ".env"  # with --docker: secrets and places
SETTINGS_ENV = "settings.env"  # there: settings of people's own
# the same settings there, by what they are called for compose.yaml
ENV_NAMES = {
    "listen": "LISTEN",
    "port": "PORT",
    "public_url": "PUBLIC_URL",
    "trusted_proxies": "TRUSTED_PROXIES",
    "provider_mode": "PROVIDER_MODE",
    "insecure": "INSECURE",
    "tls_cert": "TLS_CERT",
    "tls_key": "TLS_KEY",
}
BUILT_PHASES = (0, 1, 2, 3)

EPILOG = """\
Each flag may also be given as an environment variable: PIGGYBANK_PORT=9000 is --port 9000. pip's own configuration
and variables (PIP_INDEX_URL, PIP_CERT, https_proxy ...) are honoured. Exit code: 0 done, 1 failed, 2 something must be
put right first. Running it again is safe: it changes what the flags say and nothing else.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`chosen` holds only the settings that were asked for; `settings` adds what the folder's file says, then the defaults."""

    data_dir: Path
    chosen: Mapping[str, Value]
    settings: Mapping[str, Value]
    yes: bool
    json: bool
    check: bool
    ignored: tuple[str, ...]
    python: str
    bundle: Path | None = None
    docker: bool = False
    phase: int | None = None  # with --docker: None is the one that it has, or the first

    @property
    def listen(self) -> str:
        return str(self.settings["listen"])

    @property
    def port(self) -> int:
        return int(str(self.settings["port"]))

    @property
    def cli(self) -> Path:
        return self.data_dir / "bin" / "piggybank"


def default_data_dir() -> Path:
    """As `piggybank.settings` has it: `/var/lib/piggybank` for root, else below the user's own data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/piggybank")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "piggybank"


def parse(arguments: list[str], environment: Mapping[str, str], python: str) -> Options:
    """Exits with 2 and a sentence where a flag cannot be."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.phase is not None and not flags.docker:
        parser.error("--phase goes with --docker; without containers: piggybank phase apply N")
    usual = default_data_dir().with_name("piggybank-docker") if flags.docker else default_data_dir()
    data_dir = Path(flags.data_dir or environment.get(f"{PREFIX}DATA_DIR") or usual).expanduser().absolute()
    if any(character in str(data_dir) for character in "\n\r\0'\""):
        parser.error("--data-dir: the path may not contain quotes or line breaks")
    bundle = Path(flags.bundle).expanduser().absolute() if flags.bundle else None
    if bundle is not None and not bundle.is_file():
        parser.error(f"--bundle {flags.bundle}: there is no such file")
    if bundle is not None and flags.docker:
        parser.error("--bundle installs natively; with --docker carry the image over: docker save, docker load")
    asked = {name: _chosen(parser, name, getattr(flags, name), environment) for name in SETTING_FLAGS}
    chosen: dict[str, Value] = {name: value for name, value in asked.items() if value is not None}
    defaults: dict[str, Value] = {"listen": DEFAULT_LISTEN, "port": DEFAULT_PORT}
    return Options(
        data_dir=data_dir,
        chosen=chosen,
        settings=defaults | (_from_env(data_dir) if flags.docker else _already_set(parser, data_dir / SETTINGS_FILE)) | chosen,
        yes=flags.yes or flags.json,
        json=flags.json,
        check=flags.check,
        ignored=tuple(sorted(_not_flags(environment))),
        python=python,
        bundle=bundle,
        docker=flags.docker,
        phase=flags.phase,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="installer/install.sh",
        description="Installs piggybank on this machine and starts it. Looks first, then acts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help=f"folder of the installation: program, database, logs (default {default_data_dir()})"
    )
    parser.add_argument("--port", metavar="N", help=f"port of the HTTP API (default {DEFAULT_PORT})")
    parser.add_argument("--listen", metavar="ADDR", help=f"address to listen on (default {DEFAULT_LISTEN})")
    parser.add_argument("--public-url", metavar="URL", help="address that people reach it by; goes into links")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate (PEM) to answer HTTPS with; with --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="key (PEM) of the certificate")
    parser.add_argument("--trusted-proxies", metavar="LIST", help="addresses or networks, with commas, whose X-Forwarded-For is believed")
    parser.add_argument("--insecure", action="store_true", default=None, help="allow listening beyond loopback without TLS or a proxy")
    parser.add_argument(
        "--provider-mode",
        metavar="MODE",
        help="simulator (default): payments through the provider are play; live: they are real, through Revio",
    )
    parser.add_argument(
        "--bundle",
        metavar="FILE",
        help="install from the file that `make bundle` made, without a network (the installer in it does so by itself)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="last line of stdout is JSON, the rest goes to stderr; implies --yes")
    parser.add_argument("--check", action="store_true", help="look only; change nothing")
    parser.add_argument(
        "--docker", action="store_true", help="install with containers, through a Docker engine that is here (folder: ..-docker)"
    )
    parser.add_argument(
        "--phase", type=int, choices=BUILT_PHASES, metavar="N", help="with --docker: the phase to run as, 0 to 3; also later"
    )
    return parser


def _chosen(parser: argparse.ArgumentParser, name: str, flag: str | bool | None, environment: Mapping[str, str]) -> Value | None:
    value = flag if flag is not None else environment.get(PREFIX + name.upper())
    shown = "--" + name.replace("_", "-")
    if value is None:
        return None
    match name:
        case "insecure":
            return value if isinstance(value, bool) else value.lower() in ("1", "true")
        case "port":
            if not str(value).isascii() or not str(value).isdecimal() or not 1 <= int(value) <= 65_535:
                parser.error(f"{shown} {value}: give a number from 1 to 65535")
            return int(value)
        case "provider_mode" if value not in PROVIDER_MODES:
            parser.error(f"{shown} {value}: give one of {', '.join(PROVIDER_MODES)}")
        case "tls_cert" | "tls_key" if value:
            path = Path(str(value)).expanduser().absolute()
            if not path.is_file():
                parser.error(f"{shown} {value}: there is no such file")
            return str(path)
        case "public_url" if value and (urlsplit(str(value)).scheme not in ("http", "https") or not urlsplit(str(value)).hostname):
            parser.error(f"{shown} {value}: give an address like https://money.example.com")
        case "trusted_proxies":
            return [part.strip() for part in str(value).split(",") if part.strip()]
    return value


def read_env(path: Path) -> dict[str, str]:
    """NAME=value lines, as they stand; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))


def _from_env(data_dir: Path) -> dict[str, Value]:
    known = read_env(data_dir / ENV_FILE)
    found: dict[str, Value] = {name: known[variable] for name, variable in ENV_NAMES.items() if known.get(variable)}
    if "trusted_proxies" in found:
        found["trusted_proxies"] = known["TRUSTED_PROXIES"].split(",")
    return found


def _already_set(parser: argparse.ArgumentParser, path: Path) -> dict[str, Value]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}  # a folder of somebody else is found by looking
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        parser.error(f"{path} cannot be read ({cause}); put it right first")
    return {name: values[name] for name in SETTING_FLAGS if name in values}


def _not_flags(environment: Mapping[str, str]) -> list[str]:
    known = {PREFIX + name.upper() for name in (*SETTING_FLAGS, "data_dir", "require")}
    return [name for name in environment if name.startswith(PREFIX) and name not in known]
