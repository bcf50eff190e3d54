"""What commands look like on a terminal, and how a screen is drawn again and again."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oialr_search.storage.records import StorageUnavailable
from oialr_search.terminal.tables import fitting_table, make_console
from oialr_search.terminal.values import number, printable, shown

Row = Mapping[str, Any]
Draw = Callable[[Console], RenderableType]

LOG_LINES = 20
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def show_screen(draw: Draw, every_s: float | None) -> None:
    """Draw once, or every so many seconds until Ctrl-C: on a terminal in place, else line by line.

    While the database cannot be reached, the last picture stays and says so.
    """
    console = make_console()
    if every_s is None:
        console.print(draw(console))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                for picture in _pictures(draw, console, every_s):
                    live.update(picture, refresh=True)
        else:
            for picture in _pictures(draw, console, every_s):
                console.print(picture)
                sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _pictures(draw: Draw, console: Console, every_s: float) -> Any:
    last: RenderableType = ""
    while True:
        try:
            last = draw(console)
            yield last
        except StorageUnavailable as error:
            yield Group(last, Text(f"trying again: {error}", style="bold red"))
        time.sleep(every_s)


def leaderboard_screen(
    title: str, rows: Sequence[Row], objectives: Sequence[str], console: Console
) -> RenderableType:
    """The rows of a leaderboard; with objectives, how many of them are on the Pareto front."""
    if objectives:
        front = sum(row["pareto"] for row in rows)
        title += f"; {front} on the Pareto front of {', '.join(objectives)}"
    return fitting_table(rows, title, console) if rows else f"{title}: no such individual"


def status_screen(status: Row, console: Console, now: datetime) -> RenderableType:
    """Where a search stands."""
    parts: list[RenderableType] = [_pairs(_status_lines(status, now))]
    islands = [{**row, "per_hour": row["per_hour"] or None} for row in status["islands"]]
    if islands:
        parts.append(fitting_table(islands, "islands", console))
    if status["ranks"]:
        ranks = [_rank(row) for row in status["ranks"]]
        parts.append(fitting_table(ranks, "running", console))
    if status["failures"]:
        parts.append(fitting_table(_failures(status["failures"]), "did not complete", console))
    return Group(*parts)


def _status_lines(status: Row, now: datetime) -> list[tuple[str, str]]:
    counts = ", ".join(
        f"{status[name]} {name.replace('_', ' ')}"
        for name in ("completed", "running", "queued", "lost", "failed", "timed_out", "pruned")
        if status.get(name)
    )
    lines = [
        ("search", f"{status['search']}: {status['task']}, {status['aim']}"),
        ("individuals", f"{status['begun']} of {status['expected']} begun"
         + (f": {counts}" if counts else "")),
    ]  # fmt: skip
    if confirming := status["confirming"]:
        lines.append(("confirming", f"{confirming['ended']} of {confirming['of']} trainings ended"))
    if best := status["best"]:
        trainable = best["trainable_percent"]
        share = "" if trainable is None else f", {number(trainable)} % trainable"
        if best.get("violation"):
            share += f"; nobody meets all constraints yet: violation {number(best['violation'])}"
        lines.append(
            ("best", f"individual {best['individual']}, fitness {number(best['fitness'])}{share}")
        )
    if status.get("front"):
        lines.append(("Pareto front", f"{status['front']} individual(s): see the leaderboard"))
    if status["epochs_saved"]:
        many = f"{status['pruned']} individual" + "s" * (status["pruned"] > 1)
        lines.append(("stopped early", f"{many}, which saved {status['epochs_saved']} epochs"))
    if more := status["outlook"]:
        gain, low, high = (number(x, 2) for x in (more["gain"], *more["gain_quartiles"]))
        lines.append(
            ("outlook", f"another {more['evaluations']} evaluations may lower it by {gain} "
             f"({low} to {high} in half of all searches)")
        )  # fmt: skip
    if launch := status["launch"]:
        lines.append(("launch", _launch(launch, now)))
        if status["per_hour"]:
            span = duration(status["per_hour_over_s"])
            pace = number(status["per_hour"], 3)
            lines.append(("pace", f"{pace} evaluations an hour, over {span}"))
        if last := status["last_finished_at"]:
            lines.append(("last ended", f"{_ago(last, now)} ago"))
    end = status["expected_end"]
    if not status["remaining"]:
        lines.append(("expected end", "complete"))
    elif end is None:
        stopped = launch and launch["ended_at"]
        why = "stopped: the same command goes on" if stopped else "unknown: no epoch has ended yet"
        lines.append(("expected end", why))
    else:
        left = duration((datetime.fromisoformat(end) - now).total_seconds())
        lines.append(("expected end", f"{_local(end)}, in {left}, if it goes on like this"))
    return lines


def _launch(launch: Row, now: datetime) -> str:
    text = (
        f"{launch['launch']}: {launch['world_size']} rank(s) on {launch['num_islands']} island(s), "
        f"from {launch['hostname']}"
    )
    if launch["ended_at"] is None:
        since = _ago(launch["started_at"], now)
        return f"{text}; runs since {_local(launch['started_at'])} ({since}), or was killed"
    return f"{text}; ended {_local(launch['ended_at'])} with exit code {launch['exit_code']}"


def _rank(row: Row) -> Row:
    of = "" if row["epochs"] is None else f" of {row['epochs']}"
    return {
        "rank": row["world_rank"],
        "island": row["island"],
        "individual": row["individual"],
        "attempt": row["attempt"],
        "epoch": f"{row['epoch']}{of}",
        "host": row["hostname"],
        "device": row["device"],
        "since": f"{_local(row['started_at'])} ({duration(row['running_s'])})",
        "last heard": "" if row["silent_s"] is None else f"{duration(row['silent_s'])} ago",
    }


def _failures(rows: Sequence[Row]) -> Sequence[Row]:
    return [
        {
            "evaluations": row["evaluations"],
            "status": row["status"],
            "reason": row["reason"],
            "for example": "" if row["example"] == row["reason"] else row["example"],
        }
        for row in rows
    ]


def individual_screen(individual: Row, console: Console) -> RenderableType:
    """One individual, from its parents to the command that trains it again."""
    head = f"individual {individual['individual']}: {individual['status']}"
    if individual["fitness"] is not None:
        head += f", fitness {number(individual['fitness'], 6)}"
    if individual["deviation"] is not None:
        head += f" ± {number(individual['deviation'], 3)}, {individual['seeds']} seeds"
    if individual["violation"]:
        head += f", breaks a constraint: violation {number(individual['violation'])}"
    parts: list[RenderableType] = [
        Text(head, style="bold"),
        _pairs(
            [
                ("search", f"{individual['search']}: {individual['task']}, {individual['aim']}"),
                ("origin", f"{individual['origin']}, island {individual['island']}, rank "
                 f"{individual['island_rank']} there, generation {individual['generation']}"),
                *(("parent", _parent(parent)) for parent in individual["parents"]),
                *_repeat_lines(individual),
            ]
        ),
        fitting_table(_values(individual), "hyperparameters", console),
    ]  # fmt: skip
    for evaluation in individual["evaluations"]:
        parts += _evaluation(evaluation, console)
    if individual["train_again"]:
        parts.append(Text("to train it again", style="italic"))
        parts += [
            Text(f"  {printable(line)}", overflow="fold") for line in individual["train_again"]
        ]
    return Group(*parts)


def _repeat_lines(individual: Row) -> list[tuple[str, str]]:
    """Whom it repeats with another seed, and who repeats it."""
    lines = []
    if individual["repeat_of"] is not None:
        lines.append(("repeats", f"individual {individual['repeat_of']}, with another seed"))
    for repeat in individual["repeats"]:
        fitness = repeat["status"]
        if repeat["fitness"] is not None:
            fitness = f"fitness {number(repeat['fitness'], 6)}"
        lines.append(
            ("measured again", f"individual {repeat['individual']}: {fitness}, seed "
             f"{repeat['seed']} ({repeat['origin']})")
        )  # fmt: skip
    return lines


def _parent(parent: Row) -> str:
    if "status" not in parent:
        return f"{parent['individual']}, which is not in the database"
    fitness = parent["status"]
    if parent["fitness"] is not None:
        fitness = f"fitness {number(parent['fitness'], 6)}"
    where = f"island {parent['island']}, generation {parent['generation']}"
    differing = len(parent["differences"])
    return f"{parent['individual']}: {fitness}, {where}; {differing} value(s) differ"


def _values(individual: Row) -> Sequence[Row]:
    """A line for each hyperparameter: its value, the parents' where they differ, the file's."""
    rows = []
    for name, value in individual["hyperparameters"].items():
        row: dict[str, Any] = {"hyperparameter": name, "value": shown(value, "null")}
        for parent in individual["parents"]:
            if "differences" in parent:
                other = parent["differences"].get(name)
                row[f"parent {parent['individual']}"] = (
                    shown(other) if name in parent["differences"] else "same"
                )
        row["search file"] = shown(individual["search_file"][name], "null")
        row["searched"] = _searched(individual["space"].get(name, {}))
        rows.append(row)
    return rows


def _searched(limits: Row) -> str:
    """Between what a hyperparameter is searched, and where."""
    text = ""
    if "low" in limits:
        scale = ", log" if limits.get("scale") == "log" else ""
        step = f", step {number(limits['step'])}" if limits.get("step") else ""
        text = f"{number(limits['low'])} to {number(limits['high'])}{scale}{step}"
    elif "choices" in limits:
        text = _either(limits["choices"])
    for name, values in limits.get("when", ()):
        text += f", when {name} is {_either(values)}"
    return text


def _either(values: Sequence[Any]) -> str:
    return " | ".join(shown(value, "null") for value in values)


def _evaluation(evaluation: Row, console: Console) -> list[RenderableType]:
    title = f"attempt {evaluation['attempt']}: {evaluation['status']}"
    lines = []
    if evaluation["reason"]:
        lines.append(("why", printable(evaluation["reason"])))
    if evaluation["exit_signal_name"]:
        lines.append(("killed by", evaluation["exit_signal_name"]))
    elif evaluation["exit_code"]:
        lines.append(("exit code", str(evaluation["exit_code"])))
    took = "" if evaluation["duration_s"] is None else f", {duration(evaluation['duration_s'])}"
    lines += [
        ("where", f"{evaluation['host']}, rank {evaluation['world_rank']} of launch "
         f"{evaluation['launch']}, {evaluation['device'] or 'no device named'}"),
        ("when", f"{_local(evaluation['started_at'])}{took}"),
    ]  # fmt: skip
    resumed = evaluation["resumed_epoch"]
    went_on = f", the first {resumed} taken over from an earlier attempt" if resumed else ""
    lines.append(("epochs", f"{evaluation['epochs'] or 0}{went_on}"))
    if evaluation["trainable_percent"] is not None:
        lines.append(
            ("parameters", f"{shown(evaluation['trainable_percent'])} % trainable, "
             f"{shown(evaluation['compression_percent'])} % of the full-rank network's in all")
        )  # fmt: skip
    used = {name: value for name, value in evaluation["resources"].items() if value is not None}
    if used:
        lines.append(("used", ", ".join(f"{name} {shown(value)}" for name, value in used.items())))
    gone = "" if evaluation["files"] is not None else " (not on this machine)"
    lines += [("folder", f"{evaluation['folder']}{gone}"), ("log", evaluation["log"])]
    parts: list[RenderableType] = [Text(f"\n{title}", style="bold"), _pairs(lines)]
    if evaluation["course"]:
        course = [{"metric": name, **values} for name, values in evaluation["course"].items()]
        parts.append(fitting_table(course, "metrics over the epochs", console))
    if evaluation["inner_ranks"]:
        ranks = [
            {"layer": layer, "full": full, "last": rest[-1], "percent": 100 * rest[-1] / full,
             "course": " ".join(map(str, rest))}
            for layer, (full, *rest) in evaluation["inner_ranks"].items()
        ]  # fmt: skip
        parts.append(fitting_table(ranks, "inner ranks", console))
    if evaluation["log_tail"]:
        tail = printable(evaluation["log_tail"].rstrip()).splitlines()[-LOG_LINES:]
        parts.append(Text("the end of its log", style="italic"))
        parts += [Text(f"  {line}", overflow="fold") for line in tail]
    return parts


def _pairs(lines: Sequence[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for name, text in lines:
        grid.add_row(Text(name, style="bold"), Text(text, overflow="fold"))
    return grid


def duration(seconds: float) -> str:
    """Two units at most: `2 h 5 min`."""
    left = max(round(seconds), 0)
    parts: list[str] = []
    for size, unit in UNITS:
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _ago(iso: str, now: datetime) -> str:
    return duration((now - datetime.fromisoformat(iso)).total_seconds())


def _local(iso: str) -> str:
    """A time as the clock on the wall has it."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
