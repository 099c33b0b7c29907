"""Kinds of layers and ways to use them, example by example against autograd in float64."""

import copy

import pytest
import torch
from backends.torch_cases import records_of
from ngd_torch import EKFAC, FNGD, KFAC, SNGD, LayerRule, ProjectiveKFAC
from torch import nn
from torch.nn import functional

from ngd_core import LayerSpec, factors
from ngd_core.testing import assert_close, assert_far

N = 3
LABELS = torch.arange(N)


class Transposed(nn.Module):
    """The layer of some language models whose weight is (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


TRANSPOSED = LayerRule(
    spec=lambda module, name, sharing: LayerSpec(
        name, "dense", *module.weight.shape, sharing=sharing
    ),
    layout=lambda _, weight: weight.T,
    restore=lambda _, weight: weight.T,
)


class Twice(nn.Module):
    """One layer used twice, the second time on what the first made of a part."""

    def __init__(self, layer, part=lambda z: z):
        super().__init__()
        self.layer, self.part, self.head = layer, part, nn.LazyLinear(3)

    def forward(self, x):
        once = torch.tanh(self.layer(x))
        both = self.layer(self.part(once)).flatten(1), once.flatten(1)
        return self.head(torch.tanh(torch.cat(both, dim=1)))


class OneWeight(nn.Module):
    """Two modules with one weight, one after the other."""

    def __init__(self, one, two):
        super().__init__()
        two.weight = one.weight
        self.one, self.two, self.head = one, two, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))).flatten(1))


class Tied(nn.Module):
    """A table that is looked up, and the output layer."""

    def __init__(self, first="table", bias=False, vocabulary=5):
        super().__init__()
        parts = {
            "table": nn.Embedding(vocabulary, 4, padding_idx=0),
            "out": nn.Linear(4, vocabulary, bias=bias),
        }
        for name in sorted(parts, key=lambda name: name != first):
            self.add_module(name, parts[name])
        self.fc = nn.Linear(4, 4)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        return self.out((x + torch.tanh(self.fc(x))).mean(1))


class Frames(nn.Module):
    """Frames of a film, folded into the first axis."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(
            torch.tanh(self.layer(x.flatten(0, 1))).unflatten(0, x.shape[:2]).flatten(1)
        )


class Attention(nn.Module):
    """Linear maps around scaled dot-product attention, one of them of keys and values."""

    def __init__(self):
        super().__init__()
        self.query, self.both = nn.Linear(4, 4), nn.Linear(4, 8, bias=False)
        self.out, self.head = nn.Linear(4, 4), nn.LazyLinear(3)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (2, 2)).transpose(1, 2)
            for part in (self.query(x), *self.both(x).chunk(2, dim=-1))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).flatten(1))


def tokens():
    return torch.tensor([[1, 3, 0, 1], [2, 2, 4, 0], [0, 1, 1, 1]])


