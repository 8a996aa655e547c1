"""The application: commands, global options, and how failures end."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qinco_cli import (
    centroids,
    convert,
    decode,
    encode,
    evaluate,
    export,
    fetch,
    groundtruth,
    import_,
    index,
    info,
    merge,
    options,
    pairwise,
    presets,
    search,
    train,
    tune,
    verify,
)
from qinco_core.errors import QincoError


class _Commands(TyperGroup):
    """The group of all commands; ends their failures before Typer's own handlers see them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (QincoError, KeyboardInterrupt, MemoryError, OSError, EOFError) as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            _drop_output()
            sys.exit(_explain(error))


app = typer.Typer(
    name="qinco",
    cls=_Commands,
    help="Compress vectors to a few bytes each with QINCo2, and get them back.",
    epilog=options.example("qinco train --preset qinco2-S data.fvecs"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MODULES = (
    *(train, centroids, encode, decode, pairwise, index, search, tune, evaluate, info, verify, presets),
    *(import_, export, groundtruth, fetch, convert, merge),
)
for module in _MODULES:
    module.register(app)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"qinco {version('qinco')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit 0 done, 1 the work failed, 2 wrong usage, 130 interrupted, 141 broken pipe."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # wherever it stands
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(args=arguments)
    except Exception as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's way to say it
            sys.exit(_explain(MemoryError(str(error).rpartition(": ")[2])))
        print(f"qinco: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _drop_output() -> None:
    """Write out what stdout still holds; where it takes no more, keep the interpreter from trying again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException) -> int:
    """Say on stderr what went wrong, in one line; returns the exit code."""
    code, text = 1, str(error)
    if isinstance(error, BrokenPipeError):
        return 141  # whoever read our output has enough
    if isinstance(error, KeyboardInterrupt):
        code, text = 130, text or "interrupted; start again with the same command"
    elif isinstance(error, MemoryError):
        text = f"out of memory ({text}); use --limit, or a smaller model"
    elif isinstance(error, QincoError):
        code = error.exit_code
    print("qinco:", " ".join(text.splitlines()), file=sys.stderr)
    return code
