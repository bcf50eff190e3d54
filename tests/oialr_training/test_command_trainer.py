"""A program of one's own as an evaluation: what it is told, what it reports, how it ends."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from oialr_training.command_trainer import REPORT_MODULE, CommandTrainer, read_report
from oialr_training.errors import ConfigError, KnownError
from oialr_training.failures import of_machine
from oialr_training.protocol import Epoch, Evaluate, Event, Prepare, Ready, Started, Stop
from oialr_training.tasks import validate_training
from oialr_training.trainer import Interrupted

from .process import gone, started
from .programs import Programs

TWO_EPOCHS = """
report '{"epoch": 1, "loss": 0.5, "grad_norm": 3}'
report '{"epoch": 2, "step": 90, "loss": 0.25}'
"""


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_what_it_reports_are_its_epochs_and_its_result(programs: Programs) -> None:
    result = programs.run(TWO_EPOCHS)
    assert result.metrics == {"epoch": 2.0, "loss": 0.25}
    assert [type(event) for event in programs.events] == [Started, Epoch, Epoch]
    assert programs.epochs == {1: {"loss": 0.5, "grad_norm": 3.0}, 2: {"loss": 0.25}}
    steps = [event.step for event in programs.events if isinstance(event, Epoch)]
    assert steps == [1, 90]
    assert (result.trainable_percent, result.compression_percent) == (None, None)


def test_a_report_without_epoch_is_of_the_end(programs: Programs) -> None:
    result = programs.run("""report '{"epoch": 1}'; report '{"loss": 2, "test_loss": 3}'""")
    assert result.metrics == {"epoch": 1.0, "loss": 2.0, "test_loss": 3.0}


def test_the_last_line_needs_no_line_break(programs: Programs) -> None:
    assert programs.run("""printf '{"loss": 2}' >> $OIALR_REPORT""").metrics == {"loss": 2.0}


def test_what_it_may_also_tell(programs: Programs) -> None:
    result = programs.run(
        """report '{"loss": 2, "trainable_percent": 9.5, "samples_per_s": 50,
        "peak_gpu_memory_bytes": 1024}'""".replace("\n", "")
    )
    assert result.trainable_percent == 9.5
    assert result.resources.samples_per_s == 50.0
    assert result.resources.peak_gpu_memory_bytes == 1024
    assert result.metrics == {"loss": 2.0, "trainable_percent": 9.5}


def test_what_it_is_told(programs: Programs) -> None:
    told = """report "{\\"loss\\": 1, \\"seed\\": $OIALR_SEED, \\"threads\\": $OMP_NUM_THREADS,
        \\"test\\": $OIALR_EVALUATE_TEST, \\"argument\\": $1}"; pwd > $OIALR_FOLDER/here
        echo $OIALR_DATA > $OIALR_FOLDER/data; [ -d $OIALR_STATE_DIR ] || exit 3"""
    result = programs.run(told.replace(",\n", ","), arguments="{width}", width=8, seed=7)
    assert result.metrics == {"loss": 1, "seed": 7, "threads": 2, "test": 0, "argument": 8}
    attempt = programs.folder / "attempt-1"
    assert (attempt / "data").read_text().strip() == str(programs.folder.parent / "data")
    assert (attempt / "here").read_text().strip() == os.getcwd()


FAILURES = [
    ("exit 3", "training", "the program ended with exit code 3"),
    ("kill -SEGV $$", "machine", "the program was killed by SIGSEGV"),
    ("kill -9 $$", "machine", "killed by SIGKILL, perhaps out of memory"),
    ("true", "configuration", "the program ended without a report"),
    ("report '{\"epoch\": 1}'", "configuration", "`metrics` has 'loss', which the program has not"),
    ("report '{\"val\": 1}'", "configuration", "at its end; it reported val"),
    ("report nonsense", "training", "no line of metrics: b'nonsense'"),
    ("report '[1]'", "training", "no line of metrics"),
    ('report \'{"loss": "low"}\'', "training", "`loss` is a number, got 'low'"),
    ("report '{\"epoch\": 0}'", "training", "epochs count from 1"),
    ("report '{\"epoch\": 1.5}'", "training", "`epoch` is a whole number"),
    (
        "report '{\"epoch\": 2}'; report '{\"epoch\": 2}'; sleep 60",
        "training",
        "epoch 2 after epoch 2",
    ),
    ('report \'{"epoch": 3, "loss": NaN}\'; sleep 60', "training", "diverged: loss is nan"),
    ("report '{\"loss\": Infinity}'", "training", "diverged: loss is inf"),
]


