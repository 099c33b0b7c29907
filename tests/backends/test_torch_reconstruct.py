"""Local Fisher layers in a real module: SNGD's steps by any optimizer, and the plain model."""

import copy
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
from ngd_torch import (
    KFAC,
    SNGD,
    LayerRule,
    NaturalGradient,
    attach,
    fold,
    left_out,
    reconstruct,
    refresh,
)
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core import LayerSpec, reference
from ngd_core.testing import assert_close, assert_far

N = 6
EVERY = {"factor_every": 2, "inverse_every": 3}
EARLY = {"factor_every": 2, "inverse_every": 5, "early": True}
QUIET = pytest.mark.filterwarnings("ignore:No optimizer is attached:UserWarning")


class Reused(nn.Module):
    """One linear layer and one convolution, used twice on different numbers of positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = (
            nn.Conv1d(2, 2, 3, padding=1),
            nn.Linear(2, 2),
            nn.Linear(2, 3),
        )

    def forward(self, x):
        x = torch.tanh(self.conv(torch.tanh(self.conv(x)))).mT
        once = torch.tanh(self.fc(x))
        return self.head(torch.tanh(self.fc(once[:, :1])).mean(1) + once.mean(1))


class Folded(nn.Module):
    """Positions folded into the first axis, in a segment that is computed again."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(2, 5), nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        rows = x.mT.reshape(-1, 2)
        z = torch.utils.checkpoint.checkpoint(self.body, rows, use_reentrant=False)
        return self.head(z.reshape(len(x), -1, 5).sum(1))


class Scaled(nn.Linear):
    """A layer of the user's with a forward of its own."""

    def forward(self, features):
        return 0.5 * functional.linear(features, self.weight, self.bias)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.by_name = Scaled(10, 3), False

    def forward(self, x):
        return self.fc(features=x.flatten(1)) if self.by_name else self.fc(x.flatten(1))


def frozen_bias():
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 3, bias=False))
    model[1].bias.requires_grad_(False)
    return model


def image(*layers):
    return nn.Sequential(
        nn.Unflatten(1, (2, 1)), *layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    )


MODELS = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 3)),
    "positions": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
    "no bias": frozen_bias,
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular", groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(28, 3),
    ),
    "conv2d": lambda: image(nn.Conv2d(2, 4, (1, 2), stride=(1, 2), padding=(0, 1), groups=2)),
    "conv3d": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)), nn.Conv3d(2, 2, (1, 1, 3)), nn.Flatten(), nn.Linear(6, 3)
    ),
    "transposed": lambda: image(nn.ConvTranspose2d(2, 3, (1, 2), stride=2)),
    "norm": lambda: nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 3)
    ),
    "reused": Reused,
    "folded": Folded,
    "user's": Named,
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(10, 3))[1],
}


def made(name, dtype=torch.float64):
    torch.manual_seed(3)
    model = MODELS[name]()
    x, _ = data(flat=name == "one layer")
    with torch.no_grad():
        model.eval()(x.float())
    return model.train().to(dtype)


def data(k=0, flat=False, n=N):
    r = torch.Generator().manual_seed(k)
    x = torch.randn(n, 2, 5, generator=r).double() + 0.3
    return x.flatten(1) if flat else x, torch.randint(0, 3, (n,), generator=r)


