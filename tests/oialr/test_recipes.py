"""The code of docs/recipes.md and of the method's own README runs as it stands."""

from __future__ import annotations

import re
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from ..conftest import ROOT

README = ROOT / "workers" / "oialr" / "README.md"
RECIPES = ROOT / "docs" / "recipes.md"
# What takes longer than a second or two, mostly to import.
SLOW = ("FSDP2", "Two factors a layer, for inference", "Fine-tuning a ViT")


def blocks(text: str) -> list[str]:
    found = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def recipes() -> Iterator[Any]:
    for section in re.split(r"^## ", RECIPES.read_text(), flags=re.MULTILINE)[2:]:
        title, _, needs = section.partition("\n")[0].partition(" (")
        (code,) = blocks(section)
        marks = [pytest.mark.slow] if title in SLOW else []
        yield pytest.param(code, needs.rstrip(")").split(", "), id=title, marks=marks)


@pytest.fixture
def as_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in an empty folder, as `torchrun --nproc-per-node 1` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "<recipe>", "exec"), names)


@pytest.mark.usefixtures("as_torchrun")
@pytest.mark.parametrize(("code", "needs"), list(recipes()))
def test_a_recipe_runs_after_the_first_block(
    code: str, needs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for module in filter(None, needs):
        pytest.importorskip(module, reason=f"{module} is not installed")
    names: dict[str, Any] = {"__name__": "recipe"}
    run(blocks(RECIPES.read_text())[0], names)
    run(code, names)
    assert " of " in capsys.readouterr().out or "train(model" not in code


@pytest.mark.usefixtures("as_torchrun")
def test_the_readme_s_blocks_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    first, ddp, *_ = found = blocks(README.read_text())
    assert len(found) == 3
    run(first, names)
    assert "100 2 " in capsys.readouterr().out
    assert names["oialr"].trainable_percent < 50
    run(ddp, names)
    assert names["oialr"].converted
