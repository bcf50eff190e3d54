"""What is at fault when an evaluation fails: its configuration, the training, or the machine."""

from __future__ import annotations

import time

import torch

from oialr import OIALRError
from oialr_training.errors import Cause, KnownError, place_of
from oialr_training.protocol import Failed

TOLD = (KnownError, OIALRError)
"""What we raise ourselves: the message says all, and is one of our own sentences."""

# torch has no classes of exceptions for these.
MACHINE_WORDS = (
    "CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS",
    "CUSOLVER_STATUS", "CUFFT_", "NCCL error", "DataLoader worker", "bus error",
)  # fmt: skip
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory")


def failed(error: Exception) -> Failed:
    """The event that tells of an exception."""
    return Failed(reason=_reason(error), at=time.time(), cause=_cause(error))


def _cause(error: Exception) -> Cause:
    match error:
        case KnownError():
            return error.cause
        case OIALRError():
            return "configuration"
        case OSError():
            return "machine"
    return "machine" if _out_of_memory(error) or _broken(error) else "training"


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, TOLD):
        return str(error)
    first, *_ = str(error).splitlines() or [""]
    what = f"{_out_of_memory(error) or type(error).__name__}: {first}".removesuffix(": ")
    place = place_of(error).removesuffix(": ")
    return f"{what} ({place})" if place else what


def _out_of_memory(error: Exception) -> str:
    """Of which memory there was too little; empty where it was something else."""
    if isinstance(error, torch.OutOfMemoryError):
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
