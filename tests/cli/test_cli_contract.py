"""What every command keeps to: help, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_line import BASE, LEARN, QUERIES, command, done, environment, finish, run, spawn, start

from qinco_cli.main import app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)  # type: ignore[attr-defined]
HEAVY = ["torch", "numpy", "h5py", "pyarrow", "faiss", "matplotlib"]


def test_commands_are_those_of_the_documentation():
    named = (
        "centroids convert decode encode eval export fetch groundtruth import index info "
        "merge pairwise presets search train tune verify"
    )
    assert named.split() == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name):
    for parameter in GROUP.commands[name].params:
        assert parameter.help, parameter.name
        assert parameter.help[-1] in ".])", parameter.name


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_ends_with_an_example_that_parses(name):
    lines = done(*([name] if name else []), "--help").text.rstrip().splitlines()
    assert lines[-2].strip() == "Example:"
    line = lines[-1].strip()
    calls = [shlex.split(part) for part in line.split("|")]
    if name:
        assert calls[0][:2] == ["qinco", name]
    for call in calls:
        _, called, *arguments = call[call.index("qinco") :]
        GROUP.commands[called].make_context(called, arguments)


def test_the_used_by_line_parses():
    GROUP.commands["train"].make_context("train", ["--preset", "qinco2-S", "data.fvecs"])


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from qinco_cli.main import main\n"
        f"for name in {['', *COMMANDS]!r}:\n"
        "    sys.argv = ['qinco', *([name] if name else []), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert ended.stdout.splitlines()[-1] == "heavy: []", ended.stderr


def test_module_and_console_script_are_the_same():
    script = Path(sys.executable).with_name("qinco")
    if not script.exists():
        pytest.skip("qinco is not installed, only on the path")
    calls = [subprocess.run([*call, "--help"], capture_output=True) for call in ([script], command())]
    assert calls[0].stdout.replace(b"python -m qinco_cli", b"qinco") == calls[1].stdout.replace(
        b"python -m qinco_cli", b"qinco"
    )
    assert [call.returncode for call in calls] == [0, 0]


def test_version():
    assert done("--version").text.startswith("qinco 0.")


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["info"], ["info", "--nonsense", "x"], ["encode", BASE, "--limit", "many"]]
)
def test_wrong_usage_exits_2_and_says_nothing_on_stdout(arguments):
    ended = run(*arguments)
    assert ended.code == 2
    assert not arguments or ended.out == b""
    assert "Traceback" not in ended.err


def test_traceback_only_with_debug(tmp_path):
    missing = tmp_path / "none.fvecs"
    assert "none.fvecs does not exist" in run("info", missing).complaint
    for arguments in (["--debug", "info", missing], ["info", missing, "--debug"]):
        ended = run(*arguments)
        assert ended.code == 2
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("qinco: ")


def test_a_failure_nobody_foresaw_is_one_line_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "qinco_core.config", None)
    ended = run("presets")
    assert ended.code == 1
    assert "--debug shows where" in ended.complaint
    with pytest.raises(ImportError):
        run("presets", "--debug")


@pytest.mark.parametrize(
    "arguments",
    [
        ["presets"],
        ["info", BASE],
        ["info", "{codes}"],
        ["info", "{model}"],
        ["verify", "{codes}"],
        ["verify", "{model}"],
        ["train", LEARN, "--preset", "qinco2-XS", "--limit", 3000, "--dry-run", "-o", "{tmp}/m.h5"],
        ["encode", BASE, "--model", "{model}", "--dry-run", "-o", "{tmp}/c.h5"],
        ["encode", BASE, "--model", "{model}", "--limit", 100, "-o", "{tmp}/c.h5"],
        ["decode", "{codes}", "--model", "{model}", "--dry-run", "-o", "{tmp}/new/x.npy"],
        ["decode", "{codes}", "--model", "{model}", "-o", "{tmp}/x.npy"],
        ["eval", BASE, "--model", "{model}", "--limit", 100],
    ],
    ids=lambda a: "-".join(str(x) for x in a if str(x) in [*COMMANDS, "--dry-run", "{codes}", "{model}"]),
)
def test_json_is_all_of_stdout_and_text_has_the_same_command(arguments, model, codes, tmp_path):
    filled = [str(a).format(model=model, codes=codes, tmp=tmp_path) for a in arguments]
    assert isinstance(json.loads(done(*filled, "--json").out), dict)
    if "--dry-run" in filled:
        assert list(tmp_path.iterdir()) == []
    if "-o" not in filled or "--dry-run" in filled:
        assert done(*filled).text.strip()


def test_notes_go_to_stderr_and_quiet_has_none(model, tmp_path):
    loud = done("encode", BASE, "--model", model, "--limit", 100, "-o", tmp_path / "a.h5")
    assert loud.out == b""
    assert "encoding on cpu" in loud.err
    assert "a.h5" in loud.err
    quiet = done("encode", BASE, "--model", model, "--limit", 100, "-o", tmp_path / "b.h5", "-q")
    assert (quiet.out, quiet.err) == (b"", "")


def test_what_a_dry_run_says(model, codes, tmp_path):
    found = json.loads(done("encode", BASE, "--model", model, "-o", tmp_path / "c.h5", "--dry-run", "--json").out)
    assert (found["vectors"], found["bytes_per_vector"], found["output_bytes"]) == (10_000, 2, 20_000)
    assert found["seconds"] > 0
    found = json.loads(done("decode", codes, "--model", model, "-o", "-", "--dry-run", "--json").out)
    assert found["output_bytes"] == 10_000 * 128 * 4


def test_info_of_vectors_agrees_with_their_description():
    found = json.loads(done("info", QUERIES, "--json").out)
    assert (found["format"], found["vectors"], found["D"], found["dtype"]) == ("fvecs", 500, 128, "float32")


def test_presets_fit_the_dimension():
    found = json.loads(done("presets", "--dim", 96, "--json").out)
    assert list(found) == ["qinco2-XS", "qinco2-S", "qinco2-M", "qinco2-L", "qinco1", "qinco1-LR"]
    assert found["qinco2-S"]["parameters"] != json.loads(done("presets", "--json").out)["qinco2-S"]["parameters"]


@pytest.mark.parametrize("kind", ["stream", "raw", "vectors", "report"])
def test_a_reader_that_leaves_is_no_failure(kind, model, codes):
    arguments = {
        "stream": ["encode", BASE, "--model", model, "-o", "-", "-q"],
        "raw": ["encode", BASE, "--model", model, "-o", "-", "-q", "--raw"],
        "vectors": ["decode", codes, "--model", model, "-o", "-", "--format", "fvecs", "-q"],
        "report": ["presets"],
    }[kind]
    process = start(*arguments)
    assert process.stdout is not None
    if kind in ("stream", "vectors"):  # more than a pipe holds
        assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    process.stdout = None
    ended = finish(process)
    assert (ended.code, ended.err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("kind", ["stream", "raw", "vectors", "report"])
def test_a_full_disk_behind_stdout(kind, model, codes):
    arguments = {
        "stream": ["encode", BASE, "--model", model, "-o", "-", "-q", "--limit", 100],
        "raw": ["encode", BASE, "--model", model, "-o", "-", "-q", "--raw", "--limit", 100],
        "vectors": ["decode", codes, "--model", model, "-o", "-", "--format", "fvecs", "-q"],
        "report": ["presets", "--json"],
    }[kind]
    with Path("/dev/full").open("wb") as full:
        ended = spawn(*arguments, stdout=full)
    assert ended.code == 1
    assert "no room left to write <stdout>" in ended.complaint
