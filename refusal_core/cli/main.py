"""The command ``refusal``: its verbs, and how they end.

Results go to stdout, progress and errors to stderr. Exit status 0 when done, 1 for what the user can mend (one line
says what) and for what nobody foresaw (one line says where its details are), 2 for a command that cannot be understood,
130 when interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from refusal_core import __version__
from refusal_core.cli.reporting import Reporter
from refusal_core.errors import RefusalError
from refusal_core.waiting_threads import sleep_while_waiting


def _shown_default(value: object) -> object:
    """Return a default as help shows it, or ``None`` for one that says nothing."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or None
    return None if value is False else value


app = App(
    name="refusal",
    help="Measure refusal directions in chat models.",
    version=__version__,
    version_flags="--version",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=(), show_default=_shown_default),
)
measure = App(name="measure", help="Measure something more on a run, and store it in the run's folder.")

# By name, so that a verb imports what it needs and no more; without it `--help` would import all of them.
_VERBS = {
    "run": ("making:run", "Measure a model's refusal directions on a contrast set; prints the run's name."),
    "prompts": ("prompts:prompts", "Show which prompts would be read from a file or set, and which are left out."),
    "list": ("runs:list_runs", "List the runs in the cache."),
    "show": ("runs:show", "Show a run's table of layers, or what was measured on it."),
    "evidence": ("runs:evidence", "Show the answers to the questions, and their numbers layer by layer."),
    "score": ("scoring:score", "Project prompts of your own on a run's direction at every site."),
    "refit": ("making:refit", "Make a run again without the prompts that are marked; prints its name."),
    "import-direction": (
        "making:import_direction",
        "Put someone else's vectors to the questions on a run's prompts; prints the new run's name.",
    ),
    "fetch": ("making:fetch", "Make a known model or a hub model ready to open; prints where it is."),
    "verify": ("runs:verify", "Check every file of a run against its manifest."),
    "rename": ("runs:rename", "Give a run a title; its name stays."),
    "delete": ("runs:delete", "Remove a run and everything measured on it; it can be restored for a week."),
    "restore": ("runs:restore", "Put a deleted run back into the cache."),
    "pack": ("sharing:pack", "Write a run to one zip file, to send to others."),
    "unpack": ("sharing:unpack", "Check a packed run that someone sent and put it into the cache."),
    "push": ("sharing:push", "Put a run on the Hugging Face hub, as a private data set; prints its address."),
    "pull": ("sharing:pull", "Check a run of the Hugging Face hub and put it into the cache; prints its name."),
    "report": ("sharing:report", "Write a run's report: tables, figures and one page."),
    "dashboard": (
        "serving:dashboard",
        "Serve the dashboard until it is interrupted; it prints the addresses that open it.",
    ),
}
_MEASUREMENTS = {
    "behaviour": ("measuring:behaviour", "Measure how the model answers a run's prompts."),
    "intervention": ("measuring:intervention", "Ablate and add a run's direction, and measure what changes."),
    "judgement": (
        "measuring:judgement",
        "Steer along harm and along refusal: does the model's judgement move, or its refusing alone?",
    ),
    "subspace": ("measuring:subspace", "Count and compare the directions of a run's categories and estimators."),
    "positions": (
        "measuring:positions",
        "Read a run's prompts where their instruction ends, and test the direction there.",
    ),
    "trajectory": (
        "measuring:trajectory",
        "Follow the projection along the model's replies, token by token.",
    ),
    "attribution": (
        "measuring:attribution",
        "Find which parts of the model add to a run's direction, and which words it would write.",
    ),
}
for _app, _commands in ((app, _VERBS), (measure, _MEASUREMENTS)):
    for _place, (_name, (_function, _help)) in enumerate(_commands.items()):
        _app.command(f"refusal_core.cli.{_function}", name=_name, help=_help, sort_key=_place)
app.command(measure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    sleep_while_waiting()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command, bound, injected = app.parse_args(given, print_error=False, exit_on_error=False)
        with Reporter(bound.arguments.get("progress_file")) as reporter:
            if "reporter" in injected:
                bound.arguments["reporter"] = reporter
            command(*bound.args, **bound.kwargs)
            sys.stdout.flush()
    except CycloptsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RefusalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it; Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # nobody foresaw it; the user gets a line, whoever mends it the details
        # Not above: every command would wait for it.
        from refusal_core.error_log import log_failure

        print(f"error: {log_failure(error)}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """Run the command that the process was started with, and exit with its status."""
    # Asked to end, it ends as if interrupted: nothing half-written is left, and the progress file says so.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
