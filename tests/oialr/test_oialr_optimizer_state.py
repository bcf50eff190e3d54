import copy

import pytest
import torch
from torch import Tensor, nn

from oialr import OIALR, LowRankLinear, OIALRError, OIALRSettings
from oialr.basis_update import update_bases
from oialr.decomposition import decompose


def slow_first(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """m_ab = sum over i, j of L_ia m_ij R_jb"""
    return torch.einsum("ia,ij,jb->ab", left, moment, right)


def slow_second(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("ia,ia,ij,jb,jb->ab", left, left, moment, right, right)


def make_settings(**changes: object) -> OIALRSettings:
    values = {"delay_steps": 3, "update_frequency": 1000, "cutoff_fraction": 0.0}
    return OIALRSettings(**(values | changes))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(12, 4, dtype=torch.float64)).sin().square().sum().backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}
FIRST = {"exp_avg", "momentum_buffer", "grad_avg"}
SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg"}


def check_followed(
    old: dict[str, object], new: dict[str, object], left: Tensor, right: Tensor
) -> None:
    assert set(old) == set(new)
    for key, value in old.items():
        if key in FIRST:
            torch.testing.assert_close(new[key], slow_first(value, left, right))
        elif key in SECOND:
            torch.testing.assert_close(new[key], slow_second(value, left, right))
            assert (new[key] >= 0).all()
        else:
            assert key == "step"
            assert new[key] == value
            assert new[key] is not value


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 7)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 7, 2)),
    "grouped": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 6, (1, 2), padding="same", groups=2)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_moments_follow_conversion_and_update(name: str, kind: str) -> None:
    model = MODELS[kind]().double()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, steps=3)
    dense_state = {
        key: value.flatten(1) if value.ndim else value
        for key, value in copy.deepcopy(optimizer.state[model[-1].weight]).items()
    }
    bias_state = optimizer.state[model[-1].bias]
    oialr = OIALR(model, optimizer, make_settings(delay_steps=0))
    layer = model[-1]
    assert list(oialr.low_rank_layers.values()) == [layer]
    check_followed(dense_state, optimizer.state[layer.sigma], layer.basis, layer.cobasis.mT)
    assert optimizer.state[layer.bias] is bias_state

    train(model, optimizer, steps=2)
    sigma, basis, cobasis = layer.sigma, layer.basis, layer.cobasis
    sigma_state = copy.deepcopy(optimizer.state[sigma])
    update_bases([layer], optimizer, make_settings(cutoff_fraction=0.9))
    assert layer.inner_rank == 2
    # U' and V' up to sign, out of the bases before and after
    left, right = basis.mT @ layer.basis, cobasis @ layer.cobasis.mT
    check_followed(sigma_state, optimizer.state[layer.sigma], left, right)
    assert sigma not in optimizer.state
    train(model, optimizer, steps=2)


def check_kept(old: dict[str, object], new: dict[str, object], expect) -> None:  # type: ignore[no-untyped-def]
    """Compare with what `expect` makes of each old moment; no other tensor keeps a moment alive."""
    assert set(old) == set(new)
    for key, value in old.items():
        if key == "step":
            assert new[key] == value
            continue
        assert torch.equal(new[key], expect(value))
        assert new[key].is_contiguous()
        assert new[key].untyped_storage().nbytes() == new[key].numel() * 8


@pytest.mark.parametrize("name", ["adamw", "amsgrad", "fused", "momentum", "rmsprop"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer_state", ["cut", "reset"])
def test_moments_are_cut_or_reset_by_option(name: str, kind: str, optimizer_state: str) -> None:
    model = MODELS[kind]().double()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, steps=3)
    settings = make_settings(
        delay_steps=0, cutoff_fraction=0.9, update_frequency=3, optimizer_state=optimizer_state
    )
    dense_state = copy.deepcopy(optimizer.state[model[-1].weight])
    bias_state = copy.deepcopy(optimizer.state[model[-1].bias])
    oialr = OIALR(model, optimizer, settings)
    layer = model[-1]
    zeros = layer.sigma.new_zeros(4, 4)
    check_kept(dense_state, optimizer.state[layer.sigma], lambda moment: zeros)
    check_kept(bias_state, optimizer.state[layer.bias], lambda moment: moment)

    for _ in range(3):
        train(model, optimizer)
        sigma, sigma_state = layer.sigma, copy.deepcopy(optimizer.state[layer.sigma])
        updates = oialr.step()
    assert updates[0].inner_rank == layer.inner_rank == 2
    assert all(m.abs().min() > 0 for key, m in sigma_state.items() if key != "step")
    corner = {"cut": lambda m: m[:2, :2], "reset": lambda m: torch.zeros_like(m[:2, :2])}
    check_kept(sigma_state, optimizer.state[layer.sigma], corner[optimizer_state])
    assert sigma not in optimizer.state
    train(model, optimizer, steps=2)
    assert layer.sigma.isfinite().all()


@pytest.mark.parametrize("optimizer_state", ["cut", "reset"])
def test_state_that_is_not_there_stays_away(optimizer_state: str) -> None:
    model = nn.Sequential(nn.Linear(4, 7)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = make_settings(delay_steps=0, update_frequency=1, optimizer_state=optimizer_state)
    oialr = OIALR(model, optimizer, settings)
    for _ in range(2):
        assert oialr.step()
        train(model, optimizer)  # without momentum torch keeps None


def test_blocks_apart_take_their_rows_of_the_moments() -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12, dtype=torch.float64)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model["qkv"], optimizer, steps=3)
    before = copy.deepcopy(optimizer.state[model["qkv"].weight])
    OIALR(model, optimizer, make_settings(delay_steps=0, fused_projections="apart"))
    for i, weight in enumerate(model["qkv"].weights):
        rows = slice(4 * i, 4 * i + 4)
        block = {key: value[rows] if value.ndim else value for key, value in before.items()}
        check_followed(block, optimizer.state[weight.sigma], weight.basis, weight.cobasis.mT)
    steps = [optimizer.state[weight.sigma]["step"] for weight in model["qkv"].weights]
    train(model["qkv"], optimizer)
    assert [step.item() for step in steps] == [4, 4, 4]  # each has its own count


