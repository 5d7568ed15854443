#!/bin/sh
# The one command: looks at the machine without changing it, then installs piggybank and starts it. Running it again is safe.
# This part finds a Python 3.11+; the rest is installer/__main__.py: `look` and `act`, one function a line.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$here/python.sh"

find_python others
if [ -z "$PYTHON" ]; then
  echo "piggybank needs Python 3.11 or newer$([ "$(id -u)" = 0 ] && echo ', readable by other users than root')." >&2
  echo "On Debian 12 or newer:  $APT_LINE" >&2
  exit 2
fi
PYTHONPATH=$(dirname "$here") exec "$PYTHON" -P -B -m installer "$@"
