"""What the hooks see is what autograd does, example by example, for every construct."""

import gc
import weakref

import pytest
import torch
from backends.torch_cases import records_of
from ngd_torch import KFAC, LayerRule, NaturalGradient
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core import LayerSpec, factors
from ngd_core.testing import assert_close

N = 3
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


class Reused(nn.Module):
    """One layer used twice in a pass, on different numbers of positions."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        once = torch.tanh(self.fc(x))
        return self.head(torch.tanh(self.fc(once[:, :2])).mean(1) + once.mean(1))


class Folded(nn.Module):
    """Positions folded into the first axis."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = torch.tanh(self.fc(x.reshape(-1, 4))).reshape(len(x), -1, 5)
        return self.head(z.sum(1))


class Shared(nn.Module):
    """Two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))).mean(1))


class Checkpointed(nn.Module):
    """A segment that is computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        body = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        return self.head(body.mean(1))


class Language(nn.Module):
    """Embedding with padding, a residual branch behind a norm, and a head."""

    def __init__(self, norm):
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 4, padding_idx=0), norm
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head((x + torch.tanh(self.fc(self.norm(x)))).mean(1))


def tokens():
    return torch.tensor([[1, 3, 0, 1], [2, 2, 6, 0], [0, 5, 5, 5]])


def conv(*args, dims=2, **options):
    kinds = {1: nn.Conv1d, 2: nn.Conv2d}
    layer = kinds[dims](4, 4, *args, **options)
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 3, bias=False)), (4,)),
    "a model that is a layer": (lambda: nn.Linear(4, 3), (4,)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(True), nn.Linear(5, 3)), (4,)),
    "sequence, in place": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(True), nn.Flatten(), nn.LazyLinear(3)),
        (3, 4),
    ),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(9, 3)), (3, 4)),
    "two axes": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(12, 3)), (2, 3, 4)),
    "reused": (Reused, (3, 4)),
    "shared weight": (Shared, (3, 4)),
    "folded": (Folded, (3, 4)),
    "checkpointed": (Checkpointed, (3, 4)),
    "conv": (lambda: conv(3, padding=1), (4, 5, 4)),
    "stride, groups": (lambda: conv((3, 2), stride=(2, 1), groups=2), (4, 5, 4)),
    "dilation": (lambda: conv(2, dilation=(2, 1), padding=(1, 0)), (4, 5, 4)),
    "same": (lambda: conv((2, 3), padding="same"), (4, 5, 4)),
    "circular": (lambda: conv(3, padding=1, padding_mode="circular"), (4, 5, 4)),
    "reflect": (lambda: conv(3, padding=(1, 2), padding_mode="reflect"), (4, 5, 4)),
    "replicate, same": (lambda: conv((2, 3), padding="same", padding_mode="replicate"), (4, 5, 4)),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 3, (2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        (2, 3, 3, 4),
    ),
    "conv3d circular": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(3)
        ),
        (2, 3, 3, 3),
    ),
    "conv3d same": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 2, (2, 3, 2), padding="same", dilation=(2, 1, 1)),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        (2, 2, 3, 2),
    ),
    "transposed 1-D": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        (2, 4),
    ),
    "transposed 2-D": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 2, (2, 3), stride=(2, 1), dilation=(1, 2), bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(3),
        ),
        (3, 2, 3),
    ),
    "language": (lambda: Language(nn.LayerNorm(4)), tokens),
    "rms norm": (lambda: Language(nn.RMSNorm(4)), tokens),
    "norm of two axes": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 3)),
        (3, 4),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        (4, 3, 2),
    ),
    "conv1d": (lambda: conv(3, dims=1, stride=2, padding=1, groups=2), (4, 7)),
    "conv1d circular": (lambda: conv(3, dims=1, padding=1, padding_mode="circular"), (4, 7)),
}


