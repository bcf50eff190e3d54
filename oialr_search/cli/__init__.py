"""The commands, thin: arguments in, one call, rows out. Heavy imports are inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import typer

from oialr_search.cli import draw, look, run, train
from oialr_search.cli.exits import exit_code_of

if TYPE_CHECKING:
    from oialr_search.launch.stop_request import StopRequest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Search the hyperparameters of OIALR low-rank training, and train the best.",
)
COMMANDS: Mapping[str, Sequence[Callable[..., None]]] = {
    "Search": (run.run, run.enqueue, run.import_, run.upgrade, run.validate, run.schema),
    "Look": (look.status, look.leaderboard, look.show, look.log),
    "Draw": (draw.dashboard, draw.plot, draw.report),
    "Train": (train.export, train.train),
}
for group, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=group)(command)


def main(stop: StopRequest | None = None) -> NoReturn:
    """Run a command; the user's mistakes end in one line each and the exit code of their kind.

    `stop` is what a launch has listened with since the process began.
    """
    try:
        code = app(standalone_mode=False, obj=stop)
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
    sys.exit(code or 0)