@pytest.mark.parametrize(("text", "cause", "line"), FAILURES, ids=lambda x: str(x)[:30])
def test_how_it_fails(programs: Programs, text: str, cause: str, line: str) -> None:
    with pytest.raises(KnownError) as caught:
        programs.run(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.cause == cause


def test_a_line_without_end_is_garbage(programs: Programs) -> None:
    with pytest.raises(KnownError, match="a line without end"):
        programs.run("head -c 300000 /dev/zero | tr '\\0' x >> $OIALR_REPORT; sleep 60")


def test_a_huge_number_is_garbage() -> None:
    with pytest.raises(KnownError):
        read_report(b'{"loss": 1' + b"0" * 400 + b"}")
    with pytest.raises(KnownError):
        read_report(b"[" * 100_000)
    assert math.isinf(read_report(b'{"loss": 1e999}').metrics["loss"])


def test_what_the_log_says_of_the_machine() -> None:
    assert of_machine("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert of_machine("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert not of_machine("ValueError: no such thing")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("no-such-program x", "no program 'no-such-program' for `command`"),
        ("./nowhere.sh", "no program './nowhere.sh'"),
        ("sh nowhere.sh", "no file 'nowhere.sh' for `command` in "),
    ],
)
def test_what_is_not_there_is_told_before_the_search(command: str, line: str) -> None:
    training: Any = validate_training({"command": command, "metrics": {"loss": "lower"}}, "test")
    with pytest.raises(ConfigError, match=line.replace(".", r"\.")):
        CommandTrainer(None).prepare(training)


KEEPS_STATE = """
state=$OIALR_STATE_DIR/epoch; epoch=$(cat $state 2>/dev/null || echo 0)
while [ $epoch -lt 4 ]; do
    epoch=$((epoch + 1)); echo $epoch > $state
    report "{\\"epoch\\": $epoch, \\"loss\\": 0.$epoch}"
    [ $epoch != 2 ] || [ -e $OIALR_STATE_DIR/killed ] || { touch $OIALR_STATE_DIR/killed; kill -9 $$; }
done
"""  # noqa: E501


def test_another_attempt_goes_on_from_the_state_and_tells_the_epochs_before(
    programs: Programs,
) -> None:
    with pytest.raises(KnownError, match="SIGKILL"):
        programs.run(KEEPS_STATE)
    assert list(programs.epochs) == [1, 2]
    result = programs.run(KEEPS_STATE)
    assert programs.resumed_epoch == 2
    assert programs.epochs == {n: {"loss": n / 10} for n in (1, 2, 3, 4)}
    assert result.metrics == {"epoch": 4.0, "loss": 0.4}
    programs.trainer.forget(programs.request)
    assert not programs.state.exists()


def test_an_attempt_that_begins_anew_tells_its_own_epochs_alone(programs: Programs) -> None:
    with pytest.raises(KnownError):
        programs.run(TWO_EPOCHS + "kill -9 $$")
    programs.run("""report '{"epoch": 1, "loss": 7}'""")
    assert programs.resumed_epoch == 0
    assert programs.epochs == {1: {"loss": 7.0}}


def test_an_attempt_with_nothing_left_to_do_has_the_earlier_result(programs: Programs) -> None:
    with pytest.raises(KnownError):
        programs.run(TWO_EPOCHS + "kill -9 $$")
    assert programs.run("true").metrics == {"epoch": 2.0, "loss": 0.25}
    assert programs.resumed_epoch == 2


