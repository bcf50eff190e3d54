"""`oialr-search`: a launch listens to signals from its first moment on; the rest is in `cli`."""

from __future__ import annotations

import sys
from typing import NoReturn

from oialr_search.launch.stop_request import StopRequest


def main() -> NoReturn:
    """Run a command."""
    stop = None
    if sys.argv[1:2] == ["run"]:
        stop = StopRequest()
        stop.listen()
    from oialr_search import cli

    cli.main(stop)


if __name__ == "__main__":
    main()
