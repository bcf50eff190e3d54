"""Exit codes that batch scripts can tell apart, and the signals that stop a launch."""

import signal

FINISHED = 0
USAGE = 2
INTERNAL = 70
STOPPED = 75
"""Stopped, and the same command goes on."""
CONFIG = 78

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
