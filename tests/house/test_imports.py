"""The five floors: imports go down only, and rooms on one floor do not import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "piggybank"

# from the roof down; a room is the first name below `piggybank`
FLOORS = {
    "assembly": {"app", "worker", "cli", "bench", "__main__"},
    "entrances": {"api", "jobs", "appliance"},
    "work": {"identity", "wallet", "capacity", "reports", "checks", "archive"},
    "core": {"ledger", "revio", "simulator"},
    "storage": {"db", "cache", "queues"},
    "ground": {"settings", "money", "ids", "telemetry", "metrics", "tracing", "otlp", "errors"},
}
HEIGHT = {room: -number for number, rooms in enumerate(FLOORS.values()) for room in rooms}
HANDED_ON = {"HOME", "PYTHONPATH"}  # read to be given to a child process, not to decide by
LAZY = {"piggybank/appliance/backups/targets.py"}  # every command passes it, and its libraries weigh a third of a start
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of our own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "piggybank":
            targets = [f"piggybank.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            targets = [node.module or ""]
        else:
            continue
        yield from ((node.lineno, target.split(".")[1]) for target in targets if target.startswith("piggybank."))


def hidden(tree: ast.AST) -> Iterator[int]:
    """Lines of imports inside functions."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (node.lineno for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom))


def wrong(importer: str, room: str) -> bool:
    if room in ("__version__", importer):
        return False
    if HEIGHT[importer] == HEIGHT[room]:
        # the ground is one room without walls, and the roof puts its own parts together
        return FLOORS["ground"].isdisjoint({room}) and FLOORS["assembly"].isdisjoint({room})
    return HEIGHT[room] > HEIGHT[importer]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    assert room in HEIGHT, f"{room} has no floor: give it one here and in the README"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"{name(path)}:{line} imports {target}" for line, target in imports(tree) if wrong(room, target)] == []


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "cli" and name(path) not in LAZY], ids=name)
def test_imports_are_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"{name(path)}:{line}" for line in hidden(tree)] == []


@pytest.mark.parametrize(
    ("importer", "room", "is_wrong"),
    [
        ("ledger", "wallet", True),
        ("ledger", "db", False),
        ("wallet", "identity", True),
        ("api", "jobs", True),
        ("api", "api", False),
        ("settings", "errors", False),
        ("db", "cache", True),
        ("wallet", "app", True),
    ],
)
def test_the_rule_itself(importer: str, room: str, is_wrong: bool) -> None:
    assert wrong(importer, room) is is_wrong


def reads_the_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "getenv"
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) == "os.environ" and isinstance(node.ctx, ast.Load)
    is_get = isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.get"
    return is_get and ast.literal_eval(node.args[0]) not in HANDED_ON  # type: ignore[attr-defined]  # a Call has args


def test_one_door_to_the_environment() -> None:
    readers = [
        f"{name(path)}:{node.lineno}"  # type: ignore[attr-defined]  # every node that reads has a line
        for path in MODULES
        if room_of(path) != "settings"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if reads_the_environment(node)
    ]
    assert readers == []
