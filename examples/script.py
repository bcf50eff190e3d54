"""A script of one's own, searched as it is by `script.yaml`: a training loop with OIALR.

What it has of the search is the import and the lines with `report` and `state_dir`; it runs without
one, too: `PYTHONPATH=workers/oialr_training/report python examples/script.py`.
"""

import argparse
import os

import torch
from oialr_search_report import report, state_dir
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from oialr import OIALR, OIALRSettings

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--rank-cutoff", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

torch.manual_seed(arguments.seed)
digits = load_digits()
images, classes = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, validation = order[:1400], order[1400:]
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
model.append(nn.Linear(128, 10))
full_rank = sum(p.numel() for p in model.parameters())
optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
settings = OIALRSettings(
    delay_steps=44, update_frequency=22, cutoff_fraction=arguments.rank_cutoff, layer_fraction=1.0
)
oialr = OIALR(model, optimizer, settings)
parts = {"oialr": oialr, "model": model, "optimizer": optimizer}

path, begin = os.path.join(state_dir(), "checkpoint.pt"), 1
if os.path.exists(path):
    kept = torch.load(path, weights_only=True)
    begin = kept["epoch"] + 1
    for name, part in parts.items():
        part.load_state_dict(kept[name])
for epoch in range(begin, arguments.epochs + 1):
    torch.manual_seed(1000 * arguments.seed + epoch)  # the same order, whoever goes on from here
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), classes[batch]).backward()
        optimizer.step()
        oialr.step()
    with torch.no_grad():
        outputs = model(images[validation])
        loss = cross_entropy(outputs, classes[validation])
        accuracy = 100 * (outputs.argmax(1) == classes[validation]).float().mean()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**kept, "epoch": epoch}, f"{path}.part")
    os.replace(f"{path}.part", path)
    if report(
        epoch=epoch,
        validation_loss=loss,
        accuracy=accuracy,
        trainable_percent=100 * trainable / full_rank,
    ):
        break