def test_damaged_reports_are_left_out(programs: Programs) -> None:
    with pytest.raises(KnownError):
        programs.run(TWO_EPOCHS + "kill -9 $$")
    kept = programs.state / "epochs.jsonl"
    kept.write_text(kept.read_text().replace('{"epoch": 1', '{"epo'))
    programs.run("""report '{"epoch": 3, "loss": 7}'""")
    assert list(programs.epochs) == [2, 3]


def test_what_was_reported_when_nobody_listened_is_told_by_the_next_attempt(
    programs: Programs,
) -> None:
    with pytest.raises(KnownError):
        programs.run(TWO_EPOCHS + "kill -9 $$")
    with (programs.state / "report.jsonl").open("a") as report:
        report.write('{"epoch": 3, "loss": 0.125}\n{"epoch": 4, "lo')
    programs.run("""report '{"epoch": 5, "loss": 7}'""")
    assert list(programs.epochs) == [1, 2, 3, 5]
    assert programs.resumed_epoch == 3


def asked(programs: Programs, **stop: Any) -> Any:
    """Asks to stop once the first epoch is told."""

    def then(event: Event) -> None:
        if isinstance(event, Epoch) and not programs.stops:
            programs.stops.append(Stop(**stop))

    return then


WAITS_FOR_STOP = """report '{"epoch": 1, "loss": 1}'
while [ ! -e $OIALR_STOP ]; do sleep 0.01; done; """


@pytest.mark.parametrize(
    "ending",
    ["exit 75", "report '{\"stops\": true}'; exit 0", "report '{\"stops\": true}'; exit 1"],
)
def test_a_program_that_was_asked_to_stop_says_that_it_has(programs: Programs, ending: str) -> None:
    with pytest.raises(Interrupted) as caught:
        programs.run(WAITS_FOR_STOP + ending, then=asked(programs))
    assert (caught.value.epoch, caught.value.reason) == (1, "launch_stops")
    assert programs.state.exists()


def test_one_that_went_on_to_its_end_has_completed(programs: Programs) -> None:
    text = WAITS_FOR_STOP + """report '{"epoch": 2, "loss": 0.5}'"""
    assert programs.run(text, then=asked(programs)).metrics["loss"] == 0.5
    text += "; report '{\"stops\": true}'"
    assert programs.run(text, then=asked(programs), epochs=2).metrics["loss"] == 0.5


def test_sigterm_is_sent_to_who_catches_it(programs: Programs) -> None:
    text = """trap 'report "{\\"epoch\\": 2, \\"loss\\": 0}"; exit 0' TERM
    report '{"epoch": 1, "loss": 1}'; while true; do sleep 0.01; done"""
    with pytest.raises(Interrupted) as caught:
        programs.run(text, then=asked(programs))
    assert caught.value.epoch == 2


def test_what_is_not_worth_going_on_with_ends_at_once(programs: Programs) -> None:
    with pytest.raises(Interrupted) as caught:
        programs.run(
            """report '{"epoch": 1, "loss": 1}'; exec sleep 60""",
            then=asked(programs, reason="pruned"),
        )
    assert (caught.value.epoch, caught.value.reason) == (1, "pruned")


def test_exit_code_75_without_being_asked_is_a_failure(programs: Programs) -> None:
    with pytest.raises(KnownError, match="exit code 75"):
        programs.run("exit 75")


def test_a_killed_worker_takes_along_all_that_the_program_started(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "sh -c 'sleep 1000; true' & echo $! $$ > $OIALR_FOLDER/pids.part\n"
        "mv $OIALR_FOLDER/pids.part $OIALR_FOLDER/pids; echo '{\"epoch\": 1}' >> $OIALR_REPORT\n"
        "wait\n"
    )
    config = {"command": f"sh {script}", "metrics": {"loss": "lower"}}
    with started(tmp_path / "log") as worker:
        worker.send(Prepare(config=config, data_dir=None))
        events = worker.events()
        assert isinstance(next(events), Ready)
        assert not [m for m in psutil.Process(worker.pid).memory_maps() if "torch" in m.path]
        worker.send(Evaluate(config=config, folder=str(tmp_path)))
        while not isinstance(next(events), Epoch):
            pass
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        processes = [psutil.Process(pid) for pid in pids]
        worker.kill()
        assert gone(processes, within_s=10.0)