def step(model, optimizer, k=0, flat=False):
    x, y = data(k, flat)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def sgd(model, momentum=0.9, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    attach(model, optimizer)
    return optimizer


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_computes_the_same_and_folds_back(name):
    plain, (x, _) = made(name), data(flat=name == "one layer")
    plain(x).sum().backward()
    before, grads = copy.deepcopy(plain), [p.grad for p in plain.parameters()]
    kept = [grad if grad is None else grad.clone() for grad in grads]
    model = reconstruct(plain)
    again = fold(model)
    for mode in (True, False):
        for other in (model, again, plain, before):
            other.train(mode)
        assert_close(model(x).detach(), before(x).detach(), size=10)
        assert torch.equal(again(x), plain(x))
    assert list(again.state_dict()) == list(plain.state_dict()) == list(before.state_dict())
    for p, q, r in zip(*(m.parameters() for m in (again, plain, before)), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(q, r)
        assert p.requires_grad == q.requires_grad
        assert p.shape == q.shape
        assert p.grad is None
    for p, grad, old in zip(plain.parameters(), grads, kept, strict=True):
        assert p.grad is grad
        assert grad is None or torch.equal(grad, old)
    for other in (again, plain):
        assert [type(m) for m in other.modules()] == [type(m) for m in before.modules()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
        assert [set(m.__dict__) for m in other.modules()] == [
            set(m.__dict__) for m in before.modules()
        ]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_descent_through_the_layers_is_sngd(name, momentum):
    """Eight steps, refreshes in the first, the fourth and the seventh: the optimizer's own path."""
    plain, one, every = made(name), name == "one layer", EARLY if name == "dense" else EVERY
    model = reconstruct(plain, **every)
    optimizer = sgd(model, momentum)
    direct = SNGD(plain, 0.1, momentum=momentum, kl_clip=None, **every)
    start = flat(plain)
    for k in range(8):
        step(model, optimizer, k, one)
        step(plain, direct, k, one)
        again = fold(model)
        assert_close(flat(again), flat(plain), size=100, kappa=1000)
        x, _ = data(k + 1, one)
        assert_close(model.eval()(x).detach(), again.eval()(x).detach(), size=10, kappa=10)
        model.train()
    assert_far(flat(plain), start, least=0.05)


class Teacher(nn.Module):
    """A layer used once more without gradients, on sequences of any length."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        with torch.no_grad():
            target = self.fc(5 * x.mT + 2)
        return (torch.tanh(self.fc(x.mT)) - 0.1 * target).sum(1)


def test_batches_weigh_by_their_examples():
    """Batches and sequences of several sizes; uses without gradients do not count."""
    torch.manual_seed(0)
    plain = Teacher().double()
    model = reconstruct(plain, factor_every=1, inverse_every=1)
    optimizer, direct = sgd(model), SNGD(plain, 0.1, kl_clip=None, factor_every=1, inverse_every=1)
    for k, (n, length) in enumerate([(6, 5), (2, 5), (4, 1), (3, 4)]):
        x, y = data(k, n=n)
        for one, other in ((model, optimizer), (plain, direct)):
            other.zero_grad()
            functional.cross_entropy(one(x[..., :length]), y).backward()
            other.step()
        assert_close(flat(fold(model)), flat(plain), size=100, kappa=1000)


OPTIONS = {
    "denman-beavers": {"root": "denman-beavers"},
    "newton-schulz": {"root": "newton-schulz", "steps": 25},
    "nystrom": {"root": "nystrom", "rank": 2},
    "absolute": {"damping_mode": "absolute"},
    "trace": {"damping_mode": "trace", "start": "identity"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_the_core(options):
    plain = made("dense")
    model = reconstruct(plain, damping=0.1, decay=0.7, **EVERY, **options)
    method = ngd_core.SNGD(**options)
    direct = NaturalGradient(
        plain, method, 0.1, fisher="empirical", damping=0.1, decay=0.7, **EVERY
    )
    optimizer = sgd(model)
    for k in range(5):
        step(model, optimizer, k)
        step(plain, direct, k)
        assert_close(flat(fold(model)), flat(plain), size=100, kappa=1000)


def blocks(model, grad=False):
    """``[W b]`` of the two linear layers of "dense"."""
    pick = (lambda p: p.grad) if grad else (lambda p: p.detach())
    return [
        torch.cat([pick(model[k].weight), pick(model[k].bias)[:, None]], dim=1).numpy()
        for k in (1, 3)
    ]


@pytest.mark.parametrize("mode", ["relative", "absolute", "trace"])
@pytest.mark.parametrize("metric", ["linear", "relu"])
def test_a_step_is_the_dense_natural_gradient(metric, mode):
    """Against loops and a dense solve: averaged statistics of three passes, the third's gradient.

    The ReLU metric is for the first layer; the last has the linear one.
    """
    plain, damping = made("dense"), 0.2
    options = {"metric": "relu", "linear_layers": ("3",)} if metric == "relu" else {}
    model = reconstruct(
        plain, damping=damping, decay=0.6, factor_every=1, damping_mode=mode, **options
    )
    optimizer, seen = sgd(model, 0.0, 1.0), []
    for k in range(3):
        x, y = data(k)
        model(x)
        first = plain[1](x.flatten(1))
        z = first[:, None].detach().numpy() if metric == "relu" else None
        inputs = x.flatten(1)[:, None].numpy(), torch.tanh(first)[:, None].detach().numpy()
        seen.append((reference.local_fisher(inputs[0], z), reference.local_fisher(inputs[1])))
    refresh(model)
    for other in (plain, model):
        functional.cross_entropy(other(x), y).backward()
    optimizer.step()
    moved = zip(blocks(plain), blocks(fold(model)), blocks(plain, grad=True), strict=True)
    for k, (before, after, grad) in enumerate(moved):
        batches = [each[k] for each in seen]
        G = reference.moving_average(batches, 0.6)
        expected = reference.local_direction(grad, G, damping, mode)
        assert_close(before - after, expected, size=10, kappa=100)
        assert_far(expected, grad, least=0.1)


def test_without_momentum_in_tow_the_path_is_another():
    """Not attached: from the second refresh on it is no longer SNGD, and that is said once."""
    plain = made("dense")
    model = reconstruct(plain, **EVERY)
    direct = SNGD(plain, 0.1, kl_clip=None, **EVERY)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for k in range(3):
        step(model, optimizer, k)
        step(plain, direct, k)
    assert_close(flat(fold(model)), flat(plain), size=100, kappa=1000)
    with pytest.warns(UserWarning, match=r"attach\(model, optimizer\)"):
        step(model, optimizer, 3)
    step(plain, direct, 3)
    for k in range(4, 8):
        step(model, optimizer, k)
        step(plain, direct, k)
    assert_far(flat(fold(model)), flat(plain), least=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_refresh_changes_nothing_that_the_weights_see(name):
    """Outputs, weights, momentum and gradients at the weights stay where they are."""
    model, (x, y) = reconstruct(made(name), factor_every=1), data(2, name == "one layer")
    optimizer = sgd(model)
    for k in range(3):
        step(model, optimizer, k, name == "one layer")
    functional.cross_entropy(model(x), y).backward()

    def seen():
        z, found = model.eval()(x).detach(), [flat(fold(model))]
        for module in model.train().modules():
            if hasattr(module, "coordinates"):
                p, local = module.coordinates, module.local_fisher
                found.append((optimizer.state[p]["momentum_buffer"] @ local.inverse).numpy())
                found.append((p.grad @ local.root).numpy())
        return [z.numpy(), *found]

    before, coordinates = seen(), flat(model)
    refresh(model)
    for new, old in zip(seen(), before, strict=True):
        assert_close(new, old, size=20, kappa=100)
    assert_far(flat(model), coordinates, least=1e-3)


def test_gradients_that_are_there_already_are_carried_over_a_refresh():
    """Two micro-batches with a refresh between: the step is the sum of gradients by the new M."""
    plain = made("dense")
    model = reconstruct(plain, damping=0.1, factor_every=1, inverse_every=2, decay=1.0)
    optimizer = sgd(model, 0.0, 1.0)
    model(data(5)[0])
    for k in (0, 1):
        x, y = data(k)
        for other in (plain, model):
            functional.cross_entropy(other(x), y).backward()
    optimizer.step()
    rows = torch.cat([data(k)[0].flatten(1) for k in (5, 0, 1)])
    hidden = torch.tanh(plain[1](rows)).detach()
    moved = zip(blocks(plain), blocks(fold(model)), blocks(plain, grad=True), strict=True)
    for (before, after, grad), a in zip(moved, (rows, hidden), strict=True):
        expected = reference.local_direction(grad, reference.local_fisher(a[:, None].numpy()), 0.1)
        assert_close(before - after, expected, size=10, kappa=100)


def saved(*parts):
    """Through torch.save and its reader."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_stored_state_goes_on_bit_by_bit():
    """In the middle of an inverse interval, into a model reconstructed from other weights."""
    model = reconstruct(made("conv2d"), **EVERY)
    optimizer = sgd(model)
    for k in range(4):
        step(model, optimizer, k)
    torch.manual_seed(9)
    other = made("conv2d")
    for p in other.parameters():
        nn.init.normal_(p)
    other = reconstruct(other, **EVERY)
    resumed = sgd(other)
    stored = saved(model, optimizer)
    other.load_state_dict(stored[0])
    resumed.load_state_dict(stored[1])
    for k in range(4, 9):
        step(model, optimizer, k)
        step(other, resumed, k)
        assert np.array_equal(flat(model), flat(other))


def test_a_copy_goes_its_own_way():
    """Copied with its optimizer, which is attached anew."""
    model = reconstruct(made("dense"), **EVERY)
    optimizer = sgd(model)
    step(model, optimizer)
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    attach(both["model"], both["optimizer"])
    before, state = flat(model), copy.deepcopy(optimizer.state_dict()["state"])
    for k in range(1, 5):
        step(both["model"], both["optimizer"], k)
    assert np.array_equal(flat(model), before)
    assert all(
        torch.equal(state[k]["momentum_buffer"], now["momentum_buffer"])
        for k, now in optimizer.state_dict()["state"].items()
    )
    for k in range(1, 5):
        step(model, optimizer, k)
    assert np.array_equal(flat(model), flat(both["model"]))


def test_a_copy_has_no_optimizer():
    model = reconstruct(made("dense"), factor_every=1)
    optimizer = sgd(model)
    twin = copy.deepcopy(model)
    step(model, optimizer)
    for _ in range(2):
        twin(data()[0])
    with pytest.warns(UserWarning, match="No optimizer is attached"):
        refresh(twin)


def test_other_dtypes():
    """In float64 as in float32; in bfloat16 the local Fisher layers stay in float32."""
    model = reconstruct(made("dense", torch.float32), factor_every=1)
    model(data()[0].float())
    wide = copy.deepcopy(model).double()
    assert all(x.dtype == torch.float64 for x in wide.buffers() if x.is_floating_point())
    assert_close(flat(fold(wide)), flat(fold(model)), dtype="float32", size=10, kappa=10)
    inverse = model[1].local_fisher.inverse.clone()
    model.bfloat16()
    assert torch.equal(model[1].local_fisher.inverse, inverse)
    assert all(p.dtype == torch.bfloat16 for p in [*model.parameters(), *fold(model).parameters()])
    optimizer = sgd(model)
    x, y = data()
    for _ in range(3):
        functional.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_touches_neither_weights_nor_statistics(dtype):
    model = reconstruct(made("dense", torch.float32), factor_every=1)
    x = data()[0].float()
    with torch.autocast("cpu", dtype):
        z = model(x)
        (weight,) = {model[1].weight.dtype}
    assert z.dtype == dtype
    assert weight == torch.float32
    G = reference.local_fisher(x.flatten(1)[:, None].double().numpy())
    assert_close(model[1].local_fisher.fisher, G, dtype="float32", size=N)
    twin = fold(model)
    for other in (model, twin):
        with torch.autocast("cpu", dtype):
            other.eval()(x).float().square().mean().backward()
    inverse = model[1].local_fisher.inverse
    weights = torch.cat([twin[1].weight.grad, twin[1].bias.grad[:, None]], dim=1)
    assert_close(model[1].coordinates.grad, weights @ inverse, dtype="float32", size=100)


@QUIET
def test_what_is_not_training_leaves_no_trace():
    model, (x, _) = reconstruct(made("dense"), factor_every=1, inverse_every=1), data()
    model(x)
    model[1](5 * x.flatten(1))  # a layer by itself
    assert model[1].local_fisher.uses is None
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(2 * x)
    model.eval()(3 * x)
    model.train()
    with torch.inference_mode():
        model(4 * x)
    after = model.state_dict()
    assert all(
        torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k]
        for k, v in before.items()
    )
    model(2 * x)
    assert not torch.equal(model[1].local_fisher.fisher, before["1.local_fisher.fisher"])


@QUIET
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "empty"])
def test_a_bad_batch_leaves_statistics_and_weights(bad):
    model = reconstruct(made("dense"), factor_every=1, inverse_every=1)
    x, _ = data()
    model(x)
    start, fisher = flat(fold(model)), model[1].local_fisher.fisher.clone()
    model(x[:0] if bad == "empty" else x * bad)
    assert_close(flat(fold(model)), start, size=10, kappa=10)
    assert torch.equal(model[1].local_fisher.fisher, fisher)
    assert int(model[1].local_fisher.rejected) == (bad != "empty")
    model(data(1)[0])
    assert not torch.equal(model[1].local_fisher.fisher, fisher)


