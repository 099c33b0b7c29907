"""FNGD's weights in the backward pass of normalisations, attention and embeddings.

Everywhere the gradient is ``(1/n) sum_i w_i u_i`` with per-example gradients u by definition: of
an example alone or, behind statistics of a batch, of a scale that the example has to itself.
"""

import ngd_torch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N = 4


class Around(nn.Module):
    """A module between an input that needs a gradient and outputs of three classes."""

    def __init__(self, inner, call=None, width=None):
        super().__init__()
        self.inner, self.call = inner, call or (lambda inner, x: inner(x))
        self.before = nn.Linear(width, width) if width else nn.Identity()

    def forward(self, x):
        h = self.call(self.inner, self.before(x)).flatten(1)
        return torch.stack([(h * (h + 3) ** k).mean(1) for k in range(3)], 1).tanh()


def weighing(model, seed=0):
    """FNGD behind its first epoch, and random weights by the names of layers."""
    optimizer = ngd_torch.FNGD(model, 0.1, batch_size=N, weighted_backward=True)
    optimizer.epoch_end()
    r, weights, layers = torch.Generator().manual_seed(seed), {}, {}
    for spec, layer in optimizer.curvature.state.layers.items():
        w = torch.randn(N, generator=r, dtype=torch.float64)
        weights[spec.name] = w
        table = layer.table._replace(
            weights=w.to(layer.table.weights.dtype), known=torch.ones(N, dtype=torch.bool)
        )
        layers[spec] = layer._replace(table=table)
    optimizer.curvature.state = ngd_core.methods.fngd.FNGDState(layers)
    return optimizer, weights


def gradients(model, x, y):
    loss = functional.cross_entropy(model(x).double(), y)
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def expected(model, optimizer, weights, x, y):
    """Weighted sums of gradients of the examples alone."""
    model.eval()  # passes that are not for training are not looked at
    alone = [gradients(model, x[[k]], y[[k]]) for k in range(len(x))]
    model.train()
    found = {p: torch.zeros_like(p) for p in model.parameters() if p.requires_grad}
    for layer in optimizer.curvature.layers:
        rows = {layer.weight: layer.rows, layer.bias: layer.bias_rows}
        for place, p in enumerate(found):
            if any(p is own for own in layer.parameters):
                part = rows[p] or slice(None)
                w = weights[layer.spec.name]
                found[p][part] = sum(w[k] * u[place][part] for k, u in enumerate(alone)) / len(x)
    return found


def check(model, x, seed=0, dtype="float64"):
    torch.manual_seed(seed)
    model = model.to(getattr(torch, dtype))
    for p in model.parameters():
        nn.init.normal_(p)
    optimizer, weights = weighing(model, seed)
    y = torch.arange(len(x)) % 3
    want = expected(model, optimizer, weights, x, y)
    assert all(optimizer.curvature.weighs(layer) for layer in optimizer.curvature.layers)
    optimizer.zero_grad()
    functional.cross_entropy(model(x).double(), y).backward()
    for p, gradient in want.items():
        scale = float(gradient.abs().max()) + 1e-3
        # norms of few numbers that are almost alike lose digits
        assert_close(
            p.grad.numpy(), gradient.numpy(), dtype=dtype, size=100, kappa=100, scale=scale
        )
    optimizer.step()
    assert optimizer.skipped == 0
    assert not optimizer.stats  # nothing went the usual way
    optimizer.close()


sizes, seeds, flags = st.integers(1, 4), st.integers(0, 9), st.booleans()


@given(
    seed=seeds,
    positions=st.lists(sizes, max_size=2),
    shape=st.lists(st.integers(2, 5), min_size=1, max_size=2),
    bias=flags,
    twice=flags,
)
def test_layer_norms(seed, positions, shape, bias, twice):
    x = torch.randn(N, *positions, *shape, dtype=torch.float64)
    norm = nn.LayerNorm(shape, bias=bias)
    call = (lambda norm, x: norm(norm(x).sin())) if twice else None
    check(Around(norm, call, width=shape[-1]), x, seed)


@given(
    seed=seeds,
    image=st.lists(st.integers(2, 4), max_size=2),
    groups=st.integers(1, 3),
    each=st.integers(2, 3),
    twice=flags,
)
def test_group_norms(seed, image, groups, each, twice):
    channels = groups * each
    x = torch.randn(N, channels, *image, dtype=torch.float64)
    if len(image) == 2 and seed % 2:
        x = x.to(memory_format=torch.channels_last)
    call = (lambda norm, x: norm(norm(x).sin())) if twice else None
    check(Around(nn.GroupNorm(groups, channels), call, width=x.shape[-1]), x, seed)


