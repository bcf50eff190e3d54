"""Every exception of ours has one root, says whose fault it is, and stands in the tree of them."""

from __future__ import annotations

import ast
from pathlib import Path

from oialr_training import errors

from .conftest import ROOT

# No errors: what a training raises that ends early as asked, and an aim that has no value.
NO_ERRORS = {"Interrupted", "NotMeasured"}


def exceptions() -> dict[str, tuple[str, str | None]]:
    """Each exception class of the search and the training side: its base, and its own `cause`."""
    found: dict[str, tuple[str, str | None]] = {}
    paths = [*(ROOT / "oialr_search").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    for node in (node for path in paths for node in classes(path)):
        base = ast.unparse(node.bases[0]).rpartition(".")[2] if node.bases else ""
        if base.endswith(("Error", "Exception")) and node.name not in NO_ERRORS:
            found[node.name] = base, own_cause(node)
    return found


def classes(path: Path) -> list[ast.ClassDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]


def own_cause(node: ast.ClassDef) -> str | None:
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and target.id == "cause" and value is not None:
            return str(ast.literal_eval(value))
    return None


def test_the_tree_is_drawn_as_it_is() -> None:
    found = exceptions()
    assert {"ConfigError", "StorageUnavailable", "LaunchError", "OIALRError"} <= found.keys()
    drawn = {name: line for line in (errors.__doc__ or "").splitlines() for name in line.split()}
    for name, (base, cause) in found.items():
        if name in ("OIALRError", "NotFiniteError"):  # the method's, which has its own root
            continue
        assert (base, name) == ("Exception", "KnownError") or base in found, name
        assert base == "KnownError" or name == "KnownError" or base in drawn, name
        if cause is not None:
            assert cause in drawn[name].split(), name
        else:
            assert name in ("KnownError", "LaunchError"), f"{name} does not say whose fault it is"