class Breaks(nn.Module):
    armed = True

    def forward(self, x):
        if self.armed:
            msg = "broken"
            raise RuntimeError(msg)
        return x


def test_an_error_in_a_pass_leaves_no_trace():
    plain, x = made("dense"), data(1)[0]
    plain[2] = Breaks()
    model = reconstruct(plain, factor_every=1)
    with pytest.raises(RuntimeError, match="broken"):
        model(data()[0])
    model[2].armed = False
    model(x)
    G = reference.local_fisher(x.flatten(1)[:, None].numpy())
    assert_close(model[1].local_fisher.fisher, G, size=N)


class Pyramid(nn.Module):
    """One convolution on two sizes of images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2, bias=False)

    def forward(self, x):
        return self.conv(x).mean((2, 3)) + self.conv(x[..., :3]).mean((2, 3))


@pytest.mark.parametrize("metric", ["linear", "relu"])
def test_statistics_of_several_uses_are_means_over_all_rows(metric):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 4, 5, dtype=torch.float64)
    model = reconstruct(Pyramid().double(), factor_every=1, metric=metric)
    weight = model.conv.weight.detach().flatten(1)
    model(x)
    rows = torch.cat(
        [functional.unfold(part, 2).mT.flatten(0, 1) for part in (x, x[..., :3])], dim=0
    )[:, None]
    z = (rows @ weight.T).numpy() if metric == "relu" else None
    G = reference.local_fisher(rows.numpy(), z, bias=False)
    assert_close(model.conv.local_fisher.fisher, G, size=100)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(10, 10), nn.Linear(10, 10)
        self.two.weight = self.one.weight
        self.table, self.head = nn.Embedding(3, 10), nn.Linear(10, 3, bias=False)
        self.head.weight = self.table.weight
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        z = torch.tanh(self.two(torch.tanh(self.one(x.flatten(1)))))
        return self.last(self.head(z) + (z @ self.table.weight.T).detach())


def test_parameters_in_several_modules_stay_as_they_are():
    torch.manual_seed(0)
    plain = Tied().double()
    model = reconstruct(plain, **EVERY)
    assert left_out(model) == {
        "one.weight": "shared by several modules",
        **dict.fromkeys(
            ("one.bias", "two.bias"),
            "its weight is shared with a module of another bias, or of none",
        ),
        "table.weight": "the method has nothing for the kind 'embedding'",
    }
    assert model.one.weight is model.two.weight
    assert model.head.weight is model.table.weight
    optimizer = sgd(model)
    for k in range(4):
        step(model, optimizer, k)
    again, x = fold(model), data()[0]
    assert again.one.weight is again.two.weight
    assert_close(again(x).detach(), model(x).detach(), size=10, kappa=10)


def test_hooks_and_attributes_of_the_user_stay():
    plain, seen = made("user's"), []
    plain.by_name = True
    plain.fc.register_forward_hook(lambda *call: seen.append(call[0]))
    plain.fc.register_forward_pre_hook(
        lambda *call: ((), {"features": call[2]["features"] + 1}), with_kwargs=True
    )
    x = data()[0]
    model = reconstruct(plain, factor_every=1)
    for other in (model, fold(model)):
        assert_close(other(x).detach(), plain(x).detach(), size=10)
        assert isinstance(other.fc, Scaled)
        assert other.fc.in_features == 10
    G = reference.local_fisher(x.flatten(1)[:, None].numpy() + 1)
    assert_close(model.fc.local_fisher.fisher, G, size=N)
    assert seen[0] is model.fc


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(
            self.body(torch.cat([x, x[..., :3]], dim=2).unflatten(2, (2, 4))[:, 0])[:, 0]
        )


def test_attention_and_its_fast_path_read_the_weights_of_now():
    torch.manual_seed(0)
    model = reconstruct(Attention().double(), factor_every=1)
    assert isinstance(model.body.linear1, nn.Linear)
    assert left_out(model)["body.self_attn.out_proj.weight"].startswith("MultiheadAttention reads")
    optimizer = sgd(model)
    for k in range(3):
        step(model, optimizer, k)
    again, x = fold(model).eval(), data()[0]
    model.eval()
    slow = model(x).detach()
    with torch.no_grad():
        assert_close(model(x), again(x), size=10)
        assert_close(model(x), slow, size=100)


def test_a_rule_of_the_users():
    """A layer with a transposed weight and no attribute called bias, trained to SNGD's weights."""

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(30.0).reshape(10, 3) / 30)

        def forward(self, x):
            return x.flatten(1) @ self.weight

    rule = LayerRule(
        lambda _, name, __: LayerSpec(name, "dense", 10, 3, bias=False),
        inputs=lambda _, x: x.flatten(1),
        layout=lambda _, w: w.T,
        restore=lambda _, w: w.T,
    )
    plain = nn.Sequential(Transposed().double(), nn.Tanh())
    model = reconstruct(plain, layers={Transposed: rule}, **EVERY)
    optimizer = sgd(model)
    direct = SNGD(plain, 0.1, kl_clip=None, layers={Transposed: rule}, **EVERY)
    for k in range(4):
        step(model, optimizer, k)
        step(plain, direct, k)
    again = fold(model)
    assert list(again.state_dict()) == ["0.weight"]
    assert_close(flat(again), flat(plain), size=100, kappa=1000)


