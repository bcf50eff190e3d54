"""A figure as a file: a page that needs no network, or a picture by way of a browser."""

from __future__ import annotations

import logging
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError

from oialr_search.terminal.tables import write_file
from oialr_training.errors import ConfigError

PICTURES = ("png", "pdf", "svg")
FORMATS = ("html", *PICTURES)
# One of plotly's own buttons sends the figure to its makers' server.
IN_PAGE = {"displaylogo": False, "modeBarButtonsToRemove": ["sendChartToCloud"]}
PNG_SCALE = 2  # pixels a pixel of the layout: sharp in print


def refuse_unknown_format(path: Path) -> None:
    """Refuse a file whose ending is that of no format.

    Raises:
        ConfigError: when it is not.
    """
    if _format(path) not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"the file's ending must be one of {endings}, got {path}")


def write(figure: go.Figure, path: Path) -> None:
    """Write a figure in the format of the file's ending, whole or not at all.

    Raises:
        ConfigError: when the file cannot be written, or a picture is wanted without a browser.
    """
    content = _page(figure) if _format(path) == "html" else _picture(figure, path)
    write_file(path, content)


def _format(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _page(figure: go.Figure) -> bytes:
    # An id of its own choice would make each page of the same figure differ.
    html: str = figure.to_html(
        include_plotlyjs=True, full_html=True, div_id="figure", config=IN_PAGE
    )
    return html.encode()


def _picture(figure: go.Figure, path: Path) -> bytes:
    layout = figure.layout
    options = {
        "format": _format(path),
        "width": layout.width,
        "height": layout.height,
        "scale": PNG_SCALE if _format(path) == "png" else 1,
    }
    # The browser's goodbye, where it is read, is told as an error.
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    try:
        # Unless told not to, the browser loads MathJax from the network.
        picture: bytes = kaleido.calc_fig_sync(
            figure.to_dict(), opts=options, kopts={"mathjax": False}
        )
    except (ChromeNotFoundError, BrowserFailedError, BrowserClosedError):
        raise ConfigError(
            f"no browser to draw {path} with: install the Debian package chromium (elsewhere: "
            f"Chrome), or ask for a page, -o {path.with_suffix('.html')}"
        ) from None
    return picture
