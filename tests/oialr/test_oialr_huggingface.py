"""The Trainer of transformers with OIALR, on a tiny GPT-2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oialr import OIALR, OIALRError, OIALRSettings

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from oialr.huggingface import OIALRCallback  # noqa: E402

SETTINGS = OIALRSettings(
    delay_steps=4, update_frequency=4, cutoff_fraction=0.4, layer_fraction=1.0, min_dim=8
)


def make_model() -> nn.Module:
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=24, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def make_data() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(32, (48, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def make_trainer(folder: Path, max_steps: int = 16, **arguments: Any) -> Any:
    arguments = {
        "output_dir": str(folder),
        "max_steps": max_steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_steps": 10,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    } | arguments
    callback = OIALRCallback(SETTINGS)
    trainer = transformers.Trainer(
        make_model(),
        transformers.TrainingArguments(**arguments),
        train_dataset=make_data(),
        callbacks=[callback],
    )
    return trainer, callback


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OIALRCallback, Path]:
    folder = tmp_path_factory.mktemp("trained")
    trainer, callback = make_trainer(folder)
    trainer.train()
    return trainer, callback, folder


def test_it_trains_updates_and_keeps_embeddings_tied(
    trained: tuple[Any, OIALRCallback, Path],
) -> None:
    trainer, callback, _ = trained
    oialr = callback.oialr
    assert oialr.steps == 16
    assert {update.step for update in callback.updates} == {4, 8, 12, 16}
    assert len(oialr.low_rank_layers) == 8
    assert min(update.inner_rank for update in callback.updates) < 24
    assert trainer.model.lm_head.weight is trainer.model.transformer.wte.weight
    assert oialr.dense_layers["lm_head"] == "its weight is shared with another layer"


def test_a_checkpoint_is_a_dense_model(trained: tuple[Any, OIALRCallback, Path]) -> None:
    _, _, folder = trained
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / "checkpoint-16")
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


def test_a_resumed_training_goes_on_to_the_same_weights(
    trained: tuple[Any, OIALRCallback, Path],
) -> None:
    trainer, callback, folder = trained
    again, resumed = make_trainer(folder)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-10"))
    assert resumed.oialr.state_dict() == callback.oialr.state_dict()
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, msg=name)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    trainer, callback = make_trainer(tmp_path)
    with pytest.raises(OIALRError, match="has not begun"):
        _ = callback.oialr
    trainer.args.load_best_model_at_end = True
    with pytest.raises(OIALRError, match="load_best_model_at_end"):
        trainer.train()


def test_a_gpt2_in_a_loop_of_its_own_is_as_a_dense_one_before_a_cut() -> None:
    model, dense = make_model(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = OIALRSettings(delay_steps=0, update_frequency=10, cutoff_fraction=0.1, min_dim=8)
    oialr = OIALR(model, optimizer, settings)
    assert len(oialr.low_rank_layers) == 8
    tokens = make_data()[0]["input_ids"][None]
    torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, atol=1e-5, rtol=0)