def headed(*body):
    return nn.Sequential(*body, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def frozen(norm):
    """A normalisation by running statistics that are not trivial."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


CASES = {
    "conv3d in groups": (
        lambda: headed(nn.Conv3d(4, 6, 2, stride=(1, 2, 1), padding=(1, 0, 1), groups=2)),
        (4, 2, 3, 2),
    ),
    "conv3d in groups, circular": (
        lambda: headed(
            nn.Conv3d(2, 4, 2, padding=1, padding_mode="circular", groups=2, bias=False)
        ),
        (2, 2, 2, 3),
    ),
    "transposed 1-D in groups": (
        lambda: headed(nn.ConvTranspose1d(4, 6, 3, 2, padding=1, output_padding=1, groups=2)),
        (4, 3),
    ),
    "transposed 2-D in groups": (
        lambda: headed(nn.ConvTranspose2d(6, 3, (2, 3), (2, 1), dilation=(1, 2), groups=3)),
        (6, 2, 3),
    ),
    "transposed 3-D in groups": (
        lambda: headed(nn.ConvTranspose3d(4, 4, 2, stride=2, groups=4, bias=False)),
        (4, 1, 2, 1),
    ),
    "instance norm 1-D": (lambda: headed(nn.InstanceNorm1d(4, affine=True)), (4, 3)),
    "instance norm 2-D": (lambda: headed(nn.InstanceNorm2d(2, affine=True)), (2, 2, 3)),
    "instance norm 3-D": (lambda: headed(nn.InstanceNorm3d(2, affine=True)), (2, 2, 1, 2)),
    "instance norm, frozen": (
        lambda: headed(frozen(nn.InstanceNorm1d(4, affine=True, track_running_stats=True))),
        (4, 3),
    ),
    "instance norm of a batch": (
        lambda: headed(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        (4, 3),
    ),
    "batch norm 1-D": (lambda: headed(nn.Linear(4, 4), nn.BatchNorm1d(4)), (4,)),
    "batch norm 1-D, positions": (lambda: headed(nn.BatchNorm1d(4)), (4, 3)),
    "batch norm 2-D": (lambda: headed(nn.BatchNorm2d(2)), (2, 2, 3)),
    "batch norm 3-D": (lambda: headed(nn.BatchNorm3d(2)), (2, 1, 2, 2)),
    "batch norm, nothing tracked": (
        lambda: headed(nn.BatchNorm1d(4, track_running_stats=False).eval()),
        (4,),
    ),
    "batch norm, frozen": (
        lambda: headed(nn.Linear(4, 4), frozen(nn.BatchNorm1d(4)), nn.Linear(4, 4)),
        (4,),
    ),
    "conv2d on frames": (lambda: Frames(nn.Conv2d(2, 4, 2, stride=2, groups=2)), (2, 2, 3, 3)),
    "conv3d on frames": (lambda: Frames(nn.Conv3d(2, 2, 2, groups=2)), (2, 2, 2, 2, 3)),
    "scaled dot-product attention": (Attention, (3, 4)),
    "transposed weight": (lambda: headed(Transposed(4, 5)), (2, 4)),
    "conv used twice": (lambda: Twice(nn.Conv2d(2, 2, 3, padding=1)), (2, 3, 2)),
    "conv in groups used twice": (
        lambda: Twice(nn.Conv2d(4, 4, 3, groups=2, padding="same"), lambda z: z[..., 1:]),
        (4, 2, 3),
    ),
    "conv1d used twice": (lambda: Twice(nn.Conv1d(2, 2, 2)), (2, 4)),
    "conv3d used twice": (lambda: Twice(nn.Conv3d(2, 2, 2, groups=2)), (2, 3, 3, 3)),
    "transposed conv used twice": (lambda: Twice(nn.ConvTranspose1d(2, 2, 2)), (2, 2)),
    "embedding used twice": (lambda: Tied("table"), tokens),
    "conv weight in two modules": (
        lambda: OneWeight(
            nn.Conv2d(2, 2, 2, padding=1, bias=False), nn.Conv2d(2, 2, 2, stride=2, bias=False)
        ),
        (2, 3, 2),
    ),
    "conv weight in two modules, 1-D": (
        lambda: OneWeight(
            nn.Conv1d(4, 4, 3, groups=2, padding="same", bias=False),
            nn.Conv1d(4, 4, 3, 2, 1, groups=2, padding_mode="reflect", bias=False),
        ),
        (4, 4),
    ),
    "one weight, two biases": (lambda: OneWeight(nn.Linear(4, 4), nn.Linear(4, 4)), (4,)),
    "tied": (Tied, tokens),
    "tied, the output layer first": (lambda: Tied("out"), tokens),
    "tied, an output bias": (lambda: Tied(bias=True), tokens),
}
JOINT = "batch norm"
"""Cases in which a batch has to be seen as a whole."""
UNCOVERED = {
    "one weight, two biases": {"one.bias", "two.bias"},
    "tied, an output bias": {"out.bias"},
}


def made(name):
    """Model in float64, and inputs."""
    torch.manual_seed(0)
    build, shape = CASES[name]
    x = shape() if callable(shape) else torch.randn(N, *shape, dtype=torch.float64)
    model = build().double()
    with torch.no_grad():
        model(x)
    return model, x


def joined_records(optimizer, run):
    """Records that reach the statistics while `run` runs, one a layer."""
    specs = {layer.spec.name: layer.spec for layer in optimizer.curvature.layers}
    found = records_of(optimizer, run)
    return {name: factors.joined(specs[name], uses) for name, uses in found.items()}


def gradient(layer, loss):
    """Gradient of a layer's block by autograd."""
    weight, *bias = torch.autograd.grad(loss, layer.parameters, retain_graph=True)
    weight = layer.rule.layout(layer.module, weight)
    return factors.join(layer.spec, weight, *(b.reshape(-1) for b in bias))


def examples(model, x, name):
    """Outputs of each example, by itself where it can be."""
    if name.startswith(JOINT):
        outputs = model(x)
        return [outputs[n : n + 1] for n in range(N)]
    return [model(x[n : n + 1]) for n in range(N)]


def last_mixing(model, layer):
    """Whether no batch statistics come behind a layer of a chain."""
    modules = list(model.modules())
    behind = modules[modules.index(layer.module) + 1 :]
    return not any(isinstance(module, nn.BatchNorm1d) and module.training for module in behind)


@pytest.mark.parametrize("name", CASES)
def test_an_example_has_its_own_gradient(name):
    model, x = made(name)
    optimizer = KFAC(model, 0.1, fisher="empirical", layers={Transposed: TRANSPOSED})
    twin = copy.deepcopy(model)
    seen = joined_records(
        optimizer, lambda: functional.cross_entropy(model(x), LABELS, reduction="mean").backward()
    )
    layers = [layer for layer in optimizer.curvature.layers if last_mixing(model, layer)]
    assert set(optimizer.report().uncovered) == UNCOVERED.get(name, set())
    parts = dict(zip(model.parameters(), twin.parameters(), strict=True))
    outputs = examples(twin, x, name)
    for layer in layers:
        there = layer._replace(
            weight=parts[layer.weight], bias=None if layer.bias is None else parts[layer.bias]
        )
        got = factors.per_example_gradients(layer.spec, seen[layer.spec.name])[0]
        for n, output in enumerate(outputs):
            want = gradient(there, functional.cross_entropy(output, LABELS[n : n + 1]))
            assert_close(got[n].numpy(), want.numpy(), size=100)
        assert torch.equal(
            layer.weight,
            dict(layer.split(factors_of(layer)))[layer.weight].reshape_as(layer.weight),
        )
    assert len(layers) >= 1


def factors_of(layer):
    """Parameters of a layer as a block."""
    bias = None if layer.bias is None else layer.bias.detach().reshape(-1)
    return factors.join(layer.spec, layer.rule.layout(layer.module, layer.weight.detach()), bias)


@pytest.mark.parametrize("name", CASES)
def test_the_exact_fisher_of_an_example(name):
    """F = sum_y p(y) grad grad^T over all labels."""
    model, x = made(name)
    optimizer = KFAC(model, 0.1, fisher="exact", layers={Transposed: TRANSPOSED})
    seen = joined_records(optimizer, lambda: model(x))
    optimizer.close()
    outputs = examples(model, x, name)
    for layer in optimizer.curvature.layers:
        if not last_mixing(model, layer):
            continue
        u = factors.per_example_gradients(layer.spec, seen[layer.spec.name])
        u = u.reshape(len(u), N, -1)
        for n, output in enumerate(outputs):
            want, p = 0, torch.softmax(output.detach()[0], dim=-1)
            for label in range(len(p)):
                loss = functional.cross_entropy(output, torch.tensor([label]))
                block = gradient(layer, loss).reshape(-1)
                want = want + p[label] * torch.outer(block, block)
            got = u[:, n].mT @ u[:, n]
            assert_close(got.numpy(), want.numpy(), size=100, kappa=10)


CHUNKED = (
    "conv3d in groups",
    "transposed 2-D in groups",
    "batch norm 2-D",
    "conv used twice",
    "conv weight in two modules",
    "conv2d on frames",
)


@pytest.mark.parametrize(
    ("name", "fisher"),
    [*((name, "exact") for name in CHUNKED), *((name, "empirical") for name in (*CHUNKED, "tied"))],
)
def test_records_of_some_examples_at_a_time_give_the_same_factors(name, fisher):
    """Vectors one by one, too, but for a tied table, whose parts do not add up."""
    found = []
    for chunk_bytes in (2**25, 1):
        model, x = made(name)
        optimizer = KFAC(model, 0.1, fisher=fisher, chunk_bytes=chunk_bytes)
        functional.cross_entropy(model(x), LABELS).backward()
        found.append(list(optimizer.curvature.state.layers.values()))
    for got, want in zip(*found, strict=True):
        assert float(want.weight) == N
        assert_close(got.a.numpy(), want.a.numpy(), size=100)
        assert_close(got.g.numpy(), want.g.numpy(), size=100)


def test_images_that_are_no_whole_number_an_example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(0), nn.Unflatten(0, (4, 3)))
    sentence = "saw 6 rows where the model's output has 4 examples"
    with (
        KFAC(model, 0.1, fisher="empirical"),
        pytest.raises(ValueError, match=sentence),
    ):
        model(torch.randn(6, 1, 2, 1)).sum().backward()


