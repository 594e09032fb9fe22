"""The twin is an ordinary module: trained by an ordinary loop, measured by the ordinary recorder."""

import pytest
import torch
from torch import Tensor, nn

from torch_dmft import Probe, Recorder, infinite_width, parameterize
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError


def test_a_recorder_measures_the_twin_while_it_trains() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.sign(torch.randn(6, 1, generator=generator, dtype=torch.float64))
    probe = Probe(inputs, targets)

    def factory(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    limit = infinite_width(factory, inputs, neurons=512, tolerance=1e-6)
    optimizer = torch.optim.SGD(limit.param_groups(0.3))
    recorder = Recorder(limit, probe)
    found = []
    with recorder.attach(optimizer):
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(limit.model(inputs), targets)
            loss.backward()
            optimizer.step()
            found.append(loss.item())

    measured = recorder.trajectory()
    assert measured.origin == "theory (N=inf)"
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]
    torch.testing.assert_close(measured.losses[:-1], torch.tensor(found, dtype=torch.float64), rtol=1e-6, atol=0)


def test_adam_is_refused_since_it_sees_single_entries_of_a_weight() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    limit = infinite_width(model, torch.zeros(2, 5), neurons=64)
    with pytest.raises(InvalidInputError, match="sgd"):
        limit.param_groups(0.1, optimizer="adam")


def test_norm_layers_that_start_elsewhere_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
    nn.init.constant_(model[1].weight, 0.5)
    nn.init.constant_(model[1].bias, 0.3)
    with pytest.raises(UnsupportedModelError, match=r"(?s)1\.weight.*1\.bias"):
        infinite_width(model, torch.zeros(2, 5), neurons=64)


class Reader(nn.Module):
    """Parameters of every kind that a twin has; ``also`` has another name for two of its modules."""

    def __init__(self, width: int = 16, *, also: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, width), nn.Parameter(torch.randn(3, width))
        self.mix, self.norm = nn.Linear(width, width), nn.GroupNorm(4, width)
        self.scale, self.head = nn.Parameter(torch.full((width,), 0.5)), nn.Linear(width, 1)
        self.blocks = nn.ModuleList([self.mix, self.norm]) if also else None

    def forward(self, ids: Tensor) -> Tensor:
        mix, norm = self.blocks or (self.mix, self.norm)
        h = self.tokens(ids) + self.positions
        result: Tensor = self.head(norm((h + self.scale * torch.tanh(mix(h))).mean(1)))
        return result


NAMES = [name for name, _ in Reader().named_parameters()]
IDS = torch.tensor([[4, 3, 0], [2, 1, 2], [6, 3, 4]])


@pytest.mark.parametrize("given", ["model", "plan", "factory"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_frozen(name: str, given: str) -> None:
    def factory(width: int = 16) -> nn.Module:
        model = Reader(width)
        model.get_parameter(name).requires_grad_(False)
        return model

    made = {"model": factory, "plan": lambda: parameterize(factory(), IDS), "factory": lambda: factory}[given]()
    twin = infinite_width(made, IDS, neurons=240).model
    frozen = {path for path, parameter in twin.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"mix.core", "mix.initial_scale"} if name == "mix.weight" else {name})
    before = {path: parameter.clone() for path, parameter in twin.named_parameters()}
    twin(IDS).square().sum().backward()  # draws the readout
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    assert all(torch.equal(before[path], twin.get_parameter(path)) for path in frozen - {"head.weight"})


def test_modules_may_have_several_names() -> None:
    def outputs(*, also: bool) -> Tensor:
        torch.manual_seed(0)
        twin = infinite_width(Reader(also=also), IDS, neurons=64).model
        result: Tensor = twin(IDS)
        return result

    assert torch.equal(outputs(also=True), outputs(also=False))
    assert float(outputs(also=True).abs().max()) > 0