# torch's own compiler looks at .grad
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_model_takes_the_steps_of_the_plain_one():
    torch._dynamo.reset()
    one = reconstruct(made("dense"), **EVERY)
    two = copy.deepcopy(one)
    compiled = torch.compile(two, backend="eager")
    optimizers = sgd(one), sgd(compiled)
    for k in range(5):
        step(one, optimizers[0], k)
        step(compiled, optimizers[1], k)
    assert_close(flat(two), flat(one), size=10, kappa=10)
    assert_close(flat(fold(compiled)), flat(fold(one)), size=10, kappa=10)


def test_gradients_of_each_example_by_torch_func():
    model, (x, y) = reconstruct(made("dense"), factor_every=1), data()
    model(x)
    model.eval()

    def loss(parameters, x, y):
        z = torch.func.functional_call(model, parameters, (x[None],))
        return functional.cross_entropy(z, y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    functional.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        assert_close(each[name].mean(0), p.grad, size=10, kappa=10)


def test_gradients_of_gradients():
    """A penalty on the gradient at the inputs, through layers that were made anew."""
    model, x = reconstruct(made("dense"), factor_every=1), data()[0]
    model(x)
    twin = fold(model)
    for other in (model, twin):
        start = x.clone().requires_grad_()
        z = other.eval()(start).square().sum()
        (inner,) = torch.autograd.grad(z, start, create_graph=True)
        inner.square().sum().backward()
    weights = torch.cat([twin[1].weight.grad, twin[1].bias.grad[:, None]], dim=1)
    expected = weights @ model[1].local_fisher.inverse
    assert_close(model[1].coordinates.grad, expected, size=100, kappa=10)


def test_first_moments_of_adam_are_carried_and_second_ones_stay():
    model = reconstruct(made("dense"), factor_every=1)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    attach(model, adam)
    start = float(functional.cross_entropy(model(data()[0]), data()[1]).detach())
    for _ in range(20):
        step(model, adam)
    p, local = model[1].coordinates, model[1].local_fisher
    before = {k: v.clone() for k, v in adam.state[p].items()}
    displacement = before["exp_avg"] @ local.inverse
    model(data(1)[0] * 2)
    refresh(model)
    assert_close(adam.state[p]["exp_avg"] @ local.inverse, displacement, size=10, kappa=100)
    assert_far(adam.state[p]["exp_avg"], before["exp_avg"], least=1e-2)
    assert torch.equal(adam.state[p]["exp_avg_sq"], before["exp_avg_sq"])
    assert functional.cross_entropy(model(data()[0]), data()[1]) < 0.7 * start


def test_a_layer_frozen_later_is_not_touched():
    model = reconstruct(made("dense"), factor_every=1)
    optimizer = sgd(model)
    model[1].coordinates.requires_grad_(False)
    before = copy.deepcopy(model[1].state_dict())
    for k in range(2):
        step(model, optimizer, k)
    refresh(model)
    after = model[1].state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if isinstance(v, torch.Tensor))
    assert not fold(model)[1].weight.requires_grad


