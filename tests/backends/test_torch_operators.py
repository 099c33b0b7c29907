"""Operators on a module's parameters: every method equals that of the matrix by autograd."""

import ngd_torch
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N, LAMBDA = 5, 0.1
LOSSES = {
    "categorical": lambda z: torch.logsumexp(z, -1),
    "bernoulli": lambda z: functional.softplus(z).sum(),
    "gaussian": lambda z: 0.5 * (z * z).sum(),
}


class Attention(nn.Module):
    """Rows of one parameter in three layers."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.out = nn.Linear(2, 2)

    def forward(self, x):
        h, _ = self.attention(x, x, x, need_weights=False)
        return self.out(h.mean(1))


class Tied(nn.Module):
    """One table at both ends."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.table(tokens).mean(1)))


class Scaled(nn.Module):
    """A parameter in no layer."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([1.5]))
        self.fc, self.unused = nn.Linear(2, 3), nn.Linear(1, 2)

    def forward(self, x):
        return self.fc(x) / self.temperature


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 2, 2),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.ConvTranspose2d(2, 1, 2, bias=False),
        nn.Flatten(),
        nn.Linear(9, 2),
    ).eval()


CASES = {
    "mlp": (mlp, "categorical", (3,)),
    "values": (mlp, "gaussian", (3,)),
    "cnn": (cnn, "bernoulli", (2, 3, 3)),
    "attention": (Attention, "categorical", (3, 2)),
    "tied": (Tied, "categorical", None),
}


def case(name):
    make, likelihood, shape = CASES[name]
    torch.manual_seed(0)
    model = make().double()
    x = torch.randint(0, 4, (N, 3)) if shape is None else torch.randn(N, *shape).double()
    if name == "cnn":
        model[1].running_mean.normal_()
    return model, x, likelihood


def dense(model, x, likelihood):
    """Mean of ``J^T H J`` over the examples, one gradient after another."""
    total, params = 0.0, [p for p in model.parameters() if p.requires_grad]
    for one in x:
        z = model(one[None])[0]
        rows = []
        for k in range(len(z)):
            grads = torch.autograd.grad(z[k], params, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in grads]))
        j = torch.stack(rows)
        hessian = torch.autograd.functional.hessian(LOSSES[likelihood], z.detach())
        total = total + j.T @ hessian @ j
    return (total / len(x)).numpy()


def vector(model):
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def flat(tree):
    return torch.cat([x.detach().reshape(-1) for x in tree.values()]).numpy()


@pytest.mark.parametrize("name", CASES)
def test_the_operator_of_a_batch_is_the_matrix_by_autograd(name):
    """Weights and biases, kernels, rows of packed parameters, norms, tied tables, in order."""
    model, x, likelihood = case(name)
    F = ngd_torch.fisher(model, x, likelihood=likelihood)
    M, v = dense(model, x, likelihood), vector(model)
    size, one = len(M), np.eye(len(M))
    kappa = 10 * (np.linalg.eigvalsh(M)[-1] + LAMBDA) / LAMBDA
    inverse = np.linalg.inv(M + LAMBDA * one)
    solved, u = F.solve(v, LAMBDA), flat(v)
    for got, want in (
        (flat(F @ v), M @ u),
        (flat(solved), inverse @ u),
        (flat(F.inverse(LAMBDA) @ v), inverse @ u),
        (flat(F.sqrt() @ (F.sqrt() @ v)), M @ u),
        (flat(F.diagonal()), np.diag(M)),
        (F.to_dense().numpy(), M),
        (F.inverse(LAMBDA).to_dense().numpy(), inverse),
        (F.trace().numpy(), np.trace(M)),
        (F.logdet(LAMBDA).numpy(), np.linalg.slogdet(M + LAMBDA * one)[1]),
    ):
        assert_close(got, want, size=size, kappa=kappa)
    values = np.linalg.eigvalsh(M)[::-1]
    count = min(size, len(F.eigenvalues()))
    assert np.abs(F.eigenvalues().numpy()[:count] - values[:count]).max() < 1e-12 * values[0]
    assert list(solved) == [name for name, _ in model.named_parameters()]
    assert {name: x.shape for name, x in solved.items()} == {name: x.shape for name, x in v.items()}


def test_nothing_of_the_model_or_its_optimizer_changes():
    """In training mode, with dropout, running statistics and attention, under watching hooks."""
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Flatten(0, 1), nn.BatchNorm1d(2), nn.Dropout(), nn.Unflatten(0, (N, 3))
    ).append(Attention())
    optimizer = ngd_torch.KFAC(model, lr=0.1, factor_every=1)
    x, y = torch.randn(N, 3, 2), torch.zeros(N).long()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()

    def everything():
        stored = optimizer.state_dict()["curvature"]
        tensors = {**model.state_dict(), **stored["arrays"]}
        tensors |= {f"generator of {d}": state for d, state in stored["generators"].items()}
        tensors["random"] = torch.random.get_rng_state()
        plain = [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__))
            for m in model.modules()
        ]
        grads = [(p.grad, p.grad.clone()) for p in model.parameters()]
        return {name: t.clone() for name, t in tensors.items()}, plain, grads

    tensors, plain, grads = everything()
    with torch.no_grad():
        ngd_torch.fisher(model, x, fisher="mc")
    now, plain_now, _ = everything()
    assert plain_now == plain
    assert now.keys() == tensors.keys()
    assert [name for name in now if not torch.equal(now[name], tensors[name])] == []
    for p, (grad, values) in zip(model.parameters(), grads, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, values)
    optimizer.zero_grad(set_to_none=True)
    ngd_torch.fisher(model, x)
    assert all(p.grad is None for p in model.parameters())


def test_a_sampled_fisher_goes_by_its_seed():
    model, x, likelihood = case("mlp")
    one, same, other = (
        ngd_torch.fisher(model, x, likelihood=likelihood, fisher="mc", seed=k) for k in (0, 0, 1)
    )
    assert len(one.eigenvalues()) == N
    assert torch.equal(one.to_dense(), same.to_dense())
    assert not torch.equal(one.to_dense(), other.to_dense())


def test_parameters_in_no_layer_are_named_or_left_out():
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(N, 2).double()
    with pytest.raises(ValueError, match=r"temperature.*unused\.weight.*uncovered='omit'"):
        ngd_torch.fisher(model, x)
    F = ngd_torch.fisher(model, x, uncovered="omit")
    assert list(F.shapes) == ["fc.weight", "fc.bias"]
    M = dense(model, x, "categorical")[1:10, 1:10]
    assert_close(F.to_dense().numpy(), M, size=9, kappa=10)
    model.temperature.requires_grad_(False)
    model.unused.requires_grad_(False)
    frozen = ngd_torch.fisher(model, x)
    assert torch.equal(frozen.to_dense(), F.to_dense())


@pytest.mark.parametrize("maker", [ngd_torch.KFAC, ngd_torch.EKFAC])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_step_is_the_solution_with_the_optimizer_s_operator(name, maker):
    """Exact damping, rate 1: parameters move by minus ``(F + lambda)^-1 grad``."""
    model, x, _ = case(name)
    model.train()
    split = {"damping_split": "exact"} if maker is ngd_torch.KFAC else {}
    optimizer = maker(
        model, 1.0, damping=LAMBDA, momentum=0.0, kl_clip=None, fisher="exact", **split
    )
    functional.cross_entropy(model(x), torch.arange(N) % 2).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    optimizer.step()
    F = ngd_torch.kronecker(optimizer)
    for name, d in F.solve(grads, LAMBDA).items():
        moved = before[name] - model.get_parameter(name).detach()
        assert_close(d.numpy(), moved.numpy(), size=100, kappa=1e3)
    M = F.to_dense().numpy()
    assert_close(M @ flat(grads), flat(F @ grads), size=len(M), kappa=1e3)
    assert_close(np.diag(M), flat(F.diagonal()), size=len(M), kappa=10)
    assert_close(F.trace().numpy(), np.trace(M), size=len(M))


def test_kronecker_asks_for_statistics_of_its_methods():
    model, x, _ = case("mlp")
    optimizer = ngd_torch.Preconditioner(model, ngd_core.KFAC(), fisher="exact")
    with pytest.raises(ValueError, match="no statistics of it yet"):
        ngd_torch.kronecker(optimizer)
    model(x).sum().backward()
    optimizer.step()
    assert float(ngd_torch.kronecker(optimizer).trace()) > 0
    for other in (ngd_torch.SNGD(model, 0.1), torch.optim.SGD(model.parameters(), 0.1)):
        with pytest.raises(TypeError, match="expected one of K-FAC or EKFAC"):
            ngd_torch.kronecker(other)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: ngd_torch.fisher(m, x) @ {}, ValueError, "lacks the parameters"),
        (lambda m, x: ngd_torch.fisher(m, x) @ x, TypeError, "expected a mapping"),
        (
            lambda m, x: ngd_torch.fisher(m, x) @ {n: p.flatten() for n, p in m.named_parameters()},
            ValueError,
            "expected \\(4, 3\\)",
        ),
        (lambda m, x: ngd_torch.fisher(m, x, fisher="empirical"), ValueError, "'exact' or 'mc'"),
        (lambda m, x: ngd_torch.fisher(m, x, uncovered="skip"), ValueError, "uncovered"),
        (
            lambda m, x: ngd_torch.fisher(m, x, likelihood=["gaussian", "gaussian"]),
            ValueError,
            "2 outputs",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(call, error, words):
    model, x, _ = case("mlp")
    with pytest.raises(error, match=words):
        call(model, x)
