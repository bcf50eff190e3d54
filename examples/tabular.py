"""A task of one's own: an MLP that classifies the rows of a CSV file (`tabular.yaml`)."""

from itertools import pairwise
from pathlib import Path

from oialr_training.config import CLASSIFICATION, TrainingConfig
from oialr_training.sections import SplitData
from oialr_training.validation import Config


class MLP(Config):
    width: int = 64
    depth: int = 3
    dropout: float = 0.0


class Table(SplitData):
    file: str
    target: str = "target"


class TabularMLP(TrainingConfig):
    metrics = CLASSIFICATION
    model: MLP = MLP()
    data: Table

    def load_data(self, folder: Path | None):
        import pandas as pd
        import torch

        from oialr_training.data import split_tensors

        table = pd.read_csv((folder or Path()) / self.data.file)
        features = table.drop(columns=self.data.target)
        target, classes = pd.factorize(table[self.data.target], sort=True)
        inputs = torch.tensor(((features - features.mean()) / features.std()).to_numpy()).float()
        sizes = {"features": inputs.shape[1], "classes": len(classes)}
        return split_tensors(inputs, torch.tensor(target), self.data, sizes=sizes)

    def network(self, splits):
        from torch import nn

        widths = [splits.sizes["features"], *[self.model.width] * self.model.depth]
        layers = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(self.model.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], splits.sizes["classes"]))

    def loss(self, outputs, targets):
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def measure(self, model, batches):
        from oialr_training.tasks.measures import measure_classification

        return measure_classification(model, batches)