def made(name, seed=0):
    """Model in float64, inputs and labels."""
    torch.manual_seed(seed)
    build, shape = CASES[name]
    x = shape() if callable(shape) else torch.randn(N, *shape, dtype=torch.float64)
    model = build().double()
    model(x)
    return model, x, torch.arange(N) % 3


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_records_give_the_gradient_of_each_example(name, reduction):
    model, x, y = made(name)
    optimizer = KFAC(model, lr=0.1, fisher="empirical", loss_reduction=reduction)

    def backward():
        functional.cross_entropy(model(x), y, reduction=reduction).backward()

    seen = records_of(optimizer, backward)
    for layer in optimizer.curvature.layers:
        parts = [factors.per_example_gradients(layer.spec, r) for r in seen[layer.spec.name]]
        got = sum(parts)[0]
        for n in range(N):
            loss = functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            grads = torch.autograd.grad(loss, layer.parameters)
            weight = layer.rule.layout(layer.module, grads[0])
            want = factors.join(layer.spec, weight, *(b.reshape(-1) for b in grads[1:]))
            assert_close(got[n].numpy(), want.numpy(), size=100)
    assert not any(name in optimizer.curvature.uncovered for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_exact_fisher_is_the_sum_over_labels(name):
    """F = sum_y p(y) grad grad^T, example by example, against all labels tried in turn."""
    model, x, _ = made(name)
    optimizer = KFAC(model, lr=0.1, fisher="exact")
    outputs = []
    seen = records_of(optimizer, lambda: outputs.append(model(x)))
    p = torch.softmax(outputs[0].detach(), dim=-1)
    for layer in optimizer.curvature.layers:
        u = sum(factors.per_example_gradients(layer.spec, r) for r in seen[layer.spec.name])
        u = u.reshape(len(u), N, -1)
        got = torch.einsum("mni,mnj->nij", u, u)
        for n in range(N):
            want = 0
            for label in range(3):
                loss = functional.cross_entropy(model(x[n : n + 1]), torch.tensor([label]))
                grads = torch.autograd.grad(loss, layer.parameters)
                weight = layer.rule.layout(layer.module, grads[0])
                bias = [b.reshape(-1) for b in grads[1:]]
                block = factors.join(layer.spec, weight, *bias).reshape(-1)
                want = want + p[n, label] * torch.outer(block, block)
            assert_close(got[n].numpy(), want.numpy(), size=100, kappa=10)


def trained(model, optimizer, x, y, steps=1, parts=1):
    for _ in range(steps):
        optimizer.zero_grad()
        for rows in torch.arange(len(x)).chunk(parts):
            (functional.cross_entropy(model(x[rows]), y[rows]) * len(rows) / len(x)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["linear", "sequence", "reused", "circular"])
def test_the_step_is_the_core_with_the_exact_fisher(name):
    """Parameters after a step, by factors made of the records and the core on NumPy arrays."""
    model, x, y = made(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = KFAC(model, 0.5, fisher="exact", damping=0.01, momentum=0.0, kl_clip=None)
    seen = records_of(optimizer, lambda: model(x))
    model.zero_grad()
    trained(model, optimizer, x, y)
    method, hyper = ngd_core.KFAC(), ngd_core.Hyper(damping=0.01)
    specs = {layer.spec.name: layer for layer in optimizer.curvature.layers}
    if name == "reused":
        return
    state = method.init([layer.spec for layer in specs.values()], x.numpy()[:1].sum(keepdims=True))
    record = {
        specs[n].spec: ngd_core.LayerRecord(r[0].a.numpy(), r[0].g.numpy()) for n, r in seen.items()
    }
    grads = {layer.spec: layer.block().numpy() for layer in specs.values()}
    state, _ = method.refresh(method.accumulate(state, record, hyper), hyper)
    directions, _ = method.direction(state, grads, {}, hyper)
    names = {p: n for n, p in model.named_parameters()}
    for spec, block in directions.items():
        for p, d in specs[spec.name].split(torch.asarray(block)):
            want = before[names[p]] - 0.5 * d
            assert_close(p.detach().numpy(), want.numpy(), size=100, kappa=1e4)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_steps_do_not_depend_on_how_the_batch_comes(fisher):
    """Duplicated, permuted, in micro-batches: the same parameters after three steps."""
    found = []
    for way in ("plain", "twice", "permuted", "parts"):
        model, x, y = made("sequence")
        x, y = torch.cat([x, 2 * x]), torch.cat([y, y])
        if way == "twice":
            x, y = torch.cat([x, x]), torch.cat([y, y])
        if way == "permuted":
            order = torch.tensor([3, 1, 5, 0, 2, 4])
            x, y = x[order], y[order]
        optimizer = KFAC(model, lr=0.1, fisher=fisher, factor_every=1, inverse_every=2)
        if way == "parts" and fisher == "empirical":
            # a part's loss is divided by the whole batch, so its gradients are, too
            optimizer.curvature.capture.loss_reduction = "sum"
            for _ in range(3):
                optimizer.zero_grad()
                for rows in torch.arange(6).split([4, 2]):
                    loss = functional.cross_entropy(model(x[rows]), y[rows], reduction="sum")
                    loss.backward()
                for p in model.parameters():
                    p.grad /= 6
                optimizer.step()
        else:
            trained(model, optimizer, x, y, steps=3, parts=2 if way == "parts" else 1)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    for other in found[1:]:
        assert_close(other.numpy(), found[0].numpy(), size=100, kappa=1e3)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_convolution_used_twice(fisher):
    """Its uses are further positions: the factors of all rows, unfolded by torch."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.conv(torch.tanh(self.conv(x)))).flatten(1))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(N, 2, 3, 4, dtype=torch.float64)
    optimizer = KFAC(model, 0.1, fisher=fisher)
    seen = records_of(
        optimizer, lambda: functional.cross_entropy(model(x), torch.arange(N)).backward()
    )
    rows = [functional.unfold(use.a, 3, padding=1).mT for use in seen["conv"]]
    grads = [use.g.flatten(-2).mT for use in seen["conv"]]
    dense = LayerSpec("conv", "dense", 18, 2)
    joint = ngd_core.LayerRecord(torch.cat(rows, dim=1), torch.cat(grads, dim=-2))
    want = factors.kronecker_factors(dense, joint)
    optimizer = KFAC(model, 0.1, fisher=fisher)
    functional.cross_entropy(model(x), torch.arange(N)).backward()
    spec = optimizer.curvature.by_name["conv"].spec
    state = optimizer.curvature.state.layers[spec]
    assert len(rows) == 2
    assert_close(state.a.numpy(), want[0].numpy(), size=100)
    assert_close(state.g.numpy(), want[1].numpy(), size=100)


def test_sampling_touches_nothing_of_the_user():
    model, x, _ = made("linear")
    KFAC(model, lr=0.1)
    stream = torch.get_rng_state()
    model(x)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_sampled_fishers_have_the_mean_of_the_exact_one():
    model, x, _ = made("linear")
    optimizer = KFAC(model, lr=0.1, factor_every=1, decay=1.0)
    exact = KFAC(model, lr=0.1, fisher="exact")
    for _ in range(400):
        model(x)
    spec = optimizer.curvature.layers[0].spec
    got, want = (o.curvature.state.layers[spec].g for o in (optimizer, exact))
    assert torch.linalg.norm(got - want) < 0.1 * torch.linalg.norm(want)
    assert float(optimizer.curvature.state.layers[spec].weight) == 400 * N


def test_what_is_not_training_is_not_recorded():
    model, x, y = made("linear")
    optimizer = KFAC(model, lr=0.1, fisher="exact")
    spec = optimizer.curvature.layers[0].spec
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    model.train()
    assert float(optimizer.curvature.state.layers[spec].weight) == 0
    trained(model, optimizer, x, y)
    assert float(optimizer.curvature.state.layers[spec].weight) == N
    trained(model, optimizer, x, y)
    assert float(optimizer.curvature.state.layers[spec].weight) == N  # factor_every is 10


def test_unused_and_frozen_layers():
    torch.manual_seed(0)
    model = nn.ModuleDict({k: nn.Linear(4, 3) for k in ("used", "idle", "frozen")})
    model["frozen"].requires_grad_(False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["used"](x) + self.parts["frozen"](x)

    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = KFAC(net, lr=0.1)
    trained(net, optimizer, torch.randn(N, 4), torch.arange(N), steps=2)
    moved = {n: not torch.equal(p, before[n]) for n, p in net.named_parameters()}
    assert moved == {n: "used" in n for n in before}
    assert optimizer.report().uncovered == {
        "parts.frozen.weight": "frozen",
        "parts.frozen.bias": "frozen",
    }


def test_a_frozen_bias_is_left_out_of_the_block():
    model, x, y = made("linear")
    model[0].bias.requires_grad_(False)
    kept = model[0].bias.clone()
    optimizer = KFAC(model, lr=0.1)
    assert optimizer.curvature.layers[0].spec.bias is False
    trained(model, optimizer, x, y)
    assert torch.equal(model[0].bias, kept)


def test_a_rule_for_a_layer_of_the_users():
    """The transposed layer of some language models, taught in a few lines."""

    class Transposed(nn.Module):
        def __init__(self, n, m):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.zeros(m))

        def forward(self, x):
            return x @ self.weight + self.bias

    rule = LayerRule(
        spec=lambda module, name, _: LayerSpec(name, "dense", *module.weight.shape),
        layout=lambda _, weight: weight.T,
        restore=lambda _, weight: weight.T,
    )
    torch.manual_seed(0)
    own = nn.Sequential(Transposed(4, 3))
    twin = nn.Sequential(nn.Linear(4, 3))
    twin[0].weight.data, twin[0].bias.data = own[0].weight.data.T.clone(), own[0].bias.data.clone()
    x, y = torch.randn(N, 4), torch.arange(N)
    trained(own, KFAC(own, lr=0.1, fisher="exact", layers={Transposed: rule}), x, y, steps=2)
    trained(twin, KFAC(twin, lr=0.1, fisher="exact"), x, y, steps=2)
    assert_close(own[0].weight.T.detach(), twin[0].weight.detach(), dtype="float32", kappa=100)


@pytest.mark.parametrize("drop", ["optimizer", "model"])
def test_nothing_keeps_a_dropped_model_alive(drop):
    model, x, y = made("linear")
    optimizer = KFAC(model, lr=0.1)
    trained(model, optimizer, x, y)
    dead = weakref.ref(optimizer.curvature if drop == "optimizer" else model)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        if drop == "model":
            del model
        assert dead() is None
    finally:
        gc.enable()


def test_closing_leaves_no_hook():
    model, x, y = made("conv")
    for _ in range(50):
        with KFAC(model, lr=0.01) as optimizer:
            trained(model, optimizer, x, y)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_two_optimizers_on_one_model():
    model, x, y = made("linear")
    body = KFAC(model, lr=0.1, params=model[0].parameters())
    head = NaturalGradient(model, ngd_core.SNGD(), 0.1, params=model[2].parameters())
    before = [p.detach().clone() for p in model.parameters()]
    functional.cross_entropy(model(x), y).backward()
    body.step()
    assert not torch.equal(model[0].weight, before[0])
    assert torch.equal(model[2].weight, before[2])
    head.step()
    assert not torch.equal(model[2].weight, before[2])
