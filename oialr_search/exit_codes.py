"""Exit codes that batch scripts can tell apart."""

FINISHED = 0
USAGE = 2
INTERNAL = 70
STOPPED = 75
"""Stopped, and the same command goes on."""
CONFIG = 78
INTERRUPTED = 130
"""By Ctrl-C, as a shell says it."""
