"""The Trainer of Lightning with OIALR, on a small MLP."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr import OIALRError, OIALRSettings

lightning = pytest.importorskip("lightning", reason="lightning is not installed")

from oialr.lightning import OIALRCallback  # noqa: E402

SETTINGS = OIALRSettings(
    delay_steps=4, update_frequency=4, cutoff_fraction=0.4, layer_fraction=1.0, min_dim=8
)


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, num_optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
        self.num_optimizers = num_optimizers
        self.automatic_optimization = num_optimizers == 1

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self.num_optimizers)]


def loader() -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 16, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].argmax(1))
    return torch.utils.data.DataLoader(data, batch_size=8)


def fit(folder: Path, module: Classifier, max_epochs: int, **options: Any) -> OIALRCallback:
    callback = OIALRCallback(SETTINGS)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        default_root_dir=folder, max_epochs=max_epochs, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, keep],
    )  # fmt: skip
    trainer.fit(module, loader(), **options)
    return callback


def test_it_trains_stores_and_goes_on(tmp_path: Path) -> None:
    whole = Classifier()
    expected = fit(tmp_path, whole, 2)
    assert expected.oialr.steps == 20
    assert {update.step for update in expected.updates} == {4, 8, 12, 16, 20}
    assert min(update.inner_rank for update in expected.updates) < 16

    dense = Classifier.load_from_checkpoint(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert isinstance(dense.net[0], nn.Linear)

    resumed = Classifier()
    callback = fit(tmp_path / "again", resumed, 2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert callback.oialr.state_dict() == expected.oialr.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OIALRError, match="one optimiser, this module has 2"):
        fit(tmp_path, Classifier(num_optimizers=2), 1)
