"""The `chainrule` command: parses, calls, and turns every error into one message and an exit code."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from chainrule.cli import (
    check,
    check_gradients,
    compress,
    evaluate,
    export,
    find_lr,
    merge,
    plan,
    predict,
    reproduce,
    search,
    serve,
    show,
    train,
    watch,
)
from chainrule.cli.output import FromOutsideError, print_json
from chainrule.cli.submit import submitted
from chainrule.errors import ChainruleError, ElsewhereError, Problem, ShortageError, UserError, Where
from chainrule.system.memory import is_shortage
from chainrule.system.progress import console, visible
from chainrule.system.rank import rank
from chainrule.version import __version__

app = typer.Typer(
    help="Fine-tune pretrained models on an ordinary computer, and know whether it helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# Typer keeps the exceptions of its parser to itself; this is the parent of one that it does export.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class Terminated(BaseException):
    """SIGTERM arrived."""


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"chainrule {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    """Options before the verb."""


_VERBS = (
    check.check,
    plan.plan,
    find_lr.find_lr,
    train.train,
    search.search,
    evaluate.evaluate,
    predict.predict,
    compress.compress,
    merge.merge,
    export.export,
    reproduce.reproduce,
    check_gradients.check_gradients,
    serve.serve,
    watch.watch,
    show.show,
)
for _verb in _VERBS:
    app.command()(_verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 our fault, 2 wrong input, 3 a gate said no, 130 Ctrl-C, 143 SIGTERM."""
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    signal.signal(signal.SIGTERM, _terminate)
    if rank():  # of several processes that do the same, the first one alone has results to tell
        sys.stdout = io.StringIO()
    try:
        code = _carried_out(words)
    except typer.Exit as stop:
        code = stop.exit_code
    except _ParserError as error:
        code = _report(_usage_error(error), words)
    except ChainruleError as error:
        code = _report(error, words)
    except (KeyboardInterrupt, typer.Abort):
        code = _report(ChainruleError("Stopped by Ctrl-C."), words, 130)
    except Terminated:
        code = _report(ChainruleError("Stopped by SIGTERM."), words, 143)
    except BrokenPipeError:
        code = 0
    except Exception as error:
        if "--debug" in words:
            raise
        code = _report(_shortage(error) if is_shortage(error) else _our_fault(error), words)
    sys.exit(code if isinstance(code, int) else 0)


def _carried_out(words: list[str]) -> Any:
    try:
        return app(words, standalone_mode=False)
    except FromOutsideError:
        return submitted(words)


def _report(error: ChainruleError, words: list[str], code: int | None = None) -> int:
    if "--debug" in words:
        traceback.print_exc()
    if rank():
        told = error.message if isinstance(error, ElsewhereError) else error
        console().print(visible(f"Error in process {rank()}: {told}"), markup=False)
    elif "--json" in words:
        print_json(error.as_dict())
    else:
        console().print(visible(f"Error: {error}"), markup=False, style="red" if console().is_terminal else None)
    return error.exit_code if code is None else code


def _usage_error(error: Any) -> UserError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "chainrule"
    parameter = getattr(error, "param", None)
    hint = getattr(error, "param_hint", None) or (parameter.opts[0] if parameter is not None else None)
    problem = Problem(
        where=Where(field=str(hint) if hint else None),
        expected=f"what `{command} --help` says",
        got=error.format_message(),
        todo=f"See `{command} --help`.",
    )
    return UserError("The command is not understood.", [problem])


def _shortage(error: Exception) -> ShortageError:
    problem = Problem(
        expected="memory for this command",
        got=f"{type(error).__name__}: {error}".strip(": "),
        todo="Close other programs, or give it less at once; a training that was begun goes on with --resume.",
    )
    return ShortageError("There is not enough memory.", [problem])


def _our_fault(error: Exception) -> ChainruleError:
    problem = Problem(
        expected="no such error: this is a mistake in Chainrule, not in your input",
        got=f"{type(error).__name__}: {error}",
        todo="Run it again with `chainrule --debug …` and report the trace.",
    )
    return ChainruleError("Something went wrong inside Chainrule.", [problem])


def _terminate(number: int, frame: FrameType | None) -> Any:
    raise Terminated
