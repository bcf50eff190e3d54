import io
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from oialr import OIALR, OIALRError, OIALRSettings

Training = tuple[nn.Module, torch.optim.Optimizer, OIALR]


def make_model() -> nn.Module:
    return nn.Sequential(
        VisionTransformer(
            img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=12
        ),
        nn.MultiheadAttention(12, 2),
        nn.Conv1d(12, 12, 3, padding=1, padding_mode="circular"),
    )


def make_training(**changes: object) -> Training:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, amsgrad=True)
    values = {
        "delay_steps": 2,
        "update_frequency": 2,
        "cutoff_fraction": 0.4,
        "layer_fraction": 0.5,
        "fused_projections": "apart",
    } | changes
    return model, optimizer, OIALR(model, optimizer, OIALRSettings(**values))


def train(training: Training, first: int, last: int) -> None:
    model, optimizer, oialr = training
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images, attention, convolution = model
        x = images(torch.randn(4, 3, 16, 16, generator=generator))
        optimizer.zero_grad()
        convolution(attention(x, x, x)[0].mT).square().mean().backward()
        optimizer.step()
        oialr.step()


def save(training: Training) -> io.BytesIO:
    file = io.BytesIO()
    torch.save([part.state_dict() for part in training], file)
    file.seek(0)
    return file


def load(training: Training, file: io.BytesIO) -> None:
    model, optimizer, oialr = training
    model_state, optimizer_state, oialr_state = torch.load(file, weights_only=True)
    oialr.load_state_dict(oialr_state)
    model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("saved_at", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("changes", [{}, {"full_rank_warmup": False}, {"delay_steps": 0}])
def test_a_resumed_training_is_the_same_bit_for_bit(
    saved_at: int, changes: dict[str, object]
) -> None:
    torch.manual_seed(0)
    uninterrupted = make_training(**changes)
    train(uninterrupted, 0, saved_at)
    file = save(uninterrupted)
    train(uninterrupted, saved_at, 9)

    torch.manual_seed(99)
    resumed = make_training(**changes)
    load(resumed, file)
    assert resumed[2].steps == saved_at
    train(resumed, saved_at, 9)
    for part, expected in zip(resumed, uninterrupted, strict=True):
        assert_equal(part.state_dict(), expected.state_dict())
    assert resumed[2].compression_percent == uninterrupted[2].compression_percent
    inner_ranks = resumed[2].state_dict()["inner_ranks"]
    assert min(min(ranks) for ranks in inner_ranks.values()) < 12


def test_a_state_can_be_loaded_into_a_training_under_way() -> None:
    torch.manual_seed(0)
    first, second = make_training(), make_training()
    train(first, 0, 5)
    file = save(first)
    train(second, 20, 21)
    load(second, file)
    train(first, 5, 7)
    train(second, 5, 7)
    assert_equal(first[1].state_dict(), second[1].state_dict())


def test_a_dense_state_does_not_fit_a_converted_model() -> None:
    early, late = make_training(), make_training()
    train(late, 0, 3)
    with pytest.raises(OIALRError, match="build it anew"):
        late[2].load_state_dict(early[2].state_dict())


def test_a_state_of_other_layers_is_refused() -> None:
    trained = make_training()
    train(trained, 0, 3)
    fresh = make_training(keep_dense=("0.blocks.0.mlp.fc1",))
    with pytest.raises(OIALRError, match=r"0\.blocks\.0\.mlp\.fc1"):
        fresh[2].load_state_dict(trained[2].state_dict())
    assert not fresh[2].converted