# --- batch normalisation


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_running_statistics_are_those_of_a_run_without_us(fisher, momentum):
    torch.manual_seed(0)
    plain = headed(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 4)
    plain(x)
    model = copy.deepcopy(plain)
    optimizer = KFAC(model, 0.0, fisher=fisher, factor_every=1)
    for _ in range(3):
        for net in (plain, model):
            functional.cross_entropy(net(x), torch.arange(5) % 3).backward()
        optimizer.step()
    for (name, got), (_, want) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(got, want), name
    assert model[0].momentum == momentum


def test_in_front_of_batch_statistics_the_sum_over_the_batch_is_right_and_its_parts_are_not():
    torch.manual_seed(0)
    model = headed(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    optimizer = KFAC(model, 0.1, fisher="empirical", loss_reduction="sum")
    seen = joined_records(
        optimizer, lambda: functional.cross_entropy(model(x), LABELS, reduction="sum").backward()
    )
    first = optimizer.curvature.layers[0]
    assert first.module is model[0]
    u = factors.per_example_gradients(first.spec, seen["0"])[0]
    assert_close(u.sum(0).numpy(), first.block().numpy(), size=100)
    optimizer.close()
    own = gradient(first, functional.cross_entropy(model(x)[:1], LABELS[:1]))
    assert_far(u[0].numpy(), own.numpy(), least=0.01)


# --- several uses, by every method


def blocks_of_examples(model, x, labels):
    """Per-example gradients of all parameters, ``{parameter: (N, ...)}``."""
    rows = [
        torch.autograd.grad(
            functional.cross_entropy(model(x[n : n + 1]), labels[n : n + 1]),
            list(model.parameters()),
        )
        for n in range(len(x))
    ]
    return {
        p: torch.stack(parts)
        for p, parts in zip(model.parameters(), zip(*rows, strict=True), strict=True)
    }


@pytest.mark.parametrize("name", ["conv used twice", "conv weight in two modules", "tied"])
def test_fngd_weights_the_examples_of_all_uses(name):
    """The first epoch is the exact damped natural gradient of each layer."""
    model, x = made(name)
    grads = blocks_of_examples(model, x, LABELS)
    optimizer = FNGD(
        model, 1.0, batch_size=N, damping=0.2, damping_mode="absolute", gain="natural", momentum=0.0
    )
    before = {p: p.detach().clone() for p in model.parameters()}
    functional.cross_entropy(model(x), LABELS).backward()
    optimizer.step()
    for layer in optimizer.curvature.layers:
        u = torch.cat([grads[p].reshape(N, -1) for p in layer.parameters], dim=1)
        want = torch.linalg.solve(u.T @ u / N + 0.2 * torch.eye(u.shape[1]).double(), u.mean(0))
        got = torch.cat([(before[p] - p.detach()).reshape(-1) for p in layer.parameters])
        assert_close(got.numpy(), want.numpy(), size=100, kappa=100)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["conv used twice", "conv weight in two modules"])
