"""Individual → YAML: the complete training configuration, with where it comes from."""

from __future__ import annotations

import math
from typing import Any

from oialr_search.space.hyperparameters import with_hyperparameters
from oialr_search.storage.database import Storage
from oialr_search.storage.records import IndividualRecord, SearchRecord, StorageError
from oialr_training.config import TrainingConfig
from oialr_training.tasks import validate_training
from oialr_training.yaml_files import dump_yaml, parse_yaml


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
    del content["provenance"]  # so that it comes last
    content["provenance"] = {
        "search": search.name,
        "individual": individual.id,
        "fitness": individual.fitness,
        "metric": search.metric,
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
    again: TrainingConfig = validate_training(parse_yaml(text, "export"), "export")
    assert again.model_dump(mode="json") == content, "the exported YAML reads back differently"
    return text
