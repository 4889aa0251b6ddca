"""The command line: every command, in the order of `--help`, and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from rlhf_bench import __version__
from rlhf_bench.cli.cache import cache
from rlhf_bench.cli.check import check
from rlhf_bench.cli.compare import compare
from rlhf_bench.cli.evaluate import evaluate
from rlhf_bench.cli.export import export
from rlhf_bench.cli.init import init
from rlhf_bench.cli.judge import judge
from rlhf_bench.cli.ls import ls
from rlhf_bench.cli.manifest import manifest
from rlhf_bench.cli.options import (
    say_problems,
    write_line,
)
from rlhf_bench.cli.report import report
from rlhf_bench.cli.run import run
from rlhf_bench.cli.schema import schema
from rlhf_bench.cli.show import show
from rlhf_bench.cli.theory import theory
from rlhf_bench.cli.track import track
from rlhf_bench.cli.verify import verify
from rlhf_bench.core.errors import (
    BadInput,
    RunFailed,
    stop_behind,
)
from rlhf_bench.core.streams import outlive_readers
from rlhf_bench.core.text import one_line, printable
from rlhf_bench.experiment.shutdown import raise_on_signals

UsageError: Any = typer.BadParameter.__base__  # typer does not export it

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Compare RLHF with DPO at identical compute: one recipe file, several arms, many seeds.\n\n"
        "Exit codes: 0 done; 1 failed; 2 the recipe or the data is wrong; 129, 130 or 143 interrupted: the same command resumes."
    ),
)


def _version(asked: bool) -> None:
    if asked:
        write_line(f"rlhf-bench {__version__}")
        raise typer.Exit()


@app.callback()
def everywhere(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for command in (
    init,
    schema,
    run,
    check,
    manifest,
    ls,
    show,
    compare,
    report,
    evaluate,
    judge,
    verify,
    export,
    track,
    cache,
):
    app.command()(command)
app.add_typer(theory, name="theory")


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command; its last line on failure names the cause."""
    try:
        command()
    except BadInput as error:
        say_problems(error)
        return 2
    except RunFailed as error:
        print(f"failed: {one_line(str(error))}", file=sys.stderr)
        return 1
    except UsageError as error:
        error.show()
        return error.exit_code
    except BaseException as error:
        if (stop := stop_behind(error)) is None:
            raise
        print(stop.last_line, file=sys.stderr)
        return 128 + stop.number
    return 0


def show_traceback(*raised: Any) -> None:
    """An error of the program itself, with its traceback. The message may quote data, so it is escaped."""
    print(printable("".join(traceback.format_exception(*raised))), end="", file=sys.stderr)


def main() -> None:
    raise_on_signals()
    outlive_readers()
    sys.excepthook = show_traceback
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(exit_code(lambda: app(standalone_mode=False)))
