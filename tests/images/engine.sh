#!/bin/sh
# Prepares a Debian machine for `make test-images`, as root: an engine that runs, the compose and buildx plugins, and the images that
# compose.yaml names. What a registry gives is pulled; where none can be reached, an image of the same name is made of Debian's packages,
# and each of them is told of on standard output, as SUBSTITUTED. Nothing is made twice. Authorities that this machine trusts beside
# Debian's go into the local Python base only, since the build asks the package index through them.
set -eu
PULL_TIMEOUT_S=60
here=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "$*" >&2; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# apt's own mirror, whichever that is
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
  grep -o 'https\{0,1\}://[^ ]*/debian/\{0,1\}\( \|$\)' | tr -d ' ' | head -n 1)

command -v docker >/dev/null 2>&1 || { say "no docker command here: apt-get install docker.io"; exit 2; }
if ! docker info >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null 2>&1 || { say "no Docker engine answers"; exit 2; }
  say "Starting dockerd"
  setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
  for _ in $(seq 30); do docker info >/dev/null 2>&1 && break; sleep 1; done
  docker info >/dev/null 2>&1 || { say "dockerd did not start: /var/log/dockerd.log"; exit 2; }
fi

# apt of another suite, without touching that of this machine
other_apt() {
  suite=$1; shift
  mkdir -p "$work/$suite/lists/partial" "$work/$suite/cache/archives/partial"
  echo "deb [signed-by=$keyring] $mirror $suite main" > "$work/$suite/sources.list"
  apt-get -qq -o Dir::Etc::sourcelist="$work/$suite/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/$suite/lists" \
    -o Dir::Cache="$work/$suite/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root \
    -o Acquire::Check-Valid-Until=false "$@"
}

plugin() { # command, Debian package; from forky, whose builds run on older Debians, too
  docker "$1" version >/dev/null 2>&1 && return 0
  [ -n "$mirror" ] || { say "docker $1 is missing, and apt names no mirror"; exit 2; }
  say "Installing the plugin docker $1"
  [ -d "$work/forky/lists" ] || other_apt forky update
  (cd "$work" && other_apt forky download "$2" && dpkg -x "$2"_*.deb "$work/$2")
  folder=/usr/local/lib/docker/cli-plugins
  [ "$(id -u)" = 0 ] || folder="$HOME/.docker/cli-plugins"
  mkdir -p "$folder"
  find "$work/$2" -path "*/cli-plugins/docker-$1" -type f -exec install -m 755 {} "$folder/" \;
  docker "$1" version >/dev/null
}
plugin compose docker-compose
plugin buildx docker-buildx

image() { # name, suite, packages; then what mmdebstrap and `docker import` take, one word each
  name=$1 suite=$2 packages=$3; shift 3
  if docker image inspect "$name" >/dev/null 2>&1; then
    made=$(docker image inspect --format '{{index .Config.Labels "substituted"}}' "$name")
    [ -z "$made" ] || echo "SUBSTITUTED $name by $made"
    return 0
  fi
  timeout "$PULL_TIMEOUT_S" docker pull --quiet "$name" >/dev/null 2>&1 && return 0
  if [ "$suite" = none ]; then
    echo "MISSING $name: no registry gives it, and Debian does not have it"
    return 0
  fi
  [ -n "$mirror" ] || { say "$name cannot be pulled, and apt names no mirror"; exit 2; }
  command -v mmdebstrap >/dev/null 2>&1 || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
  say "Making $name of Debian $suite: $packages"
  hooks=""
  set --
  case $name in
    python:*)
      hooks='mkdir -p "$1/usr/local/share/ca-certificates" && cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/" 2>/dev/null; chroot "$1" update-ca-certificates >/dev/null 2>&1'
      set -- --change "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" --change 'CMD ["python3"]' ;;
    postgres:*)
      hooks='true'
      set -- --change "ENV PATH=/usr/lib/postgresql/18/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" ;;
    valkey/*) hooks='mkdir -p "$1/data" && chroot "$1" chown valkey:valkey /data' ;;
    prom/*) hooks='mkdir -p "$1/prometheus" && chroot "$1" chown 65534:65534 /prometheus' ;;
    *) hooks='true' ;;
  esac
  # a mirror that is a snapshot stands still, and its release file says until when it was the newest
  mmdebstrap --quiet --aptopt='Acquire::Check-Valid-Until "false"' --variant=minbase --mode=root --include="$packages" --keyring="$keyring" \
    --essential-hook='mkdir -p "$1/etc/postgresql-common/createcluster.d" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.d/none.conf"' \
    --customize-hook="$hooks" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$work/root.tar" "$mirror" >&2
  docker import --change "LABEL substituted=\"Debian $suite: $packages\"" "$@" "$work/root.tar" "$name" >/dev/null
  rm -f "$work/root.tar"
  echo "SUBSTITUTED $name by Debian $suite: $packages"
}

# the images of the Dockerfile and of compose.yaml, by what they are made of
for name in $(sed -n 's/^FROM \([^ ]*\) AS .*/\1/p' "$here/Dockerfile" | sort -u) $(sed -n 's/^ *image: \${[A-Z_]*:-\([a-z/]*:[^ }]*\)}.*/\1/p' "$here/compose.yaml" | grep -v '^piggybank:' | sort -u); do
  case $name in
    python:3.11-slim-bookworm) image "$name" bookworm python3,python3-venv,ca-certificates ;;
    postgres:*) image "$name" forky postgresql-18 ;;
    valkey/*) image "$name" forky valkey-server,valkey-tools ;;
    */pgbouncer:*) image "$name" trixie pgbouncer,postgresql-client ;;
    haproxy:*) image "$name" trixie haproxy ;;
    prom/*) image "$name" forky prometheus ;;
    *) image "$name" none "" ;;
  esac
done
