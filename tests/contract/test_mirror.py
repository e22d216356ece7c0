"""Unit tests mirror the tree: PACKAGE/test_MODULE.py, or test_MODULE_ASPECT.py where a module has several files."""

from pathlib import Path

from tests.support.paths import REPOSITORY

UNIT = REPOSITORY / "tests" / "unit"


def modules(package: Path) -> set[str]:
    """Names that a test file of the package may carry: its modules and its folders."""
    folders = [REPOSITORY / "sdpo_ray" / package, REPOSITORY / package]
    return {each.stem for folder in folders if folder.is_dir() for each in folder.iterdir()}


def test_every_unit_test_file_is_named_for_a_module_of_its_package():
    strays = []
    for file in UNIT.rglob("test_*.py"):
        name = file.stem.removeprefix("test_")
        found = modules(file.relative_to(UNIT).parent)
        if not any(name == module or name.startswith(f"{module}_") for module in found):
            strays.append(str(file.relative_to(REPOSITORY)))
    assert strays == []


def test_no_test_file_imports_from_another():
    """What tests share lives in tests/support, so that a test file can move or go by itself."""
    importing = [
        f"{file.relative_to(REPOSITORY)}: {line}"
        for file in (REPOSITORY / "tests").rglob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("from tests.unit", "from tests.integration", "import tests.unit"))
    ]
    assert importing == []