def test_ekfac_sees_the_trace_of_the_fisher_of_all_uses(name, sharing):
    model, x = made(name)
    grads = blocks_of_examples(model, x, LABELS)
    optimizer = EKFAC(model, 0.1, fisher="empirical", sharing=sharing, decay=0.0, factor_every=1)
    for _ in range(2):
        functional.cross_entropy(model(x), LABELS).backward()
    layer = optimizer.curvature.layers[0]
    want = sum((grads[p] ** 2).sum() / N for p in layer.parameters)
    got = optimizer.curvature.state.layers[layer.spec].scales.sum()
    assert_close(got.numpy(), want.numpy(), size=100)


def test_reduced_positions_of_several_uses():
    """Inputs averaged and gradients summed over the positions of both uses."""
    model, x = made("conv used twice")
    grads = blocks_of_examples(model, x, LABELS)
    optimizer = KFAC(model, 0.1, fisher="empirical", sharing="reduce")
    functional.cross_entropy(model(x), LABELS).backward()
    layer = optimizer.curvature.layers[0]
    state = optimizer.curvature.state.layers[layer.spec]
    summed = grads[layer.bias]  # the gradient of a bias is the sum over positions
    assert_close(state.g.numpy(), (summed.T @ summed / N).numpy(), size=100)
    inputs = x, torch.tanh(model.layer(x)).detach()
    mean = torch.cat([functional.unfold(a, 3, padding=1) for a in inputs], dim=-1).mean(-1)
    mean = torch.cat([mean, torch.ones(N, 1)], dim=1)
    assert_close(state.a.numpy(), (mean.T @ mean / N).numpy(), size=100)