def test_a_constant_second_moment_stays_constant() -> None:
    weight = torch.randn(7, 5, dtype=torch.float64)
    layer = LowRankLinear(decompose(weight), None)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    layer.sigma.grad = torch.randn_like(layer.sigma)
    optimizer.step()
    optimizer.state[layer.sigma]["exp_avg_sq"].fill_(0.25)
    update_bases([layer], optimizer, make_settings(cutoff_fraction=0.9))
    second = optimizer.state[layer.sigma]["exp_avg_sq"]
    assert len(second) < 5
    torch.testing.assert_close(second, torch.full_like(second, 0.25))


def test_an_adamw_step_with_constant_v_does_not_notice_the_update() -> None:
    weight = torch.randn(7, 5, dtype=torch.float64)
    layer = LowRankLinear(decompose(weight), None)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, betas=(0.9, 1 - 1e-12))
    layer.sigma.grad = torch.randn_like(layer.sigma)
    optimizer.step()
    state = optimizer.state[layer.sigma]
    state["exp_avg_sq"].fill_(1e-12)
    other, gradient = copy.deepcopy((layer, optimizer.state_dict())), torch.randn_like(weight)
    twin, twin_optimizer = other[0], torch.optim.AdamW(other[0].parameters())
    twin_optimizer.load_state_dict(other[1])
    update_bases([layer], optimizer, make_settings())
    for stepped, its_optimizer in ((layer, optimizer), (twin, twin_optimizer)):
        its_optimizer.zero_grad()
        (stepped.weight * gradient * 1e-9).sum().backward()
        its_optimizer.step()
    torch.testing.assert_close(layer.weight, twin.weight, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer_state", "low", "high"),
    [("rotate", 0.5, 1.1), ("cut", 3, 10), ("reset", 3, 10)],
)
def test_only_rotated_moments_spare_a_loss_spike_at_conversion(
    optimizer_state: str, low: float, high: float
) -> None:
    inputs = torch.randn(256, 16)
    targets = (inputs @ torch.randn(16, 8)).tanh()
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    delay = 300
    settings = make_settings(delay_steps=delay, optimizer_state=optimizer_state)
    oialr, losses = OIALR(model, optimizer, settings), []
    for _ in range(delay + 20):
        batch = torch.randint(256, (32,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        oialr.step()
        with torch.no_grad():
            losses.append(nn.functional.mse_loss(model(inputs), targets).item())
    assert oialr.converted
    assert losses[delay - 1] < 0.1 * losses[0]
    assert low < max(losses[delay:]) / losses[delay - 1] < high


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 4)).double()


class Preconditioned(torch.optim.SGD):
    """Keeps a list of matrices for each weight, as timm's Kron does."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] |= {"Q": [torch.eye(side) for side in parameter.shape]}


UNFIT = [
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.LBFGS,
    torch.optim.Rprop,
    Preconditioned,
]


@pytest.mark.parametrize("kind", UNFIT)
def test_an_optimizer_whose_state_cannot_follow_is_refused_at_once(kind) -> None:  # type: ignore[no-untyped-def]
    model = make_model()
    optimizer = kind(model.parameters(), lr=0.01)
    random_state = torch.get_rng_state()
    with pytest.raises(OIALRError, match=rf"^{kind.__name__} cannot train with OIALR: .* as '\w+'"):
        OIALR(model, optimizer, make_settings())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not optimizer.state
    assert all(type(layer) is nn.Linear for layer in model)


class LayerNormalised(torch.optim.SGD):
    """Keeps one second moment for the whole of a weight, as timm's NvNovoGrad does."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg_sq"] = parameter.grad.square().sum()


FIT = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "layer_normalised": lambda p: LayerNormalised(p, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS | FIT)
def test_an_optimizer_whose_state_follows_trains_on(name: str) -> None:
    model = make_model()
    optimizer = (OPTIMIZERS | FIT)[name](model.parameters())
    oialr = OIALR(model, optimizer, make_settings(cutoff_fraction=0.5, update_frequency=2))
    for _ in range(8):
        train(model, optimizer)
        oialr.step()
    assert model[-1].inner_rank < 4
    for layer in model:
        for value in optimizer.state[layer.sigma].values():
            shaped = isinstance(value, Tensor) and value.ndim > 0
            assert not shaped or value.shape == layer.sigma.shape


class RowNormSGD(torch.optim.SGD):
    """Keeps a number for each row; how to make a new one only its owner knows."""

    def __init__(self, parameters: object, lr: float, *, secret: object) -> None:
        super().__init__(parameters, lr)  # type: ignore[arg-type]

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["row_norms"] = parameter.grad.norm(dim=-1)


def test_an_optimizer_of_which_none_can_be_made_is_refused_before_anything_changes() -> None:
    model = make_model()
    optimizer = RowNormSGD(model.parameters(), 0.1, secret="a mesh")
    oialr = OIALR(model, optimizer, make_settings(delay_steps=1))
    train(model, optimizer)
    with pytest.raises(OIALRError, match=r"RowNormSGD cannot train with OIALR: .* as 'row_norms'"):
        oialr.step()
    assert all(type(layer) is nn.Linear for layer in model)
    assert not oialr.converted
