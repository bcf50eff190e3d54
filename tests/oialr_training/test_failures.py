"""What is at fault when something is raised."""

from __future__ import annotations

import errno

import pytest
import torch

from oialr import NotFiniteError, OIALRError
from oialr_training.errors import (
    ConfigError,
    DataError,
    DataSettingsError,
    DeviceError,
    DivergedError,
)
from oialr_training.failures import failed

OOM = "CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"
CASES = [
    (ConfigError("c"), "configuration", "c"),
    (OIALRError("no layer"), "configuration", "no layer"),
    (DataSettingsError("too many"), "configuration", "too many"),
    (DivergedError("diverged: x"), "training", "diverged: x"),
    (ValueError("one\ntwo"), "training", "ValueError: one"),
    (AssertionError(), "training", "AssertionError"),
    (RuntimeError("shapes cannot be multiplied"), "training", "RuntimeError: shapes cannot"),
    (DataError("the images are gone"), "machine", "the images are gone"),
    (DeviceError("no GPU"), "machine", "no GPU"),
    (MemoryError(), "machine", "out of memory"),
    (torch.OutOfMemoryError(OOM), "machine", "out of GPU memory: CUDA out of memory. Tried"),
    (RuntimeError("CUDA error: unspecified launch failure\nmore"), "machine", "RuntimeError: CUDA"),
    (OSError(errno.ENOSPC, "No space left on device"), "machine", "OSError: [Errno 28]"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "machine", "Runtime"),
]


@pytest.mark.parametrize(("error", "cause", "start"), CASES, ids=lambda case: str(case)[:30])
def test_the_cause_and_its_one_line(error: Exception, cause: str, start: str) -> None:
    event = failed(error)
    assert event.cause == cause
    assert event.reason.startswith(start)
    assert len(event.reason.splitlines()) == 1


def test_too_little_memory_is_the_machine_s() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert failed(caught.value).cause == "machine"
    assert failed(caught.value).reason.startswith("out of memory: ")


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch is older than 2.8")
def test_a_broken_gpu_is_the_machine_s() -> None:
    assert failed(torch.AcceleratorError("an illegal memory access")).cause == "machine"


def test_a_diverged_weight_is_no_mistake_of_the_configuration() -> None:
    # The loop gives it its name; here it would be taken for one.
    assert issubclass(NotFiniteError, OIALRError)