REPORT = REPORT_MODULE / "oialr_search_report.py"


def test_the_module_for_scripts_needs_nothing_and_no_new_python() -> None:
    tree = ast.parse(REPORT.read_text(), feature_version=(3, 8))
    nodes = list(ast.walk(tree))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert set(modules) <= sys.stdlib_module_names
    assert [path.name for path in REPORT_MODULE.iterdir() if path.suffix == ".py"] == [REPORT.name]


SCRIPT = """
import sys
from oialr_search_report import report, should_stop, state_dir
print(state_dir())
print(report(epoch=1, loss=2), should_stop())
open(sys.argv[1], "w").close()
print(report(epoch=2, step=40, loss=1), report(loss=3))
"""


def test_the_module_for_scripts(tmp_path: Path) -> None:
    told = {
        "OIALR_REPORT": str(tmp_path / "report"),
        "OIALR_STOP": str(tmp_path / "stop"),
        "OIALR_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": str(REPORT_MODULE),
    }
    command = [sys.executable, "-S", "-c", SCRIPT, str(tmp_path / "stop")]
    said = subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(tmp_path / "state"), "False", "False", "True", "True"]
    assert (tmp_path / "state").is_dir()
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert lines == [
        {"loss": 2.0, "epoch": 1},
        {"loss": 1.0, "epoch": 2, "step": 40},
        {"stops": True},
        {"loss": 3.0},
    ]


def test_without_a_search_a_script_runs_as_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", SCRIPT, str(tmp_path / "stop")]
    environment = {"PYTHONPATH": str(REPORT_MODULE)}
    said = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert said.split() == ["state", "False", "False", "False", "False"]


LIKE_TIMM = """
import os, sys, timm.utils
folder = sys.argv[1]
os.mkdir(folder)
for epoch in range(3):
    timm.utils.update_summary(
        epoch, {"loss": 3.0 - epoch}, {"loss": 2.0 - epoch, "top1": 10.0 * epoch},
        filename=folder + "/summary.csv", lr=0.1, write_header=epoch == 0,
    )
"""


@pytest.mark.slow
def test_timm_s_own_summary_is_reported(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LIKE_TIMM)
    follow = "python -m oialr_search_report $1/timm/summary.csv python $2/train.py $1/timm"
    result = programs.run(
        follow, arguments=f"{{folder}} {tmp_path}", metrics={"eval_top1": "higher"}, epochs=3
    )
    assert list(programs.epochs) == [1, 2, 3]
    assert result.metrics["eval_top1"] == 20.0
    assert result.metrics["train_loss"] == 1.0


WRITES_CSV = """
import sys, time
file = open(sys.argv[1], "w", buffering=1)
file.write("epoch,loss,note\\n0,0.5,a\\n1,")
while len(sys.argv) > 2: time.sleep(0.01)
file.write("0.25,\\n")
"""


def test_rows_of_a_csv_file_are_epochs(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(WRITES_CSV)
    follow = f"exec {sys.executable} -S -m oialr_search_report"
    run = f"{sys.executable} -S {tmp_path}/train.py"
    csv = "$OIALR_FOLDER/a.csv"
    assert programs.run(f"{follow} '{csv[:-5]}*.csv' {run} {csv}".replace("'", '"')).metrics == {
        "epoch": 2.0,
        "loss": 0.25,
    }
    with pytest.raises(Interrupted) as caught:
        programs.run(f"{follow} {csv} {run} {csv} wait", then=asked(programs))
    assert caught.value.epoch == 1
    programs.stops.clear()
    with pytest.raises(KnownError, match="exit code 3"):
        programs.run(f"{follow} {csv} sh -c 'exit 3'")
