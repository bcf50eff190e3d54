import pytest
import torch
from torch import Tensor, nn

from workers.oialr import OIALR, OIALRSettings, stability
from workers.oialr.decomposition import decompose


def slow_stability(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> float:
    orthogonal_old, orthogonal_new = old[0] @ old[1], new[0] @ new[1]
    inner_rank = min(old[0].shape[1], new[0].shape[1])
    return torch.trace(orthogonal_old @ orthogonal_new.mT).item() / inner_rank


def bases(m: int, n: int) -> tuple[Tensor, Tensor]:
    factors = decompose(torch.randn(m, n, dtype=torch.float64))
    return factors.basis, factors.cobasis


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_stability_of_equal_bases_is_one(shape: tuple[int, int]) -> None:
    basis, cobasis = bases(*shape)
    assert stability(basis, cobasis, basis, cobasis) == pytest.approx(1)
    assert stability(basis, cobasis, -basis, cobasis) == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("kept", [5, 3, 1])
def test_stability_agrees_with_the_dense_definition(shape: tuple[int, int], kept: int) -> None:
    old, new = bases(*shape), bases(*shape)
    new = (new[0][:, :kept], new[1][:kept])
    assert stability(*old, *new) == pytest.approx(slow_stability(old, new))
    assert abs(stability(*old, *new)) < 1


def test_stability_does_not_know_how_a_basis_is_turned() -> None:
    old, new = bases(7, 4), bases(7, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned = (new[0] @ turn, turn.mT @ new[1])
    assert stability(*old, *turned) == pytest.approx(stability(*old, *new))


def test_dropped_directions_do_not_count_as_unstable() -> None:
    basis, cobasis = bases(8, 6)
    assert stability(basis, cobasis, basis[:, :2], cobasis[:2]) == pytest.approx(1)


def test_percentages_by_hand() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 1))
    model[3].bias.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    oialr = OIALR(
        model,
        optimizer,
        OIALRSettings(
            delay_steps=1,
            update_frequency=1,
            cutoff_fraction=0.99,
            max_cut_fraction=0.5,
            layer_fraction=0.5,
        ),
    )
    total = (48 + 8) + 16 + (64 + 8) + (8 + 1)
    dense_only = 8 + 16 + 8 + 8  # biases, batch norm and the head's weight
    assert (oialr.trainable_percent, oialr.compression_percent) == (100, 100)
    oialr.step()  # only the last low-rank layer is cut: 8 -> 4
    assert oialr.trainable_percent == pytest.approx(100 * (36 + 16 + dense_only) / (total - 1))
    low_rank = 6 * (6 + 8 + 6) + 4 * (8 + 8 + 4)
    assert oialr.compression_percent == pytest.approx(100 * (low_rank + dense_only + 1) / total)
    assert oialr.compression_percent > 100


def test_a_convolution_counts_as_its_matrix() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Conv1d(5, 4, 2, bias=False))
    settings = OIALRSettings(
        delay_steps=0, update_frequency=1, cutoff_fraction=0.99, layer_fraction=1.0
    )
    oialr = OIALR(model, torch.optim.SGD(model.parameters(), lr=0.1), settings)
    oialr.step()  # 20 -> 10 and 4 -> 2
    total = (20 * 27 + 20) + 40 + 4 * 10
    low_rank = (10 * (20 + 27 + 10) + 20) + 40 + 2 * (4 + 10 + 2)
    assert oialr.compression_percent == pytest.approx(100 * low_rank / total)
    assert oialr.trainable_percent == pytest.approx(100 * (100 + 20 + 40 + 4) / total)