@given(seed=seeds, image=st.lists(sizes, max_size=3), channels=sizes)
def test_batch_norms_by_running_statistics(seed, image, channels):
    kinds = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norm = kinds[len(image)](channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(N, channels, *image, dtype=torch.float64)
    check(Around(norm, lambda norm, x: norm.eval()(x), width=x.shape[-1]), x, seed)


@given(seed=seeds, image=st.lists(sizes, min_size=2, max_size=2), channels=sizes)
def test_batch_norms_by_statistics_of_the_batch(seed, image, channels):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels).double()
    x = torch.randn(N, channels, *image, dtype=torch.float64, requires_grad=True)
    y = torch.arange(N) % 3
    nn.init.normal_(norm.weight)
    model = Around(norm)
    optimizer, weights = weighing(model, seed)
    own = {
        name: p.detach().expand(N, -1).clone().requires_grad_()
        for name, p in norm.named_parameters()
    }
    shape = (N, channels, 1, 1)

    def apart(_, x):
        z = functional.batch_norm(x, None, None, training=True)
        return z * own["weight"].view(shape) + own["bias"].view(shape)

    loss = functional.cross_entropy(Around(norm, apart)(x), y)
    to_x, *each = torch.autograd.grad(loss, [x, *own.values()])
    before = norm.running_mean.clone()
    functional.cross_entropy(model(x), y).backward()
    w = weights["inner"]
    for p, u in zip(norm.parameters(), each, strict=True):
        assert_close(p.grad.numpy(), (w @ u).numpy(), size=100, scale=float(u.abs().max()) + 1e-3)
    assert_close(x.grad.numpy(), to_x.numpy(), size=100, scale=float(to_x.abs().max()) + 1e-6)
    assert bool((norm.running_mean != before).any())
    optimizer.close()


def itself(attention, x, **options):
    return attention(x, x, x, **options)[0]


ATTENTIONS = {
    "itself": ({}, itself),
    "without weights": ({}, lambda m, x: itself(m, x, need_weights=False)),
    "causal": (
        {},
        lambda m, x: itself(
            m,
            x,
            need_weights=False,
            is_causal=True,
            attn_mask=nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype),
        ),
    ),
    "no bias": ({"bias": False}, itself),
    "memory": ({}, lambda m, x: m(x, x.cos(), x.cos())[0] + (k := x.sin()) * m(x, k, k)[0]),
    "three": ({}, lambda m, x: m(x, x.cos(), x.exp())[0]),
    "sizes": ({"kdim": 2, "vdim": 3}, lambda m, x: m(x, x[..., :2], x[..., 1:])[0]),
    "zeros": ({"add_zero_attn": True}, itself),
    "masked": (
        {},
        lambda m, x: itself(
            m, x, key_padding_mask=torch.tensor([[False, False, True]]).expand(len(x), -1)
        ),
    ),
    "time first": (
        {"batch_first": False},
        lambda m, x: itself(m, x.transpose(0, 1)).transpose(0, 1),
    ),
    "time first, memory": (
        {"batch_first": False},
        lambda m, x: m(x.mT.mT.transpose(0, 1), *[x[:, :2].cos().transpose(0, 1)] * 2)[0].transpose(
            0, 1
        ),
    ),
    "twice": ({}, lambda m, x: itself(m, itself(m, x).sin())),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name):
    options, call = ATTENTIONS[name]
    attention = nn.MultiheadAttention(4, 2, **{"batch_first": True, **options})
    check(Around(attention, call, width=4), torch.randn(N, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", ["itself", "memory", "sizes"])
def test_attention_where_its_function_is_not_the_one_known(name, monkeypatch):
    """The products are brought to light as ever, and have their weights there."""
    monkeypatch.setattr("ngd_torch._unrolled.CAN_WEIGH", False)
    test_attention(name)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_block_of_a_transformer(batch_first):
    """Time first its norms go the usual way, and give the same direction."""
    models = []
    for weighted in (True, False):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=batch_first).double()
        axes = (0, 1) if batch_first else (1, 0)
        models.append(
            Around(block, lambda m, x, axes=axes: m(x.movedim(0, axes[0])).movedim(axes[0], 0))
        )
        optimizer = ngd_torch.FNGD(models[-1], 0.1, batch_size=N, weighted_backward=weighted)
        for k in range(4):
            x = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(k)).double()
            optimizer.zero_grad()
            functional.cross_entropy(models[-1](x), torch.arange(N) % 3).backward()
            optimizer.step()
            if k % 2:
                optimizer.epoch_end()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        assert_close(p.detach().numpy(), q.detach().numpy(), size=100, scale=1.0)


@given(seed=seeds, twice=flags)
def test_embeddings(seed, twice):
    table = nn.Embedding(5, 3)
    call = (lambda e, x: e(x) * e(4 - x).sin()) if twice else None
    check(Around(table, call), torch.randint(0, 5, (N, 3)), seed)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6)])
def test_norms_under_autocast(norm):
    """Products in bfloat16, norms in float32: the same gradients as with weights beside them."""
    found = []
    for weighted in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 3))
        for p in model.parameters():
            nn.init.normal_(p)
        optimizer = ngd_torch.FNGD(model, 0.1, batch_size=N, weighted_backward=weighted)
        x = torch.randn(N, 6)
        for k in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x), torch.arange(N) % 3)
            loss.backward()
            optimizer.step()
            if not k:
                optimizer.epoch_end()
        found.append([p.detach().clone() for p in model.parameters()])
        optimizer.close()
    for p, q in zip(*found, strict=True):
        assert_close(p.numpy(), q.numpy(), dtype="float32", size=3000, scale=1.0)


def test_frozen_scales_and_inputs_without_gradients():
    model = Around(nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(8)))
    model.inner[0].bias.requires_grad_(False)
    model.inner[2].weight.requires_grad_(False)
    x, y = torch.randn(N, 4, 2), torch.arange(N) % 3
    optimizer, weights = weighing(model)
    want = expected(model, optimizer, weights, x, y)
    functional.cross_entropy(model(x), y).backward()
    p = model.inner[0].weight
    assert_close(p.grad.numpy(), want[p].numpy(), dtype="float32", size=100, scale=1.0)
    assert model.inner[0].bias.grad is None
    assert model.inner[2].weight.grad is None
