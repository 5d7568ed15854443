# Sourced by install.sh and develop.sh: finds a Python to work with.

APT_LINE="apt-get install -y python3 python3-venv make"

# Says "<rank> <path>" of one interpreter; rank 0 is fit, 1 lacks ensurepip, and nothing is said about one that is too old.
# The services of a root install run as a system user, so root needs a Python that others may execute (not one in /root).
_probe_python() {
  "$1" -B - "$2" 2>/dev/null <<'PYTHON'
import os, subprocess, sys
if sys.version_info < (3, 11):
    sys.exit()
path = os.path.join(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
path = path if os.access(path, os.X_OK) else os.path.realpath(sys.executable)
if sys.argv[1] == "others" and os.geteuid() == 0:
    try:
        subprocess.run([path, "-c", "import ssl, sqlite3"], user=65534, group=65534, extra_groups=[], cwd="/", check=True,
                       stderr=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        sys.exit()
try:
    import ensurepip, venv
    print(0, path)
except ImportError:
    print(1, path)
PYTHON
}

# find_python [others]: sets PYTHON to the best interpreter of this machine; empty where none is 3.11 or newer.
find_python() {
  PYTHON=""
  for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    found=$(_probe_python "$candidate" "${1:-}") || continue
    case "$found" in
      "0 "*) PYTHON=${found#0 }; return 0 ;;
      "1 "*) PYTHON=${PYTHON:-${found#1 }} ;;
    esac
  done
}
