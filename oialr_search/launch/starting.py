"""What a search starts with: configurations that a person names, in the search file or later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oialr_search.space.constraints import constraints_of
from oialr_search.space.given import BestOf, Given, Naming, OfFile, values_in
from oialr_search.space.search_file import SearchFile
from oialr_search.storage.records import SearchRecord, Status
from oialr_training.errors import ConfigError, nearest
from oialr_training.yaml_files import parse_assignment

if TYPE_CHECKING:
    from oialr_search.storage.database import Storage


def starting_points(
    storage: Storage | None, search_file: SearchFile
) -> tuple[list[Given], list[str]]:
    """What `search.start_with` names, in its order, and a line for each value that was moved.

    Raises:
        ConfigError: when a file or a search cannot be read, or its values are none of the space.
    """
    naming = Naming(
        space=search_file.space,
        training=search_file.training,
        constraints=search_file.constraints,
    )
    points, moved = list[Given](), list[str]()
    for entry in search_file.search.start_with:
        if isinstance(entry, BestOf):
            named = best_of(storage, entry.search, entry.best, naming)
        elif isinstance(entry, OfFile):
            named = [naming.of_file(Path(entry.file))]
        else:
            named = [({}, search_file.source)]
        for values, source in named:
            point, lines = naming.given(values, source)
            points.append(point)
            moved += lines
    return points, moved


def check_start(search_file: SearchFile) -> list[str]:
    """See that a search can start so, other searches aside; a line for each value to be moved.

    Raises:
        ConfigError: see `starting_points`.
    """
    files = tuple(e for e in search_file.search.start_with if not isinstance(e, BestOf))
    search = search_file.search.model_copy(update={"start_with": files})
    return starting_points(None, replace(search_file, search=search))[1]


def named_points(
    storage: Storage,
    search: SearchRecord,
    files: Sequence[Path],
    assignments: Sequence[str],
    from_search: str | None,
    best: int,
) -> tuple[list[Given], list[str]]:
    """What files, another search and assignments name, as points of a stored search.

    Raises:
        ConfigError: when nothing is named, or what is named is none of the space.
    """
    training = search.training()
    naming = Naming(
        space=search.space,
        training=training,
        constraints=constraints_of(
            search.search_settings().constraints,
            training.model_dump(mode="json"),
            search.space,
            f"search {search.name!r} as it is stored",
        ),
    )
    changed = dict(map(parse_assignment, assignments))
    for path in changed.keys() - naming.names:
        raise ConfigError(f"`{path:.80}` is not searched{nearest(path, [*naming.names])} (--set)")
    named = [naming.of_file(path) for path in files]
    if from_search is not None:
        named += best_of(storage, from_search, best, naming)
    if changed and not named:
        named = [({}, f"search {search.name!r}")]
    if not named:
        raise ConfigError("nothing is named: give a file, --set PATH=VALUE or --from-search NAME")
    points = [naming.given(values | changed, source) for values, source in named]
    return [point for point, _ in points], [line for _, lines in points for line in lines]


def best_of(
    storage: Storage | None, name: str, number: int, naming: Naming
) -> list[tuple[dict[str, Any], str]]:
    """What the best individuals of another search have at the searched paths, and their names.

    Raises:
        ConfigError: when there is no such search, or none of it has completed.
    """
    search = storage.find_search(name) if storage is not None else None
    if storage is None or search is None:
        known = [search.name for search in storage.searches()] if storage is not None else []
        hint = nearest(name, known) if known else "; it holds none yet"
        raise ConfigError(f"no search {name!r:.80} in the database{hint}")
    best = storage.individuals(search.id, status=Status.COMPLETED, limit=number, order="fitness")
    if not best:
        raise ConfigError(f"search {name!r} has no completed individual yet")
    trained = values_in(search.settings.get("training", {}), naming.space)
    return [
        (
            trained | {k: v for k, v in individual.hyperparameters.items() if k in naming.names},
            f"individual {individual.id} of search {name!r}",
        )
        for individual in best
    ]
