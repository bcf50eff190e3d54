"""`transformers.Conv1D` trains as the `nn.Linear` of the transposed weight does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oialr import OIALR, Observer, OIALRSettings, export

SETTINGS = OIALRSettings(
    delay_steps=3, update_frequency=3, cutoff_fraction=0.4, layer_fraction=1.0, max_aspect_ratio=5
)


class Conv1D(nn.Module):
    """As in transformers 5: a linear layer whose weight is in x out."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.3)
        self.bias = nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


Conv1D.__module__ = "transformers.pytorch_utils"


class Language(nn.Module):
    """Tokens in, tokens out, by one matrix."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 12)
        self.layers = nn.Sequential(Conv1D(24, 12), nn.GELU(), Conv1D(12, 24))
        if linear:
            for place in (0, 2):
                self.layers[place] = as_linear(self.layers[place])
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.layers(x))


def as_linear(layer: nn.Module) -> nn.Linear:
    linear = nn.Linear(layer.nx, layer.nf)
    linear.weight, linear.bias = nn.Parameter(layer.weight.detach().mT.clone()), layer.bias
    return linear


def train(linear: bool = False) -> tuple[Language, OIALR]:
    model = Language(linear)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    oialr = OIALR(model, optimizer, SETTINGS)
    observer = Observer(model, interval=5)
    for step in range(10):
        tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten()).backward()
        optimizer.step()
        oialr.step()
        observer.step()
    return model, oialr


@pytest.fixture(scope="module")
def trained() -> tuple[Language, OIALR]:
    return train()


TOKENS = torch.arange(10).view(2, 5)


def test_it_trains_as_the_linear_layer(trained: tuple[Language, OIALR]) -> None:
    model, oialr = trained
    expected, expected_oialr = train(linear=True)
    assert list(oialr.low_rank_layers) == ["layers.0", "layers.2"]
    ranks = oialr.state_dict()["inner_ranks"]
    assert ranks == expected_oialr.state_dict()["inner_ranks"]
    assert max(*ranks["layers.0"], *ranks["layers.2"]) < 12
    torch.testing.assert_close(model(TOKENS), expected(TOKENS), atol=1e-10, rtol=0)
    weight = model.layers[0].weight
    torch.testing.assert_close(weight, expected.layers[0].weight.mT, atol=1e-10, rtol=0)


def test_tied_embeddings_stay_tied_and_dense(trained: tuple[Language, OIALR]) -> None:
    model, oialr = trained
    assert model.head.weight is model.embedding.weight
    assert oialr.dense_layers == {"head": "its weight is shared with another layer"}
    exported = export(model)
    assert exported.head.weight is exported.embedding.weight


def test_its_exported_forms(trained: tuple[Language, OIALR]) -> None:
    model, _ = trained
    for form in ("dense", "smallest"):
        torch.testing.assert_close(export(model, form)(TOKENS), model(TOKENS), atol=1e-10, rtol=0)
    fresh = Language(linear=False)
    exported = export(model)
    assert {type(exported.layers[place]) for place in (0, 2)} == {Conv1D}
    fresh.load_state_dict(exported.state_dict())
    assert (exported.layers[0].nf, exported.layers[0].nx) == (24, 12)
    torch.testing.assert_close(fresh(TOKENS), model(TOKENS), atol=1e-10, rtol=0)


def test_only_the_class_of_transformers_is_taken() -> None:
    class Other(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Other(12, 12), copy.deepcopy(Language(linear=False).float()).layers)
    oialr = OIALR(model, torch.optim.SGD(model.parameters()), SETTINGS)
    assert oialr.dense_layers == {"0": "Other has a forward of its own"}
    Mine = type("Conv1D", (nn.Linear,), {"__module__": "mine"})
    model = nn.Sequential(Mine(12, 12), model[1])
    oialr = OIALR(model, torch.optim.SGD(model.parameters()), SETTINGS)
    assert oialr.dense_layers == {}
