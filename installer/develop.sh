#!/bin/sh
# Makes .venv for `make test`: what requirements-dev.lock says, each file checked against its hash, and this checkout on its path.
# Tools that come with Debian are installed where this may be done; a test that misses one prints NOT RUN.
set -eu
cd "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/.."
. installer/python.sh

# command:package
DEBIAN_TOOLS="curl:curl systemd-analyze:systemd chromium:chromium pgbouncer:pgbouncer promtool:prometheus sshd:openssh-server"

install_debian() {
  [ $# -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 0
  echo "Installing Debian packages: $*" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; } ||
    echo "apt-get could not install: $*" >&2
}

has_venv() { [ -n "$PYTHON" ] && "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }

missing=""
for pair in $DEBIAN_TOOLS; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
# shellcheck disable=SC2086  # a list of words
install_debian $missing

find_python
has_venv || { install_debian python3 python3-venv; find_python; }
if ! has_venv; then
  echo "This needs Python 3.11+ with venv and ensurepip. As root: $APT_LINE" >&2
  exit 2
fi

echo "Making .venv with $PYTHON from requirements-dev.lock" >&2
rm -rf .venv
"$PYTHON" -m venv .venv
PIP_USER=0 .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock
pwd > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
touch .venv/ready
