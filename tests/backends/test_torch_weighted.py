"""FNGD's weights within the backward pass: the gradient is the direction, all else as it was."""

import ngd_torch
import pytest
import torch
from backends.torch_cases import flat
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N, ITERATIONS = 6, 2
SIZES = {"batch_size": N, "iterations": ITERATIONS, "dataset_size": 3 * N}


class Net(nn.Module):
    """Every kind of layer that can be weighted, one of them used twice, and two that cannot."""

    def __init__(self):
        super().__init__()
        self.look = nn.Embedding(7, 4)
        self.signal = nn.Conv1d(4, 6, 3, padding="same", groups=2)
        self.dense = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.image = nn.Conv2d(1, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False)
        self.border = nn.Conv2d(3, 2, 2, padding=1, padding_mode="reflect")
        self.head = nn.Linear(2 * 5 * 5, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, tokens):
        h = self.relu(self.signal(self.look(tokens).mT)).mT
        h = self.norm(self.relu(self.dense(h)))
        h = h + self.dense(torch.cat([h, h[..., :1]], -1))
        return self.head(self.relu(self.border(self.image(h[:, None]))).flatten(1))


def batch(k, n=N):
    r = torch.Generator().manual_seed(k)
    return torch.randint(0, 7, (n, 7), generator=r), torch.randint(0, 3, (n,), generator=r)


def step(model, optimizer, k, n=N):
    x, y = batch(k, n)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def trained(*, weighted, share, dtype):
    torch.manual_seed(0)
    model = Net().to(dtype)
    optimizer = ngd_torch.FNGD(
        model, 0.1, damping=1.0, share=share, weighted_backward=weighted, **SIZES
    )
    for k in range(3 * ITERATIONS):
        if share == "sample":
            optimizer.index = torch.arange(N) + 3 * (k % ITERATIONS)
        step(model, optimizer, k)
        if k % ITERATIONS == 1:
            optimizer.epoch_end()
    return flat(model).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", ["position", "iteration", "sample"])
def test_steps_are_those_of_weighted_sums_formed_beside_the_gradients(share, dtype):
    got, want = (
        trained(weighted=weighted, share=share, dtype=getattr(torch, dtype))
        for weighted in (True, False)
    )
    assert_close(got, want, dtype=dtype, size=1000, kappa=10)


@pytest.mark.parametrize("n", [N, N - 2])
def test_the_gradient_is_the_weighted_sum_of_per_example_gradients(n):
    """Some weights are 0: the layers below see the gradient all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = ngd_torch.FNGD(model, 0.1, weighted_backward=True, **SIZES)
    optimizer.epoch_end()
    curvature = optimizer.curvature
    weights = {"0": torch.tensor([1.0, 0, 2, -1, 0.5, 3]), "2": torch.zeros(N)}
    layers = {
        spec: layer._replace(
            table=layer.table._replace(
                weights=weights[spec.name].double(), known=torch.ones(N, dtype=torch.bool)
            )
        )
        for spec, layer in curvature.state.layers.items()
    }
    curvature.state = ngd_core.methods.fngd.FNGDState(layers)
    x, y = torch.randn(n, 3).double(), torch.arange(n) % 3
    model.eval()  # passes that are not for training are not looked at
    alone = [
        torch.autograd.grad(functional.cross_entropy(model(x[[k]]), y[[k]]), model.parameters())
        for k in range(n)
    ]
    model.train()
    functional.cross_entropy(model(x), y).backward()
    names = [name.partition(".")[0] for name, _ in model.named_parameters()]
    for place, (name, p) in enumerate(zip(names, model.parameters(), strict=True)):
        want = sum(weights[name][k] * alone[k][place] for k in range(n)) / n
        assert_close(p.grad.numpy(), want.numpy(), size=n, scale=1.0)


def test_the_first_epoch_is_that_without():
    models = []
    for weighted in (True, False):
        torch.manual_seed(0)
        models.append(Net())
        optimizer = ngd_torch.FNGD(models[-1], 0.1, weighted_backward=weighted, **SIZES)
        step(models[-1], optimizer, 0)
    assert torch.equal(*map(flat, models))


def test_two_batches_in_one_step_are_refused_as_ever():
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = ngd_torch.FNGD(model, 0.1, weighted_backward=True, **SIZES)
    optimizer.epoch_end()
    losses = [
        functional.cross_entropy(model(torch.ones(N, 3)), torch.arange(N) % 3) for _ in range(2)
    ]
    losses[0].backward()
    with pytest.raises(RuntimeError, match="saw two batches in one step"):
        losses[1].backward()


def test_a_batch_that_is_not_finite_moves_nothing():
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = ngd_torch.FNGD(model, 0.1, weighted_backward=True, **SIZES)
    optimizer.epoch_end()
    before = flat(model)
    functional.cross_entropy(model(torch.full((N, 3), torch.nan)), torch.arange(N) % 3).backward()
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert optimizer.skipped == 1


def test_the_report_counts_no_sum_beside_the_gradient():
    costs = []
    for weighted in (True, False):
        model = nn.Sequential(nn.Linear(3, 3))
        optimizer = ngd_torch.FNGD(model, 0.1, weighted_backward=weighted, **SIZES)
        optimizer.epoch_end()
        costs.append(optimizer.report().layers["0"]["row"])
    assert costs == [0, 3 * 4]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda m: ngd_torch.KFAC(m, 0.1, weighted_backward=True, kl_clip=None), "only FNGD"),
        (lambda m: ngd_torch.FNGD(m, 0.1, weighted_backward=True, kl_clip=1.0, **SIZES), "kl_clip"),
        (
            lambda m: ngd_torch.FNGD(m, 0.1, weighted_backward=True, loss_reduction="sum", **SIZES),
            "has to be a mean",
        ),
        (
            lambda m: ngd_torch.NaturalGradient(
                m,
                ngd_core.FNGD(batch_size=N, guard=True),
                0.1,
                fisher="empirical",
                weighted_backward=True,
            ),
            "guard needs the gradient",
        ),
    ],
)
def test_what_it_does_not_go_together_with(make, why):
    with pytest.raises(ValueError, match=why):
        make(nn.Linear(3, 2))