def test_a_layer_that_is_read_but_never_called_is_warned_of():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.last = nn.Linear(10, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.last(functional.linear(x.flatten(1), self.fc.weight, self.fc.bias))

    plain = Reader().double()
    model = reconstruct(plain, inverse_every=2)
    optimizer = sgd(model)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    with pytest.warns(UserWarning, match="through 'fc', which so far follow"):
        step(model, optimizer, 2)
    for k in (3, 4):
        step(model, optimizer, k)
    assert_close(fold(model)(data()[0]).detach(), model(data()[0]).detach(), size=10, kappa=10)


def test_nothing_keeps_a_dropped_model_or_optimizer_alive():
    gc.collect()
    gc.disable()
    try:
        for name in ("dense", "one layer"):
            model = reconstruct(made(name))
            optimizer = sgd(model)
            step(model, optimizer, flat=name == "one layer")
            refs = weakref.ref(optimizer), weakref.ref(model)
            del optimizer
            assert refs[0]() is None
            del model
            assert refs[1]() is None
    finally:
        gc.enable()


def test_pickling_the_plain_model_only():
    model = reconstruct(made("dense"))
    with pytest.raises(TypeError, match=r"save the state_dict, or the whole of ngd_torch.fold"):
        pickle.dumps(model)
    assert np.array_equal(flat(pickle.loads(pickle.dumps(fold(model)))), flat(fold(model)))


def test_several_processes_are_refused(monkeypatch):
    model = reconstruct(made("dense"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model.eval()(data()[0])
    with pytest.raises(NotImplementedError, match="one process only; train with"):
        model.train()(data()[0])


def attached(model, make):
    attach(reconstruct(model), make(model))


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda m: reconstruct(m, damping=-1.0), ValueError, ["damping is -1.0"]),
        (lambda m: reconstruct(m, decay=1.5), ValueError, ["decay is 1.5"]),
        (lambda m: reconstruct(m, inverse_every=0), ValueError, ["inverse_every is 0"]),
        (lambda m: reconstruct(m, factor_every=0.5), ValueError, ["factor_every is 0.5"]),
        (lambda m: reconstruct(m, uncovered="ignore"), ValueError, ["'ignore'", "'gradient'"]),
        (lambda m: reconstruct(m, mode="direct"), TypeError, ["'mode'", "damping_mode"]),
        (lambda m: reconstruct(m, metric="softmax"), ValueError, ["'softmax'", "'relu'"]),
        (lambda m: reconstruct(m, linear_layers=("7",), metric="relu"), ValueError, ["'7'"]),
        (lambda m: reconstruct(reconstruct(m)), ValueError, ["already", "fold(model)"]),
        (lambda _: reconstruct(nn.PReLU()), ValueError, ["no layer", "PReLU"]),
        (lambda _: reconstruct(nn.Tanh()), ValueError, ["no layer"]),
        (
            lambda m: reconstruct(nn.Sequential(m, nn.PReLU()), uncovered="error"),
            ValueError,
            ["1 trained parameters", "'1.weight'", "uncovered='gradient'"],
        ),
        (lambda m: fold(m), ValueError, ["no local Fisher layers", "reconstruct"]),
        (lambda m: refresh(m), ValueError, ["no local Fisher layers"]),
        (lambda m: left_out(m), ValueError, ["no local Fisher layers"]),
        (
            lambda m: attached(m, lambda p: torch.optim.SGD(p.parameters(), 0.1)),
            ValueError,
            ["none of the model's coordinates", "make it from"],
        ),
        (
            lambda m: attached(m, lambda p: torch.optim.LBFGS(p.parameters())),
            TypeError,
            ["LBFGS", "first-order"],
        ),
        (lambda m: attached(m, lambda _: 3), TypeError, ["int", "torch.optim.Optimizer"]),
        (lambda m: KFAC(reconstruct(m), 0.1), ValueError, ["no layer with curvature"]),
        (
            lambda m: reconstruct(m).load_state_dict(m.state_dict()),
            RuntimeError,
            ["coordinates", "Unexpected"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(make, error, parts):
    with pytest.raises(error) as raised:
        make(made("dense"))
    for part in parts:
        assert part in str(raised.value)