@pytest.mark.parametrize("make", [KFAC, EKFAC, SNGD, ProjectiveKFAC])
@pytest.mark.parametrize("name", ["conv used twice", "conv3d in groups", "batch norm 2-D", "tied"])
def test_every_method_trains(name, make):
    model, x = made(name)
    optimizer = make(model, 0.03, factor_every=1, inverse_every=1)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert {stats["code"] for stats in optimizer.stats.values()} <= {0, 1}


# --- tied tables


def test_a_tied_table_has_the_factors_of_both_uses():
    model, x = made("tied")
    optimizer = KFAC(model, 0.1, fisher="exact")
    seen = joined_records(optimizer, lambda: model(x))
    model(x)
    layer = optimizer.curvature.layers[0]
    state = optimizer.curvature.state.layers[layer.spec]
    record = seen["table"]
    assert record.a.shape == (N, 4)
    assert record.tied.a.shape == (N, 4)
    out = LayerSpec("out", "dense", 4, 5, bias=False)
    first = factors.kronecker_factors(layer.spec, record._replace(tied=None))
    H, S = factors.kronecker_factors(out, record.tied)
    trace = first[0].sum() * first[1].trace() + H.trace() * S.trace()
    assert state.a.shape == (5,)
    assert_close((state.a.sum() * state.g.trace()).numpy(), trace.numpy(), size=100)


def test_a_tied_table_of_a_large_vocabulary_has_no_matrix_of_its_size():
    torch.manual_seed(0)
    model = Tied(vocabulary=20_000)
    optimizer = KFAC(model, 0.1)
    sizes = [x["numbers"] for x in optimizer.report().layers.values()]
    assert max(sizes) < 5 * 20_000
    functional.cross_entropy(model(tokens()), LABELS).backward()
    optimizer.step()
    assert optimizer.stats["table"]["code"] == 0


@pytest.mark.parametrize("make", [EKFAC, SNGD, ProjectiveKFAC])
def test_a_tied_table_follows_its_gradient_where_the_method_has_nothing_for_it(make):
    optimizer = make(Tied(), 0.1)
    assert optimizer.report().uncovered == {
        "table.weight": "the method has nothing for the kind 'embedding'"
    }


def test_a_weight_in_modules_that_do_not_go_together():
    model = OneWeight(nn.Linear(4, 4, bias=False), Transposed(4, 4))
    model(torch.randn(2, 4))
    optimizer = KFAC(model, 0.1, layers={Transposed: TRANSPOSED})
    assert optimizer.report().uncovered == {
        "one.weight": "shared with 'one', a layer of another kind",
        "two.bias": "its weight has no curvature",
    }


class Functional(nn.Module):
    """A table that is read as output layer without a module."""

    def __init__(self, way):
        super().__init__()
        self.table, self.fc, self.way = nn.Embedding(5, 4), nn.Linear(4, 4), way

    def forward(self, tokens):
        h = torch.tanh(self.fc(self.table(tokens))).mean(1)
        return (
            functional.linear(h, self.table.weight)
            if self.way == "linear"
            else (h @ self.table.weight.T)
        )


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("way", ["linear", "product"])
def test_a_table_read_as_output_layer_without_a_module_is_said(way, fisher):
    torch.manual_seed(0)
    model = Functional(way)
    optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1)
    sentence = "The weight of 'table' is read without a call of its layer"
    with pytest.warns(UserWarning, match=sentence):
        model(tokens())
    functional.cross_entropy(model(tokens()), LABELS).backward()  # once is enough
    optimizer.step()
    optimizer.close()
    optimizer = FNGD(model, 0.1, batch_size=N)
    with pytest.raises(RuntimeError, match=sentence):
        model(tokens())


@pytest.mark.parametrize("name", ["tied", "conv used twice", "conv weight in two modules"])
def test_calls_of_modules_are_all_seen(name, recwarn):
    model, x = made(name)
    for fisher in ("mc", "empirical"):
        with KFAC(model, 0.1, fisher=fisher):
            model(x)
    assert not recwarn


def test_statistics_of_all_processes_are_said():
    model = nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4))
    assert set(KFAC(model, 0.1).report().uncovered.values()) == {
        "its statistics are of all processes"
    }
