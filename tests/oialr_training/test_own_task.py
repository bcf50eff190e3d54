"""A task of a user's own, from a folder of theirs: found, trained, and its mistakes told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oialr_training.config import TrainingConfig
from oialr_training.errors import ConfigError
from oialr_training.network_trainer import NetworkTrainer
from oialr_training.protocol import Failed, Prepare
from oialr_training.tasks import TASKS, add_task_path, find_task, validate_training
from oialr_training.tasks.registry import TASK_PATH_VARIABLE
from oialr_training.yaml_files import read_yaml

from ..conftest import EXAMPLES
from .process import started

GOOD = "from oialr_training.config import *\n"
WHOLE = """
class T(TrainingConfig):
    metrics = CLASSIFICATION
    def load_data(self, folder): ...
    def network(self, splits): ...
    def loss(self, outputs, targets): ...
    def measure(self, model, batches): ...
"""


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test finds, the next one does not know."""
    known, modules, path = dict(TASKS), set(sys.modules), list(sys.path)
    monkeypatch.setenv(TASK_PATH_VARIABLE, "")
    yield
    TASKS.clear()
    TASKS.update(known)
    sys.path[:] = path
    for name in {"own", "tabular"} - modules:
        sys.modules.pop(name, None)


def own(folder: Path, text: str) -> str:
    (folder / "own.py").write_text(text)
    add_task_path([folder])
    return "own:T"


def test_it_is_found_in_its_folder(tmp_path: Path) -> None:
    task = find_task(own(tmp_path, GOOD + WHOLE))
    assert task.metrics[0].name == "loss"
    assert find_task("own:T") is task
    assert os.environ[TASK_PATH_VARIABLE] == str(tmp_path)


def test_it_is_found_by_an_entry_point(tmp_path: Path) -> None:
    own(tmp_path, GOOD + WHOLE)
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[oialr_search.tasks]\nrows = own:T\n")
    sys.path.insert(0, str(tmp_path))
    assert find_task("rows") is find_task("own:T")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_this_name", r"own.py:1: ModuleNotFoundError: No module named"),
        ("x = 1\n\ny = x / 0\n", r"own.py:3: ZeroDivisionError: division by zero"),
        ("x = 1\nclass T(:\n", r"own.py:2: SyntaxError"),
        ("T = 3\n", r"own:T is no task: it is no subclass of .*own.py\)"),
        ("U = 3\n", r"own.py has no 'T', got 'own:T'"),
        (GOOD + WHOLE.replace("def network", "def other"), r"its method `network` is missing"),
        (
            GOOD + WHOLE.replace("loss(self, outputs, targets)", "loss(self, outputs)"),
            r"its method `loss` takes \(self, outputs, targets\), got \(self, outputs\) "
            r"\(.*own.py:\d+\)",
        ),
        ("import sys\nsys.exit('no licence')\n", r"own.py:2: SystemExit: no licence"),
        (
            GOOD + WHOLE.replace("CLASSIFICATION", "(Metric(name='loss', label='', better=''),)"),
            r"`better` of the metric 'loss' is lower or higher: ''",
        ),
        (GOOD + WHOLE.replace("CLASSIFICATION", "()"), r"its `metrics` are no tuple of `Metric`"),
        (
            GOOD + WHOLE.replace("CLASSIFICATION", "CLASSIFICATION[1:]"),
            r"the first of its `metrics` is called `loss`, got 'top1'",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        validate_training({"task": own(tmp_path, text)}, "file.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("(file.yaml)")


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no module 'own' for `task`.*--task-path"):
        find_task("own:T")
    with pytest.raises(ConfigError, match=r"unknown task 'minivit_digit'.*minivit_digits"):
        find_task("minivit_digit")


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "tabular.py").read_text().splitlines()) < 60


def test_the_search_never_imports_torch_for_it(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tabular.py", tmp_path)
    code = (
        "import sys; from oialr_training.tasks import *; "
        f"add_task_path([{str(tmp_path)!r}]); find_task('tabular:TabularMLP');"
        "print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_the_example_s_file_is_valid() -> None:
    add_task_path([EXAMPLES])
    content = read_yaml(EXAMPLES / "tabular.yaml")
    del content["search"], content["space"]
    assert type(validate_training(content, "tabular.yaml")).__name__ == "TabularMLP"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("measure_classification(model, batches)", "{}"),
            "measures nothing, its",
        ),
        (
            (
                "return cross_entropy(outputs, targets)",
                "return cross_entropy(outputs, targets) / 0",
            ),
            r"the loss of the task tabular:TabularMLP is a finite tensor .*, got inf before",
        ),
        (("return nn.Sequential(", "nn.Sequential("), "returns a torch.nn.Module, got None"),
    ],
)
def test_a_mistake_in_its_methods_is_one_line_before_the_search(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    config = validate_training(spoilt_example(tmp_path, *change), "tabular.yaml")
    assert isinstance(config, TrainingConfig)
    with pytest.raises(ConfigError, match=told):
        NetworkTrainer(tmp_path).prepare(config)


def spoilt_example(folder: Path, part: str, other: str) -> dict[str, Any]:
    """The example's configuration; its task, beside it, has other text in place of a part."""
    text = (EXAMPLES / "tabular.py").read_text()
    assert part in text
    (folder / "tabular.py").write_text(text.replace(part, other))
    (folder / "table.csv").write_text("a,b,target\n" + "1,2,x\n3,4,y\n2,1,x\n0,3,y\n" * 30)
    add_task_path([folder])
    config = read_yaml(EXAMPLES / "tabular.yaml")
    del config["search"], config["space"]
    return config


def test_what_its_methods_raise_has_its_place(tmp_path: Path) -> None:
    config = spoilt_example(tmp_path, "classes =", "rows =")
    with started(tmp_path / "log.txt") as worker:
        worker.send(Prepare(config=config, data_dir=str(tmp_path)))
        (failed,) = (e for e in worker.events() if isinstance(e, Failed))
    assert failed.cause == "configuration"
    told = r"NameError: name 'classes' is not defined \(.*tabular.py:\d+\)"
    assert re.search(told, failed.reason)
