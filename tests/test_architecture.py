"""The rooms of the house and their arrows: who may import whom, and what a cheap import must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "qinco_core").rglob("*.py"))
CLI = sorted((ROOT / "qinco_cli").rglob("*.py"))
FOLDERS = ("qinco_core", "qinco_cli", "tests", "benchmarks", "examples")


def imported(source: str) -> Iterator[str]:
    """Every module that a source names in an import, wherever it stands; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path.read_text("utf-8"))}


def room(path: Path) -> str:
    """The room that a file of qinco_core belongs to."""
    return path.relative_to(ROOT / "qinco_core").parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path.read_text("utf-8")))
    return {names[1] for names in parts if names[0] == "qinco_core"}


def arrows() -> dict[str, set[str]]:
    """The table of docs/architecture.md: for each room, the rooms it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import os.path\ndef f():\n    from qinco_core import store\n    from qinco_core.api import Codec\n"
    assert set(imported(source)) == {"os.path", "qinco_core.store", "qinco_core.api.Codec"}


def test_every_room_has_its_row() -> None:
    assert set(arrows()) == {room(path) for path in CORE} - {"__init__"}


def test_the_rooms_have_an_order() -> None:
    left = arrows()
    while left:
        free = {name for name, allowed in left.items() if not allowed & left.keys()}
        assert free, f"{sorted(left)} import one another in a circle"
        left = {name: allowed for name, allowed in left.items() if name not in free}


@pytest.mark.parametrize("name", sorted(arrows()))
def test_a_room_imports_only_what_it_may(name: str) -> None:
    allowed = arrows()[name] | {name}
    wrong = {
        str(path.relative_to(ROOT)): extra
        for path in CORE
        if room(path) == name and (extra := rooms_imported(path) - allowed)
    }
    assert not wrong


def test_the_core_knows_no_command_line() -> None:
    assert not [path for path in CORE if packages(path) & {"typer", "rich", "click", "qinco_cli"}]


def test_only_the_console_knows_rich() -> None:
    assert [path.name for path in CLI if "rich" in packages(path)] == ["console.py"]


@pytest.mark.parametrize(
    "work",
    [
        "import qinco_core",
        "import runpy; sys.argv = ['qinco', '--help']; runpy.run_module('qinco_cli', run_name='__main__')",
        "import runpy; sys.argv = ['qinco', 'train', '--help']; runpy.run_module('qinco_cli', run_name='__main__')",
    ],
    ids=["import", "help", "train help"],
)
def test_neither_torch_nor_faiss_nor_ray_is_loaded_by(work: str) -> None:
    program = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", sorted({{"torch", "faiss", "ray"}} & sys.modules.keys())))
{work}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_files_stay_short() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert not {name: count for name, count in lines.items() if count >= 450}
