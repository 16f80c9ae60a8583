"""The command line: one function a command, each a call into the part of turborec that owns the topic."""

import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from turborec import __version__
from turborec.cli import bench, bridges, data, drift, launch, recbole, recipes, reports, runs, search, study
from turborec.cli._show import console
from turborec.errors import InterruptedRunError, UserError
from turborec.shown import visible

app = typer.Typer(
    help="turborec trains recommenders, from raw interactions to a result that can be trusted and used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(runs.app)
app.add_typer(reports.app)
app.add_typer(bridges.app)
app.add_typer(bench.app)
app.add_typer(study.app)
app.add_typer(search.app)
app.add_typer(launch.app, name="launch")
app.add_typer(launch.verifying)
app.add_typer(data.app, name="data")
app.add_typer(drift.app, name="drift")
app.add_typer(recipes.app, name="recipe")
app.add_typer(recbole.app, name="recbole")


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False) -> None:
    """Print the version."""
    if show:
        console.print(f"turborec {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command; a user's mistake is one paragraph and exit code 2, an interrupted run 130 or 75."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would tell of itself
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is loaded: threads that wait give way soon. Beside other work on the machine, waiting threads that
        # spin for long made training nine times slower (docs/log.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(standalone_mode=True)
    except InterruptedRunError as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved: one more Ctrl-C would only disturb the leaving
        print(f"\n{visible(str(error))}", file=sys.stderr)
        sys.exit(error.code)
    except UserError as error:
        print(f"turborec{_process()}: {visible(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"turborec: {place}{error.strerror or error}. Mend the place, or name another.", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        _out_of_memory(error)
    except RuntimeError as error:
        from turborec.engine.hardware import out_of_memory

        if not out_of_memory(error):
            raise
        _out_of_memory(error)


def _process() -> str:
    """Which one speaks, where a run has several."""
    return f" (process {rank})" if (rank := os.environ.get("RANK", "0")) != "0" else ""


def _out_of_memory(error: Exception) -> NoReturn:
    told = str(error).splitlines()[0] if str(error) else "none is left"
    print(
        f"turborec: there is not enough memory ({told}). Lower batches.tokens, batches.max_length or model.width.",
        file=sys.stderr,
    )
    sys.exit(2)
