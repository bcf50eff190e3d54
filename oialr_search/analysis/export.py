"""Individual → YAML: the complete training configuration, with where it comes from."""

from __future__ import annotations

import math
from typing import Any

from oialr_search.analysis.labels import aim_labels
from oialr_search.analysis.leaderboard import front_of
from oialr_search.analysis.where import parse_condition
from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.space.pareto import knee
from oialr_search.storage.database import Storage
from oialr_search.storage.leaderboard import all_columns
from oialr_search.storage.records import IndividualRecord, SearchRecord, StorageError
from oialr_search.storage.selection import Selection
from oialr_training.config import TaskConfig
from oialr_training.tasks import validate_training
from oialr_training.yaml_files import dump_yaml, parse_yaml


def chosen_of(
    storage: Storage, search: SearchRecord, *, at: str | None = None, at_knee: bool = False
) -> IndividualRecord:
    """The best individual that fulfils a condition, or the knee of the front of those that do.

    The front is that of the search's objectives, else of fitness and trainable parameters; see
    `knee`.

    Raises:
        ConfigError: when the condition is none.
        StorageError: when there is no such individual.
    """
    where = parse_condition(at, all_columns(search), "--at") if at else None
    if not at_knee:
        found = storage.select(search.id, Selection(where=where), limit=1)
        individual = found[0].individual if found else None
    else:
        objectives = () if search.objectives else ("fitness", "trainable_percent")
        front = front_of(storage, search, Selection(where=where), objectives)
        place = knee(list(front.values())) if front else None
        individual = None if place is None else storage.individual(list(front)[place])
    if individual is None or individual.violation:
        such = f" with {at}" if at else ""
        met = " that meets the constraints" if search.subject_to else ""
        raise StorageError(f"search {search.name!r} has no completed individual{such}{met}")
    return individual


def export(storage: Storage, search: SearchRecord, individual: IndividualRecord) -> str:
    """The individual's training configuration as YAML; it has been loaded again and is valid.

    Raises:
        StorageError: when the individual was never evaluated.
    """
    evaluation = individual.evaluation
    if evaluation is None:
        raise StorageError(f"individual {individual.id} was never evaluated")
    recipe = search.training().model_dump(mode="json")
    launch = next(x for x in storage.launches(search.id) if x.id == evaluation.launch_id)
    content: dict[str, Any] = with_hyperparameters(recipe, individual.hyperparameters)
    # Sums over threads depend on their number: without it the fitness differs in the last digits.
    content["num_threads"] = evaluation.num_threads
    if individual.seed is not None:  # it repeats another
        content["seed"] = individual.seed
    line = validate_training(content, "export").command_line
    seeds = {"deviation": individual.fitness_deviation, "seeds": individual.num_seeds}
    del content["provenance"]  # so that it comes last
    content["provenance"] = {
        **({"command_line": line} if line is not None else {}),
        "search": search.name,
        "individual": individual.id,
        "fitness": individual.fitness,
        **(seeds if individual.num_seeds > 1 else {}),
        "metric": search.metric,
        **({"violation": individual.violation} if search.subject_to else {}),
        **({"objectives": _objectives(search, individual)} if search.objectives else {}),
        "metrics": {k: v if math.isfinite(v) else None for k, v in evaluation.metrics.items()},
        "training_seed": content["seed"],
        "search_seed": search.seed,
        "island": individual.island,
        "generation": individual.generation,
        "parents": list(individual.parents),
        "device": evaluation.device,
        "versions": dict(launch.versions),
        "git_revision": launch.git_revision,
    }
    text = dump_yaml(content)
    again: TaskConfig = validate_training(parse_yaml(text, "export"), "export")
    assert again.model_dump(mode="json") == content, "the exported YAML reads back differently"
    return text


def _objectives(search: SearchRecord, individual: IndividualRecord) -> dict[str, float]:
    """Each as it is minimised."""
    return dict(zip(aim_labels(search), individual.objectives, strict=False))
