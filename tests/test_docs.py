"""The documentation holds: its Python runs, its command lines parse, its references are complete."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from qinco_cli.main import app
from qinco_core import errors
from qinco_core.config import PRESETS

ROOT = Path(__file__).parent.parent
README, LIBRARY, CLI = ROOT / "README.md", ROOT / "docs" / "library.md", ROOT / "docs" / "cli.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# between the commands of a pipeline
SEPARATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<"}


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a page, with the number of lines before each."""
    text = page.read_text("utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match.group(1)


def calls(shell: str) -> Iterator[list[str]]:
    """The arguments of every call of qinco in a shell text, wherever in a pipeline it stands."""
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
                continue
            if "qinco" in words:
                yield words[words.index("qinco") + 1 :]
            words = []


def sections(page: Path) -> dict[str, str]:
    """The text under each heading of the second level."""
    _, *parts = re.split(r"^## ", page.read_text("utf-8"), flags=re.MULTILINE)
    return {title: body for title, _, body in (part.partition("\n") for part in parts)}


def options(command: str) -> list[list[str]]:
    """Every option of a command, with all its spellings."""
    return [p.opts for p in COMMANDS[command].params if p.opts[0].startswith("-")]


def mentioned(text: str) -> set[str]:
    """The options that stand in backticks in a text."""
    words = " ".join(re.findall(r"`([^`\n]+)`", text)).split()
    return {word for word in words if re.fullmatch(r"--?[A-Za-z][\w-]*", word)}


SHELL = [(page, words) for page in PAGES for _, text in blocks(page, "sh") for words in calls(text)]


@pytest.mark.parametrize("page", [README, LIBRARY], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "data").symlink_to(ROOT / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    found = list(blocks(page, "python"))
    assert found
    for above, source in found:
        exec(compile("\n" * above + source, str(page), "exec"), namespace)


def test_calls_are_found_in_pipelines() -> None:
    shell = "A=1 qinco encode x -o - | ssh host qinco decode - \\\n  -o y  # qinco comment\nmake demo\n"
    assert list(calls(shell)) == [["encode", "x", "-o", "-"], ["decode", "-", "-o", "y"]]


@pytest.mark.parametrize("words", [words for _, words in SHELL], ids=[f"{p.name}: {' '.join(w)}" for p, w in SHELL])
def test_command_lines_parse(words: list[str]) -> None:
    name, *arguments = words
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_reference_has_every_option(name: str) -> None:
    pages = sections(CLI)
    said = mentioned(pages[f"qinco {name}"]) | mentioned(pages["Options of several commands"])
    assert not [spellings for spellings in options(name) if not said & set(spellings)]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_reference_has_no_option_that_is_not_there(name: str) -> None:
    known = {spelling for spellings in options(name) for spelling in spellings}
    assert mentioned(sections(CLI)[f"qinco {name}"]) <= known


def test_shared_options_are_there() -> None:
    known = {spelling for name in COMMANDS for spellings in options(name) for spelling in spellings}
    known |= {"-h", "--help", "--version", "--debug"}
    assert mentioned(sections(CLI)["Options of several commands"]) <= known


def test_the_readme_opens_with_the_two_commands() -> None:
    assert next(blocks(README, "sh"))[1].split("\n") == ["make demo", "make test", ""]


def test_the_readme_has_every_preset_as_it_is() -> None:
    rows = re.findall(r"^\| `(qinco\S+)` \|(.*)\|$", sections(README)["Presets"], re.MULTILINE)
    wanted = {}
    for name, p in PRESETS.items():
        sizes = [p.M, p.K, p.L, p.E or "D", p.H, p.A, p.B, f"{p.model(128).parameters:,}", p.about]
        wanted[name] = list(map(str, sizes))
    assert {name: [cell.strip() for cell in row.split("|")] for name, row in rows} == wanted


def test_the_readme_has_a_line_for_every_room() -> None:
    core = {f"qinco_core/{p.name}" + "/" * p.is_dir() for p in (ROOT / "qinco_core").iterdir()}
    rooms = {name for name in core if re.search(r"/[a-z]\w*(\.py|/)$", name)}
    rooms |= {"qinco_cli/", "tests/", "benchmarks/", "examples/", "docs/"}
    assert set(re.findall(r"^\| `([\w/.]+)` \|", sections(README)["The house"], re.MULTILINE)) == rooms


def test_the_library_page_has_every_error() -> None:
    family = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "QincoError"}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", LIBRARY.read_text("utf-8"), re.MULTILINE)
    assert {name for name, _ in rows} == family
    assert not [name for name, base in rows if base not in {c.__name__ for c in getattr(errors, name).__mro__}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
