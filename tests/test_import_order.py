"""The house is built from the ground up: a room knows the rooms below it, and nobody above."""

from __future__ import annotations

import ast
from pathlib import Path

import dxc

ORDER = (
    ("masking", "text", "processes", "untrusted"),
    ("bars", "download", "errors"),
    ("files",),
    ("metrics",),
    ("pareto",),
    ("models",),
    ("config",),
    ("geo",),
    ("evaluation",),
    ("data",),
    ("synthetic",),
    ("training",),
    ("deploy",),
    ("compress",),
    ("hardware",),
    ("tracking",),
    ("report",),
    ("pipeline",),
    ("search",),
    ("scaling",),
    ("analysis",),
    ("deployment", "mapping"),
)
"""Rooms of dxc, the lowest first; rooms on one line do not know each other."""
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
KNOWN_CLIMBS = {
    # for types only: what is shown
    ("report.console", "pipeline"),
    ("report.findings", "analysis"),
    ("report.deployment", "deployment"),
    ("report.progress", "search"),
    # commands of their own: they print
    ("hardware.__main__", "report"),
    ("hardware.schedule.__main__", "report"),
}
"""Imports that go up all the same: (module, room)."""


def _imports(tree: ast.Module) -> set[str]:
    """Rooms of dxc that a module imports anywhere, for types only or inside of functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "dxc" else [f"dxc.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("dxc.")}
    return found


def test_every_room_has_its_floor() -> None:
    root = Path(dxc.__file__).parent
    rooms = {path.stem for path in root.glob("*.py")} | {
        path.parent.name for path in root.glob("*/__init__.py")
    }
    assert rooms - {"__init__"} == FLOOR.keys()


def test_imports_go_down() -> None:
    root = Path(dxc.__file__).parent
    climbs = set()
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for room in _imports(ast.parse(path.read_text())) - {own}:
            if FLOOR[room] >= FLOOR[own]:
                climbs.add((".".join(path.relative_to(root).with_suffix("").parts), room))
    assert climbs == KNOWN_CLIMBS
