"""What is at fault when an evaluation fails: its configuration, the training, or the machine.

Free of torch: where nobody has imported it, it has raised nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from oialr_training.errors import Cause, KnownError, place_of
from oialr_training.protocol import Failed

# torch has no classes of exceptions for these.
MACHINE_WORDS = (
    "CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS",
    "CUSOLVER_STATUS", "CUFFT_", "NCCL error", "DataLoader worker", "bus error",
)  # fmt: skip
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory")
OUT_OF_MEMORY_NAMES = ("OutOfMemoryError", "CUDA out of memory", "MemoryError")
"""What a program says of it that ends."""


def failed(error: Exception) -> Failed:
    """The event that tells of an exception."""
    return Failed(reason=_reason(error), at=time.time(), cause=_cause(error))


def is_told(error: Exception) -> bool:
    """Did we raise it ourselves? Then the message says all, and is one of our own sentences."""
    return isinstance(error, KnownError) or _is_a("oialr", "OIALRError", error)


def of_machine(line: str) -> bool:
    """Does the last line of a program's log say that the machine failed it?"""
    words = (*MACHINE_WORDS, *OUT_OF_MEMORY_WORDS, *OUT_OF_MEMORY_NAMES)
    return any(word in line for word in words)


def _is_a(module: str, name: str, error: Exception) -> bool:
    """Is it of a class of this module? Not where nobody has imported that."""
    found: Any = sys.modules.get(module)
    return found is not None and isinstance(error, getattr(found, name))


def _cause(error: Exception) -> Cause:
    if isinstance(error, KnownError):
        return error.cause
    if is_told(error):
        return "configuration"
    if isinstance(error, OSError):
        return "machine"
    return "machine" if _out_of_memory(error) or _broken(error) else "training"


def _reason(error: Exception) -> str:
    """One line."""
    if is_told(error):
        return str(error)
    first, *_ = str(error).splitlines() or [""]
    what = f"{_out_of_memory(error) or type(error).__name__}: {first}".removesuffix(": ")
    place = place_of(error).removesuffix(": ")
    return f"{what} ({place})" if place else what


def _out_of_memory(error: Exception) -> str:
    """Of which memory there was too little; empty where it was something else."""
    if _is_a("torch", "OutOfMemoryError", error):
        return "out of GPU memory"
    words = OUT_OF_MEMORY_WORDS if isinstance(error, RuntimeError) else ()
    if isinstance(error, MemoryError) or any(word in str(error) for word in words):
        return "out of memory"
    return ""


def _broken(error: Exception) -> bool:
    """Did the GPU or a loader process fail, whatever was computed?"""
    # torch has the class since 2.8; before, it was a RuntimeError that says "CUDA error".
    return type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in MACHINE_WORDS)
    )
