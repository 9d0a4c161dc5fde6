"""The rooms of the runtime: what may import what, and that names which moved are still found."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from lm2.runtime.formerly import MOVED

PACKAGE = Path(importlib.util.find_spec("lm2").origin).parent  # type: ignore[union-attr,arg-type]


def imports(file: Path, always: bool, types: bool = False) -> set[str]:
    """Modules of this package that a file imports, dotted; `always`: only when it is itself imported."""
    here = ["lm2", *file.relative_to(PACKAGE).with_suffix("").parts]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if always and isinstance(child, (ast.FunctionDef, ast.Lambda)):
                continue
            if not types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom):
                base = here[: len(here) - child.level] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                found.update({module} | {f"{module}.{a.name}" for a in child.names})
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return {f for f in found if f.startswith("lm2.")}


def files(*rooms: str) -> list[Path]:
    return [f for room in rooms for f in sorted((PACKAGE / room).rglob("*.py"))]


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_moved_name_is_the_same_module(old: str) -> None:
    was, now = importlib.import_module(f"lm2.runtime.{old}"), importlib.import_module(MOVED[old], "lm2.runtime")
    name = importlib.util.resolve_name(MOVED[old], "lm2.runtime")
    assert was is now and now.__spec__ is not None and now.__spec__.name == now.__name__ == name


def test_public_names_stay() -> None:
    from lm2.runtime.session import MAX_TOKENS, Session
    from lm2.runtime.statefile import Expected, Meta, Moment, Record, read_session, write_session

    assert Session.__module__ == "lm2.runtime.session.session" and MAX_TOKENS > 0
    assert all((Expected, Meta, Moment, Record, read_session, write_session))
    with pytest.raises(ImportError):
        importlib.import_module("lm2.runtime.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = sys.modules["lm2.runtime.session"].nothing


def test_models_know_no_runtime() -> None:
    for file in files("models"):
        assert not [m for m in imports(file, always=False) if m.startswith("lm2.runtime")], file


def test_no_circles() -> None:
    """Imports have an order, those within functions and for types alone included: no module reaches itself."""
    names = {".".join(["lm2", *f.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): f
             for f in files("runtime", "models", "export", "lm2_mlx")}  # fmt: skip
    edges = {name: {m for m in imports(file, always=False, types=True) if m in names and m != name} for name, file in names.items()}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for following in sorted(edges[name]):
                walk(following, (*way, name))
            done.add(name)

    for name in names:
        walk(name, ())
