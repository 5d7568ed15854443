"""Takes out of the image's libraries what only compiles, builds against or tests them: nothing of ours loads it.

pyarrow is the large one. Its core library links Parquet, Acero, Dataset, Compute and Substrait, so those stay, and S3 with them; Flight
is loaded by `pyarrow.flight` alone. A file that a linker would have taken under another name is the same file again.
`tests/images` archives a month in the image and reads it back.
"""

import shutil
import sys
from pathlib import Path

SOURCES = ("*.pyx", "*.pxd", "*.pxi", "*.pyi", "*.h", "*.hpp", "*.c", "*.cc", "*.cpp", "*.so.*.*.*", "*.js.map", "*.css.map")
TESTS = ("pyarrow/tests", "pyarrow/include", "pyarrow/src", "pyarrow/includes", "sqlalchemy/testing", "greenlet/tests", "test")
FLIGHT = ("pyarrow/libarrow_flight*", "pyarrow/libarrow_python_flight*", "pyarrow/_flight*", "pyarrow/flight.py")
UNUSED = (
    "swagger_ui/static/swagger-editor*",  # the API's page needs swagger-ui
    "faker/providers/*/[!e_]*_[A-Z]*",  # languages of made-up examples, which Litestar could put into a schema and ours does not
)


def main(venv: Path) -> None:
    [libraries] = venv.glob("lib/python3*/site-packages")
    doomed = {path for pattern in SOURCES for path in libraries.rglob(pattern)}
    doomed |= {path for pattern in (*TESTS, *FLIGHT, *UNUSED) for path in libraries.glob(pattern)}
    # `libx.so` beside `libx.so.2600`: loaders ask for the latter
    doomed |= {path for path in (libraries / "pyarrow").glob("lib*.so") if any(path.parent.glob(f"{path.name}.*"))}
    for path in doomed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
