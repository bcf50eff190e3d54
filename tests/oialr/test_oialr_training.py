"""OIALR beside what else a training loop does: optimisers, precision, averages, compilation."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from oialr import (
    OIALR,
    BasisUpdate,
    LowRankLinear,
    OIALRError,
    OIALRSettings,
    stability,
)

NUM_STEPS = 12

# conversion and first update after step 3, then updates at 6, 9 and 12
SETTINGS = {
    "delay_steps": 3,
    "update_frequency": 3,
    "cutoff_fraction": 0.5,
    "layer_fraction": 0.4,
}


class Network(nn.Module):
    """One layer of each kind: 5 numbers and an image in, 8 numbers out."""

    def __init__(self, checkpointing: bool | None = None) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 8)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        if self.checkpointing is None:
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.checkpointing)
        return self.head(x.mean(dim=1))

    def block(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


Parameters = Any
OPTIMIZERS: dict[str, Callable[[Parameters], Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
}


class Training:
    """A loop with all that may go with it."""

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: str = "adamw",
        groups: Callable[[nn.Module], Parameters] | None = None,
        **changes: object,
    ) -> None:
        self.model = model or Network()
        parameters = groups(self.model) if groups else self.model.parameters()
        self.optimizer = OPTIMIZERS[optimizer](parameters)
        self.oialr = OIALR(self.model, self.optimizer, OIALRSettings(**(SETTINGS | changes)))
        self.call: Callable[[Tensor], Tensor] = self.model
        self.losses: list[float] = []
        self.updates: list[list[BasisUpdate]] = []

    def loss(self, images: Tensor) -> Tensor:
        targets = targets_of(images)
        return nn.functional.mse_loss(self.call(images)[:, :8].to(targets.dtype), targets)

    def run(self, first: int = 0, last: int = NUM_STEPS) -> "Training":
        for step in range(first, last):
            self.optimizer.zero_grad()
            loss = self.loss(images_of(step))
            loss.backward()
            self.losses.append(loss.item())
            self.optimizer.step()
            self.updates.append(self.oialr.step())
        return self

    @property
    def inner_ranks(self) -> list[int]:
        layers = self.oialr.low_rank_layers.values()
        return [weight.inner_rank for layer in layers for weight in layer.weights]


def images_of(step: int) -> Tensor:
    dtype = torch.get_default_dtype()
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=dtype)


def targets_of(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :8].sin()


@pytest.fixture(autouse=True)
def seeded_and_alone() -> Iterator[None]:
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check_trained(training: Training) -> None:
    """It converted, cut and went on; the optimiser holds the model's parameters and no others."""
    assert training.oialr.converted
    assert min(training.inner_ranks) <= 8
    held = [p for group in training.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(training.model.parameters())
    assert set(training.optimizer.state) <= set(held)
    for parameter in held:
        assert parameter.isfinite().all()
        for value in training.optimizer.state[parameter].values():
            assert value.ndim == 0 or value.shape == parameter.shape


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_function(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    images = images_of(99)
    with torch.no_grad():
        torch.testing.assert_close(one(images), other(images), **tolerance)


# optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    training = Training(optimizer=name)
    training.run(0, 3)
    before = training.loss(images_of(0)).item()
    for _ in range(30):
        training.run(0, 1)
    check_trained(training)
    assert training.losses[-1] < 0.7 * before


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["adamw_foreach", "adamw_fused"])
def test_foreach_and_fused_do_as_the_plain_loop(name: str) -> None:
    models = [Network()]
    models.append(copy.deepcopy(models[0]))
    trained = [
        Training(model, optimizer).run()
        for model, optimizer in zip(models, ("adamw", name), strict=True)
    ]
    assert trained[0].inner_ranks == trained[1].inner_ranks
    torch.testing.assert_close(trained[0].losses, trained[1].losses, atol=1e-9, rtol=1e-7)


def decayed_and_not(model: nn.Module) -> Parameters:
    parameters = list(model.named_parameters())
    return [
        {"params": [p for n, p in parameters if p.ndim > 1 and "mlp" not in n], "lr": 1e-3},
        {"params": [p for n, p in parameters if p.ndim > 1 and "mlp" in n], "weight_decay": 0.3},
        {"params": [p for _, p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("fused", ["together", "apart"])
def test_sigma_stays_in_the_group_of_its_weight(fused: str) -> None:
    training = Training(groups=decayed_and_not, fused_projections=fused).run(0, NUM_STEPS + 1)
    check_trained(training)
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    attention = {"together": ["0"], "apart": ["0", "1", "2"]}[fused]
    groups = training.optimizer.param_groups
    assert [[names[p] for p in group["params"]] for group in groups[:2]] == [
        [
            "patches.sigma",
            *(f"attention.in_proj.{block}.sigma" for block in attention),
            "attention.out_proj.sigma",
            "head.sigma",
        ],
        ["mlp.0.sigma", "mlp.2.sigma"],
    ]
    assert [group["lr"] for group in groups] == [1e-3, 3e-3, 3e-3]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.3, 0.0]
    sigma, bias = training.model.mlp[0].sigma, training.model.mlp[0].bias
    before = sigma.detach().clone(), bias.detach().clone()
    training.optimizer.zero_grad(set_to_none=False)
    for parameter in training.optimizer.state:
        for value in training.optimizer.state[parameter].values():
            if value.ndim:
                value.zero_()  # so that nothing but weight decay moves a parameter
    training.optimizer.step()
    torch.testing.assert_close(sigma.detach(), before[0] * (1 - 3e-3 * 0.3))
    assert torch.equal(bias, before[1])


# the loop


@pytest.mark.parametrize("name", ["adamw", "adamw_foreach", "sgd"])
def test_gradient_clipping(name: str) -> None:
    training = Training(optimizer=name)
    for step in range(NUM_STEPS):
        training.optimizer.zero_grad()
        (1e3 * training.loss(images_of(step))).backward()
        norm = nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
        assert norm > 1
        clipped = [parameter.grad.norm() for parameter in training.model.parameters()]
        torch.testing.assert_close(torch.stack(clipped).norm(), torch.tensor(0.1))
        training.optimizer.step()
        training.oialr.step()
    check_trained(training)


@pytest.mark.usefixtures("double")
def test_gradient_accumulation_is_one_step_of_the_whole_batch() -> None:
    whole, parts = (Training(model) for model in twins())
    whole.run()
    for step in range(NUM_STEPS):
        parts.optimizer.zero_grad()
        for images in images_of(step).chunk(4):
            (parts.loss(images) / 4).backward()
        parts.optimizer.step()
        parts.oialr.step()
    assert parts.inner_ranks == whole.inner_ranks
    check_trained(parts)
    assert_same_function(parts.model, whole.model, atol=1e-8, rtol=0)


def twins(**options: Any) -> tuple[Network, Network]:
    model = Network(**options)
    return model, copy.deepcopy(model)


def test_autocast() -> None:
    precise, training = (Training(model) for model in twins())
    precise.run()

    def call(images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = training.model(images)
        assert y.dtype == torch.bfloat16
        return y

    training.call = call
    training.run()
    check_trained(training)
    assert {tensor.dtype for tensor in training.model.state_dict().values()} == {torch.float32}
    assert training.losses == pytest.approx(precise.losses, rel=0.05)
    for weight in (training.model.mlp[0], training.model.patches):
        gram = weight.basis.mT @ weight.basis
        torch.testing.assert_close(gram, torch.eye(weight.inner_rank), atol=1e-5, rtol=0)


def test_grad_scaler_and_a_step_it_skips() -> None:
    training = Training()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(NUM_STEPS):
        training.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = training.loss(images_of(step))
        scaler.scale(loss * (float("inf") if step == 7 else 1)).backward()
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        before = copy.deepcopy(training.model.state_dict())
        scaler.step(training.optimizer)
        scaler.update()
        skipped = scaler.get_scale() < (2.0**10 if step <= 7 else 2.0**9)
        assert skipped == (step == 7)
        if skipped:
            assert_equal(training.model.state_dict(), before)
        training.oialr.step()
    check_trained(training)


@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in evaluation
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    model = Network()
    checkpointed = Network(checkpointing=reentrant)
    checkpointed.load_state_dict(model.state_dict())
    plain, training = Training(model).run(), Training(checkpointed).run()
    check_trained(training)
    assert training.inner_ranks == plain.inner_ranks
    torch.testing.assert_close(training.losses, plain.losses, atol=1e-10, rtol=0)
    assert_same_function(training.model, plain.model, atol=1e-8, rtol=0)


# hooks


def test_hooks_of_calls_go_on_and_their_handles_remove_them() -> None:
    training, called = Training(), []
    linear, attention = training.model.mlp[0], training.model.attention
    handles = [
        linear.register_forward_pre_hook(lambda *_: called.append("before")),
        linear.register_forward_hook(lambda *_, **__: called.append("after"), with_kwargs=True),
        linear.register_forward_hook(lambda *_: called.append("always"), always_call=True),
        linear.register_full_backward_pre_hook(lambda *_: called.append("backward before")),
        linear.register_full_backward_hook(lambda *_: called.append("backward")),
        attention.register_forward_hook(lambda *_: called.append("attention")),
    ]
    expected = ["attention", "before", "after", "always", "backward before", "backward"]
    for step in range(NUM_STEPS):
        called.clear()
        training.run(step, step + 1)
        assert called == expected
    assert isinstance(training.model.mlp[0], LowRankLinear)
    for handle in handles:
        handle.remove()
    called.clear()
    training.run(NUM_STEPS, NUM_STEPS + 1)
    assert called == []


def test_a_hook_that_changes_the_output_does_so_after_conversion() -> None:
    training = Training(delay_steps=1, cutoff_fraction=0.0)
    training.model.mlp[0].register_forward_hook(lambda _module, _inputs, y: 2 * y)
    assert_stays(training.model, training.oialr.step)


def assert_stays(model: nn.Module, action: Callable[[], object]) -> None:
    images = images_of(99)
    before = model(images)
    action()
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-4)


# averages of the weights

AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "averaged_model": AveragedModel,
    "averaged_model_ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.7)),
    "averaged_model_buffers": lambda m: AveragedModel(
        m, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True
    ),
    "timm": lambda m: ModelEmaV3(m, decay=0.7),
    "timm_no_buffers": lambda m: ModelEmaV3(m, decay=0.7, exclude_buffers=True),
}


def update_average(average: Any, model: nn.Module) -> None:
    (average.update if isinstance(average, ModelEmaV3) else average.update_parameters)(model)


def square_network() -> nn.Module:
    """U and V span everything: nothing of an average is lost."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 2, stride=4), nn.Flatten(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48)
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_of_square_weights_is_that_of_dense_training(name: str) -> None:
    """SGD on a square Σ is SGD on W, and so is its average."""
    model = square_network()
    dense = copy.deepcopy(model)
    training = Training(model, "sgd", cutoff_fraction=0.0, layer_fraction=1.0)
    optimizer = OPTIMIZERS["sgd"](dense.parameters())
    average, dense_average = AVERAGES[name](model), AVERAGES[name](dense)
    training.oialr.add_average(average.module)
    for step in range(NUM_STEPS):
        images = images_of(step)
        for m, o in ((model, training.optimizer), (dense, optimizer)):
            o.zero_grad()
            nn.functional.mse_loss(m(images)[:, :8], targets_of(images)).backward()
            o.step()
        training.oialr.step()
        update_average(average, model)
        update_average(dense_average, dense)
    assert isinstance(average.module[4], LowRankLinear)
    assert not torch.allclose(average.module[4].weight, model[4].weight)
    for i in (0, 2, 4):
        torch.testing.assert_close(average.module[i].weight, dense_average.module[i].weight)
        torch.testing.assert_close(average.module[i].bias, dense_average.module[i].bias)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("fused", ["together", "apart"])
@pytest.mark.parametrize("added_at", [0, 5])
def test_an_average_has_the_model_s_structure_and_the_best_of_its_own_weights(
    name: str, fused: str, added_at: int
) -> None:
    training = Training(fused_projections=fused)
    training.run(0, added_at)
    average = AVERAGES[name](training.model)
    training.oialr.add_average(average.module)
    for step in range(added_at, NUM_STEPS):
        update_average(average, training.model)
        before = [layer.weight.detach().clone() for layer in some_layers(average.module)]
        training.run(step, step + 1)
        if not training.oialr.converted:
            continue
        for layer, weight, averaged in zip(
            some_layers(training.model), before, some_layers(average.module), strict=True
        ):
            left, right = layer.basis @ layer.basis.mT, layer.cobasis.mT @ layer.cobasis
            held = left @ weight.flatten(1) @ right
            torch.testing.assert_close(averaged.weight.flatten(1), held, atol=1e-5, rtol=0)
    states = [module.state_dict() for module in (training.model, average.module)]
    assert list(states[0]) == list(states[1])
    for (name, tensor), averaged in zip(states[0].items(), states[1].values(), strict=True):
        assert tensor.shape == averaged.shape
        assert tensor.data_ptr() != averaged.data_ptr()
        if "basis" in name:
            assert torch.equal(tensor, averaged)


def some_layers(model: nn.Module) -> list[nn.Module]:
    return [model.patches, model.mlp[0], model.mlp[2], model.head]


def test_an_average_in_another_precision() -> None:
    training = Training()
    average = ModelEmaV3(training.model, decay=0.7, dtype=torch.float64)
    training.oialr.add_average(average.module)
    for step in range(NUM_STEPS):
        training.run(step, step + 1)
        average.update(training.model)
    assert {tensor.dtype for tensor in average.module.state_dict().values()} == {torch.float64}


def test_a_stranger_is_no_average() -> None:
    training = Training(delay_steps=0)
    with pytest.raises(OIALRError, match="no copy of the model: it has no layer 'patches'"):
        training.oialr.add_average(square_network())


def test_an_average_is_resumed() -> None:
    def make() -> tuple[Training, AveragedModel]:
        training = Training()
        average = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
        training.oialr.add_average(average.module)
        return training, average

    def run(training: Training, average: AveragedModel, first: int, last: int) -> None:
        for step in range(first, last):
            training.run(step, step + 1)
            average.update_parameters(training.model)

    training, average = make()
    run(training, average, 0, 7)
    parts = [training.oialr, training.model, training.optimizer, average]
    states = copy.deepcopy([part.state_dict() for part in parts])
    run(training, average, 7, NUM_STEPS)
    torch.manual_seed(9)
    resumed, resumed_average = make()
    resumed_parts = [resumed.oialr, resumed.model, resumed.optimizer, resumed_average]
    for part, state in zip(resumed_parts, states, strict=True):
        part.load_state_dict(state)
    run(resumed, resumed_average, 7, NUM_STEPS)
    for part, expected in zip(resumed_parts, parts, strict=True):
        assert_equal(part.state_dict(), expected.state_dict())


# compilation


@pytest.mark.usefixtures("double")
def test_compiled_training_does_as_the_plain_one() -> None:
    torch.compiler.reset()
    plain, training = (Training(model) for model in twins())
    plain.run(0, 8)
    training.call = torch.compile(training.model, backend="eager")
    training.run(0, 8)  # dense, converted and cut, cut again
    check_trained(training)
    assert training.inner_ranks == plain.inner_ranks
    torch.testing.assert_close(training.losses, plain.losses, atol=1e-10, rtol=1e-8)
    assert_same_function(training.call, plain.model, atol=1e-8, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("reset", [True, False])
def test_beyond_the_recompile_limit(reset: bool) -> None:
    """Past it torch goes on uncompiled; a reset after each update keeps the model compiled."""
    torch.compiler.reset()
    model = square_network()
    plain, training = (
        Training(m, update_frequency=1, cutoff_fraction=0.9, max_cut_fraction=0.1)
        for m in (model, copy.deepcopy(model))
    )
    num_compiled = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        nonlocal num_compiled
        num_compiled += 1
        return graph

    compiled = torch.compile(training.model, backend=count)
    num_steps = torch._dynamo.config.recompile_limit + 5
    for step in range(num_steps):
        training.call = compiled
        training.run(step, step + 1)
        if reset and training.updates[-1]:
            torch.compiler.reset()
    plain.run(0, num_steps)
    assert training.inner_ranks == plain.inner_ranks
    torch.testing.assert_close(training.losses, plain.losses, atol=1e-10, rtol=1e-8)
    # one graph of the dense model, one after each update but the last
    assert num_compiled == (num_steps - 2 if reset else torch._dynamo.config.recompile_limit)


@pytest.mark.slow
def test_inductor() -> None:
    torch.compiler.reset()
    plain, training = (Training(model) for model in twins())
    plain.run()
    training.call = torch.compile(training.model)
    training.run()
    check_trained(training)
    torch.testing.assert_close(training.losses, plain.losses, atol=1e-4, rtol=1e-3)


# saving and loading


@pytest.mark.parametrize("name", ["adamw", "adamw_fused", "sgd"])
@pytest.mark.parametrize("saved_at", [0, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("groups", [None, decayed_and_not])
def test_resumed_bit_for_bit(
    name: str, saved_at: int, groups: Callable[[nn.Module], Parameters] | None
) -> None:
    training = Training(optimizer=name, groups=groups, fused_projections="apart").run(0, saved_at)
    file = io.BytesIO()
    torch.save([p.state_dict() for p in (training.oialr, training.model, training.optimizer)], file)
    training.run(saved_at, NUM_STEPS)
    torch.manual_seed(9)
    resumed = Training(optimizer=name, groups=groups, fused_projections="apart")
    file.seek(0)
    states = torch.load(file, weights_only=True)
    parts = (resumed.oialr, resumed.model, resumed.optimizer)
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    resumed.run(saved_at, NUM_STEPS)
    check_trained(resumed)
    expected = (training.oialr, training.model, training.optimizer)
    for part, other in zip(parts, expected, strict=True):
        assert_equal(part.state_dict(), other.state_dict())
    assert resumed.losses == training.losses[saved_at:]


def test_stability_of_a_resumed_update_is_that_of_the_uninterrupted() -> None:
    training = Training().run(0, 5)
    states = copy.deepcopy(
        [p.state_dict() for p in (training.oialr, training.model, training.optimizer)]
    )
    resumed = Training()
    for part, state in zip((resumed.oialr, resumed.model, resumed.optimizer), states, strict=True):
        part.load_state_dict(state)
    layer = training.model.head
    old = layer.basis, layer.cobasis
    for each in (training, resumed):
        each.optimizer.zero_grad()
        each.loss(images_of(5)).backward()
        each.optimizer.step()
    updates, resumed_updates = training.oialr.step(), resumed.oialr.step()
    assert updates == resumed_updates
    assert updates[-1].layer == "head"
    assert updates[-1].stability == stability(*old, layer.basis, layer.cobasis)
