"""The command line: the group, exit codes, and what happens when something goes wrong."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import click

import vitsense
from vitsense.cli_analyze import analyze, demo
from vitsense.cli_distill import distill
from vitsense.cli_export import export
from vitsense.cli_import import import_
from vitsense.cli_info import completion, env, models
from vitsense.cli_output import Session, debug_option, say
from vitsense.cli_plan import plan
from vitsense.cli_profile import profile
from vitsense.cli_qat import qat
from vitsense.cli_report import report
from vitsense.errors import AlreadySaidError, ProcessLostError, VitsenseError
from vitsense.freed_memory import keep_freed_memory
from vitsense.signals import handling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

INTERNAL_ERROR, INTERRUPTED, USAGE_ERROR = 4, 130, 2

EXIT_CODES = """\b
Exit codes:
  0    done
  1    a limit that you set was exceeded
  2    an argument, or the content of a file, is wrong
  3    weights, data, a run or a plan cannot be found or reached
  4    internal error, or a model that cannot be measured
  130  interrupted (Ctrl-C or SIGTERM), or another process was lost; the same command continues

Results go to standard output; progress, notes and errors to standard error. NO_COLOR is honoured.
"""


@click.group(
    "vitsense",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(vitsense.__version__, prog_name="vitsense", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Show where a vision model breaks under quantization.

    \b
    Start here:
      vitsense demo                                      the whole chain, offline
      vitsense analyze --model swin_t --compare resnet50 --data imagenet/val
      vitsense report                                    report.html and report.pdf
      vitsense plan --budget avg-bits=5                  another budget, nothing measured again
      vitsense qat --plan vitsense-runs/RUN/plan.json    train what the plan quantizes
      vitsense export --format onnx                      integers that run elsewhere
    """


for _command in (
    analyze,
    report,
    plan,
    profile,
    qat,
    distill,
    export,
    import_,
    demo,
    models,
    env,
    completion,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Entry point of the program: run the command that was typed and exit with its code."""
    # OpenMP reads it when torch is loaded. On a machine with other work, threads that spin while
    # they wait make a small model take three times as long (measured with two processors).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; everything raised becomes one sentence."""
    session = Session(arguments=tuple(arguments))
    with handling([signal.SIGTERM], _interrupt):  # a stopped job keeps what it has
        try:
            code = cli.main(
                args=list(arguments),
                prog_name="vitsense",
                standalone_mode=False,
                obj=session,
                color=False if os.environ.get("NO_COLOR") else None,
            )
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  never a bare traceback
            return _ended(session, error)
        except SystemExit:  # click's only one: the reader of help went away (``| head``)
            return 0
    return code if isinstance(code, int) else 0


def _ended(session: Session, error: BaseException) -> int:
    """Say why the command ended, once, and give its exit code."""
    code, sentence = _explained(session, error)
    if sentence and session.speaks:
        if session.debug and not isinstance(error, (KeyboardInterrupt, click.Abort)):
            say("".join(traceback.format_exception(error)))
        say(sentence)
    return code


def _explained(session: Session, error: BaseException) -> tuple[int, str]:
    if isinstance(error, AlreadySaidError):
        return error.exit_code, ""
    if isinstance(error, ProcessLostError):
        return error.exit_code, f"Error: {error}\n  {session.command}"
    if isinstance(error, VitsenseError):
        return error.exit_code, f"Error: {error}"
    if isinstance(error, click.ClickException):
        if session.speaks:
            error.show()
        return USAGE_ERROR, ""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, _interrupted(session)
    return INTERNAL_ERROR, _unexpected(session, error)


def _interrupted(session: Session) -> str:
    if not session.resumable:
        return "Interrupted."
    return (
        f"Interrupted; what was measured is kept. The same command continues:\n  {session.command}"
    )


def _unexpected(session: Session, error: BaseException) -> str:
    reason = str(error).strip().partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"Error: out of memory ({reason}); use a smaller --batch-size, for example 1."
    line = f"Internal error: {type(error).__name__}: {reason}".rstrip(":. ") + "."
    where = f" The traceback is in {session.log}." if session.log is not None else ""
    return line + where + ("" if session.debug else " For the traceback, run with --debug.")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
