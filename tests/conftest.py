"""What several test folders share: data, commands, and one small search that really ran."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from oialr_search import cli

from .seen import kind, new_url, postgres, seen_urls, url  # noqa: F401

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BIN = Path(sys.executable).parent
SEARCH_SPACES = ROOT / "search_spaces"
EXAMPLES = ROOT / "examples"
DIGITS = SEARCH_SPACES / "minivit_digits.yaml"
CIFAR10 = SEARCH_SPACES / "minivit_cifar10.yaml"
AUTOFORMER = SEARCH_SPACES / "autoformer_ettm2.yaml"

# A digits training of about a second that converts, updates and truncates.
TINY = {
    "epochs": "3",
    "model.depth": "1",
    "model.embed_dim": "32",
    "space.oialr.delay_steps": "{low: 10, high: 20}",
    "space.oialr.update_frequency": "{low: 10, high: 20}",
    "space.oialr.cutoff_fraction": "{low: 0.4, high: 0.8}",
    "space.scheduler.warmup_epochs": "{low: 1, high: 2}",
    "search.population_size": "2",
    "search.migration_probability": "1.0",
}
# Any hyperparameter gives the same machine-independent shape on CIFAR-10.
SMALL_CIFAR10 = {
    "data.train_subset": "600",
    "data.test_subset": "200",
    "epochs": "3",
    "batch_size": "64",
    "model.embed_dim": "48",
    "model.depth": "1",
    "model.num_heads": "3",
    "space.oialr.delay_steps": "{low: 4, high: 8}",
    "space.oialr.update_frequency": "{low: 4, high: 8}",
    "space.oialr.cutoff_fraction": "{low: 0.4, high: 0.8}",
    "space.scheduler.warmup_epochs": "{low: 1, high: 2}",
    "search.population_size": "2",
    "search.migration_probability": "1.0",
}

# Autoformer of two layers on a few windows.
SMALL_AUTOFORMER = {
    "num_threads": "1",
    "pred_len": "24",
    "epochs": "2",
    "data.train_subset": "640",
    "data.validation_subset": "100",
    "data.test_subset": "100",
    "model.d_model": "32",
    "model.d_ff": "64",
    "model.encoder_layers": "1",
    "space.scheduler.warmup_epochs": "{low: 1, high: 2}",
    "space.oialr.delay_steps": "{low: 5, high: 10}",
    "space.oialr.update_frequency": "{low: 5, high: 10}",
    "space.oialr.cutoff_fraction": "{low: 0.4, high: 0.8}",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/chaos does, and how long."""
    group = parser.getgroup("chaos", "a search disturbed at random (tests/chaos)")
    group.addoption("--chaos-faults", type=int, default=8, help="faults, over both databases")
    group.addoption("--chaos-seed", type=int, default=None, help="of kinds and moments")
    group.addoption("--chaos-time-limit", type=float, default=240.0, help="s; no faults after it")
    group.addoption("--chaos-log", default=None, help="folder for a log (JSON lines) and a table")
    parser.addoption("--pictures", default=None, help="folder for the dashboard's (docs/images)")


def settings(values: dict[str, str]) -> list[str]:
    """`--set` options."""
    return [part for path, value in values.items() for part in ("--set", f"{path}={value}")]


@dataclass(frozen=True)
class Command:
    """`oialr-search` as a user runs it, in a folder of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(
        self, *arguments: str | Path, ranks: int = 0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; under mpiexec when `ranks` are given.

        What only looks runs in this process: its start takes longer than its work.
        """
        alone = ranks or not arguments or arguments[0] in ("run", "train")
        run = self.as_process if alone else self.in_process
        result = run(*arguments, ranks=ranks)
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    def as_process(
        self, *arguments: str | Path, ranks: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end as a user does."""
        return subprocess.run(
            self.line(*arguments, ranks=ranks),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def in_process(
        self, *arguments: str | Path, ranks: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end in this process."""
        line = self.line(*arguments, ranks=ranks)
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", line),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
        out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(line, int(ended.value.code or 0), out, err)

    def start(self, *arguments: str | Path, ranks: int = 0) -> subprocess.Popen[str]:
        """Start and go on."""
        return subprocess.Popen(
            self.line(*arguments, ranks=ranks),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def line(self, *arguments: str | Path, ranks: int) -> list[str]:
        """The command line."""
        launcher = [*mpiexec(), "-n", str(ranks)] if ranks else []
        return [*launcher, str(BIN / "oialr-search"), *map(str, arguments)]


def mpiexec() -> list[str]:
    """The environment's mpiexec, else the machine's, with what Open MPI needs to be told."""
    found = shutil.which("mpiexec", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert found, "there is no mpiexec"
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if not any(name in version.stdout for name in ("Open MPI", "OpenRTE", "PRRTE")):
        return [found]
    as_root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    return [found, "--oversubscribe", *as_root]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file to copy, which takes less than making one."""
    from oialr_search.storage import open_storage

    path = tmp_path_factory.mktemp("database") / "empty.db"
    open_storage(str(path), create=True).close()
    return path


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Commands in an empty folder."""
    return make_command(tmp_path)


def make_command(folder: Path) -> Command:
    """Commands that see no variable of this project."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OIALR_")}
    return Command(folder, environment | {"COLUMNS": "200"})


@dataclass(frozen=True)
class FinishedSearch:
    """A search that ran to its end."""

    command: Command
    output: str

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.command.folder / "searches" / "search.db"


@pytest.fixture(scope="session")
def digits_search(tmp_path_factory: pytest.TempPathFactory) -> FinishedSearch:
    """4 tiny digits evaluations on 2 islands of one rank each; shared, so read it only."""
    command = make_command(tmp_path_factory.mktemp("digits"))
    arguments: Sequence[str | Path] = ["run", DIGITS, "--evaluations", "4", *settings(TINY)]
    result = command(*arguments, ranks=2)
    return FinishedSearch(command, result.stdout)


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real CIFAR-10 as two tar files."""
    packed = SHARED / "data" / "cifar10"
    if not packed.is_dir():
        pytest.skip(f"no CIFAR-10 in {packed}")
    folder = tmp_path_factory.mktemp("cifar10")
    for name in ("train", "test"):
        images = lzma.decompress((packed / f"{name}.tar.xz").read_bytes())
        (folder / f"{name}.tar").write_bytes(images)
    return folder
