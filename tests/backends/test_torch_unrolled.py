"""Recurrent modules and attention: seen weight by weight, and otherwise as they are."""

import copy
import gc
import weakref

import pytest
import torch
from backends.torch_cases import flat, records_of
from ngd_torch import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    NaturalGradient,
    ProjectiveKFAC,
    left_out,
    reconstruct,
)
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import ngd_core
from ngd_core import factors
from ngd_core.testing import assert_close, assert_far

N, T = 3, 6  # a multiple: examples and times could be mixed up without an error
LABELS = torch.arange(N) % 3


class Net(nn.Module):
    """A body on ``(N, T, 4)``, what it gives averaged over time, and a head."""

    def __init__(self, body, features=4, run=None):
        super().__init__()
        self.body, self.head = body, nn.Linear(features, 3)
        self.run = run or type(self).run_body

    @staticmethod
    def run_body(body, x):
        return body(x)

    def forward(self, x):
        return self.head(self.run(self.body, x))


def recurrent(kind, **options):
    """All that a recurrent module gives, examples first."""
    module = kind(4, 5, **options)
    width = (options.get("proj_size") or 5) * (2 if module.bidirectional else 1)

    def run(body, x):
        outputs, ends = body(x if body.batch_first else x.transpose(0, 1))
        outputs = outputs if body.batch_first else outputs.transpose(0, 1)
        h = ends[0] if isinstance(ends, tuple) else ends
        c = torch.tanh(ends[1]).sum((0, 2))[:, None] if isinstance(ends, tuple) else 0
        return outputs.cumsum(1).mean(1) + h.sum((0, 2))[:, None] + c

    return Net(module, width, run)


def last(kind, **options):
    """The outputs at the last time: backwards, all but one step are without a gradient."""
    module = kind(4, 5, bidirectional=True, batch_first=True, **options)
    return Net(module, 10, lambda body, x: body(x)[0][:, -1])


def started(kind):
    """From a given state."""

    def run(body, x):
        h = torch.tanh(x[:, :2, :3].transpose(0, 1)).contiguous()
        start = (h, 2 * h) if isinstance(body, nn.LSTM) else h
        return body(x, start)[0].sum(1)

    return Net(kind(4, 3, 2, batch_first=True), 3, run)


def stepped(kind, **options):
    """A cell, step by step."""

    def run(body, x):
        state, outputs = None, []
        for t in range(3):
            state = body(x[:, t], state)
            outputs.append(sum(state) if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1).mean(1)

    return Net(kind(4, 5, **options), 5, run)


def attention(run=None, **options):
    def alone(body, x):
        x = x if body.batch_first else x.transpose(0, 1)
        z = x + body(x, x, x)[0]
        return z.mean(1 if body.batch_first else 0)

    return Net(nn.MultiheadAttention(4, 2, **options), 4, run or alone)


def crossed(body, x):
    key = torch.tanh(x[:, :4])
    return body(x, key, key)[0].mean(1)


def three(body, x):
    return body(x, torch.tanh(x), torch.sin(x))[0].mean(1)


def sizes(body, x):
    return body(x, torch.tanh(x[:, :4, :2]), torch.sin(x[:, :4, :3]))[0].mean(1)


def masked(body, x):
    """Masks of both kinds, and the weights of all heads."""
    causal = nn.Transformer.generate_square_subsequent_mask(T, dtype=x.dtype)
    pad = torch.zeros(len(x), T, dtype=x.dtype)
    pad[:, T - 1] = float("-inf")
    outputs, weights = body(
        x, x, x, attn_mask=causal, key_padding_mask=pad, average_attn_weights=False
    )
    return outputs.mean(1) + weights[:, 0, -1, 2, None] + weights[:, 1, 2, :1]


def causal(body, x):
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    return body(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)[0].mean(1)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 6, **options)
    body = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)
    first = options.get("batch_first", False)
    return Net(
        body,
        4,
        lambda body, x: (body(x) if first else body(x.transpose(0, 1)).transpose(0, 1))[:, 0],
    )


def decoder(**options):
    first = options.get("batch_first", False)

    def run(body, x):
        memory = torch.tanh(x[:, :4])
        if first:
            return body(x, memory).cumsum(1).mean(1)
        return body(x.transpose(0, 1), memory.transpose(0, 1)).cumsum(0).mean(0)

    layer = nn.TransformerDecoderLayer(4, 2, 6, **options)
    return Net(nn.TransformerDecoder(layer, 1, norm=nn.LayerNorm(4)), 4, run)


class ByHand(nn.Module):
    """Attention of four linear modules and PyTorch's product."""

    def __init__(self, size=4, heads=2):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(size, size) for _ in range(4)
        )

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        z = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(z.transpose(1, 2).flatten(2))


def through_checkpoint(build):
    net = build()
    inner = net.run
    net.run = lambda body, x: checkpoint(inner, body, x, use_reentrant=False)
    return net


EXACT = {
    "LSTM": lambda: recurrent(nn.LSTM, batch_first=True),
    "LSTM, time first": lambda: recurrent(nn.LSTM),
    "LSTM, deep and both ways": lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM, projected": lambda: recurrent(nn.LSTM, num_layers=2, proj_size=2, batch_first=True),
    "LSTM, last output": lambda: last(nn.LSTM),
    "LSTM, no bias": lambda: recurrent(nn.LSTM, bias=False),
    "LSTM, started": lambda: started(nn.LSTM),
    "GRU": lambda: recurrent(nn.GRU, batch_first=True),
    "GRU, deep and both ways": lambda: recurrent(nn.GRU, num_layers=2, bidirectional=True),
    "GRU, last output": lambda: last(nn.GRU, num_layers=2),
    "GRU, started": lambda: started(nn.GRU),
    "RNN": lambda: recurrent(nn.RNN, bidirectional=True),
    "RNN, relu": lambda: recurrent(nn.RNN, nonlinearity="relu", num_layers=2, batch_first=True),
    "LSTM cell": lambda: stepped(nn.LSTMCell),
    "GRU cell": lambda: stepped(nn.GRUCell),
    "RNN cell": lambda: stepped(nn.RNNCell),
    "RNN cell, relu, no bias": lambda: stepped(nn.RNNCell, nonlinearity="relu", bias=False),
    "attention": lambda: attention(batch_first=True),
    "attention, time first": attention,
    "attention, no bias": lambda: attention(bias=False, batch_first=True),
    "attention, crossed": lambda: attention(crossed, batch_first=True),
    "attention, three inputs": lambda: attention(three, batch_first=True),
    "attention, other sizes": lambda: attention(sizes, batch_first=True, kdim=2, vdim=3),
    "attention, masked": lambda: attention(masked, batch_first=True),
    "attention, causal": lambda: attention(causal, batch_first=True),
    "attention, further keys": lambda: attention(
        batch_first=True, add_bias_kv=True, add_zero_attn=True
    ),
    "attention by hand": lambda: Net(ByHand(), 4, lambda body, x: body(x).mean(1)),
    "encoder": lambda: encoder(batch_first=True, dropout=0.0),
    "encoder, time first": lambda: encoder(dropout=0.0),
    "encoder, norm first": lambda: encoder(batch_first=True, norm_first=True, dropout=0.0),
    "decoder": lambda: decoder(batch_first=True, dropout=0.0),
    "decoder, time first": lambda: decoder(dropout=0.0),
    "LSTM in a checkpoint": lambda: through_checkpoint(EXACT["LSTM"]),
    "encoder in a checkpoint": lambda: through_checkpoint(EXACT["encoder"]),
}
DROPPED = {
    "LSTM, dropout": lambda: recurrent(nn.LSTM, num_layers=3, dropout=0.4, batch_first=True),
    "LSTM, dropout, both ways": lambda: recurrent(
        nn.LSTM, num_layers=2, dropout=0.4, bidirectional=True
    ),
    "GRU, dropout": lambda: recurrent(nn.GRU, num_layers=2, dropout=0.4, bidirectional=True),
    "RNN, dropout": lambda: recurrent(nn.RNN, num_layers=2, dropout=0.4, batch_first=True),
    "attention, dropout": lambda: attention(dropout=0.4, batch_first=True),
    "attention, dropout, no weights": lambda: attention(
        lambda body, x: body(x, x, x, need_weights=False)[0].sum(1), dropout=0.4, batch_first=True
    ),
    "encoder, dropout": lambda: encoder(batch_first=True, dropout=0.2),
    "encoder, dropout, time first": lambda: encoder(dropout=0.2),
    "decoder, dropout": lambda: decoder(dropout=0.2),
    "LSTM, dropout, in a checkpoint": lambda: through_checkpoint(DROPPED["LSTM, dropout"]),
    "encoder, dropout, in a checkpoint": lambda: through_checkpoint(DROPPED["encoder, dropout"]),
}
MODELS = EXACT | DROPPED


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    for p in model.parameters():  # biases that are zero at first would hide behind each other
        nn.init.uniform_(p, -0.8, 0.8)
    return model, torch.randn(N, T, 4, dtype=dtype)


def block_of(layer, grads):
    """The layer's block of gradients of its parameters."""
    rows = [slice(None) if r is None else r for r in (layer.rows, layer.bias_rows)]
    weight = layer.rule.layout(layer.module, grads[0][rows[0]])
    return factors.join(layer.spec, weight, *(b[rows[1]] for b in grads[1:]))


def loss(model, x, labels=LABELS, reduction="mean"):
    return functional.cross_entropy(model(x), labels[: len(x)], reduction=reduction)


def trained(model, optimizer, x, steps=1):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, x)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


class Kernels(TorchFunctionMode):
    """Names of the functions of torch that are called with parameters."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_function__(self, function, _, args=(), kwargs=None):
        given = leaves([*args, *(kwargs or {}).values()])
        if any(isinstance(t, nn.Parameter) for t in given):
            self.called.add(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EXACT)
def test_records_give_the_gradient_of_each_example(name):
    model, x = made(name)
    optimizer = KFAC(model, 0.1, fisher="empirical")
    seen = records_of(optimizer, lambda: loss(model, x).backward())
    optimizer.close()  # what follows is PyTorch's alone
    each = [
        torch.autograd.grad(loss(model, x[n : n + 1], LABELS[n:]), list(model.parameters()))
        for n in range(N)
    ]
    at = {p: k for k, p in enumerate(model.parameters())}
    for layer in optimizer.curvature.layers:
        parts = [factors.per_example_gradients(layer.spec, r) for r in seen[layer.spec.name]]
        want = [block_of(layer, [grads[at[p]] for p in layer.parameters]) for grads in each]
        assert_close(sum(parts)[0].numpy(), torch.stack(want).numpy(), size=100, scale=1.0)
    extra = {"body.bias_k", "body.bias_v"} & set(dict(model.named_parameters()))
    assert set(optimizer.curvature.uncovered) == extra


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_fisher_is_the_sum_over_labels(name):
    """F = sum_y p(y) grad grad^T, example by example, against all labels tried in turn."""
    model, x = made(name)
    optimizer = KFAC(model, 0.1, fisher="exact")
    seen = records_of(optimizer, lambda: model(x))
    optimizer.close()
    p = torch.softmax(model(x).detach(), dim=-1)
    at = {p: k for k, p in enumerate(model.parameters())}
    for layer in optimizer.curvature.layers:
        u = sum(factors.per_example_gradients(layer.spec, r) for r in seen[layer.spec.name])
        u = u.reshape(len(u), N, -1)
        got = torch.einsum("mni,mnj->nij", u, u)
        for n in range(N):
            want = torch.zeros_like(got[0])
            for label in range(3):
                if (n, label) not in at:
                    value = loss(model, x[n : n + 1], torch.tensor([label]))
                    at[n, label] = torch.autograd.grad(value, list(model.parameters()))
                grads = [at[n, label][at[q]] for q in layer.parameters]
                block = block_of(layer, grads).reshape(-1)
                want += p[n, label] * torch.outer(block, block)
            assert_close(got[n].numpy(), want.numpy(), size=100, kappa=10, scale=1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_a_recorded_pass_is_the_plain_one(name, dtype):
    """Outputs, gradients, random numbers drawn, and layout in memory."""
    model, x = made(name, getattr(torch, dtype))
    found = []
    for recorded in (False, True):
        optimizer = KFAC(model, 0.1, fisher="empirical") if recorded else None
        body = []
        model.body.register_forward_hook(lambda *given, seen=body: seen.append(given[2]))
        torch.manual_seed(1)
        outputs = model(x)
        after = torch.get_rng_state()
        functional.cross_entropy(outputs, LABELS).backward()
        grads = [p.grad for p in model.parameters()]
        model.zero_grad()
        tensors = [outputs.detach(), *grads, *leaves(body[0])]
        found.append((tensors, after))
    assert optimizer is not None
    (plain, before), (unrolled, after) = found
    assert torch.equal(before, after)
    for got, want in zip(unrolled, plain, strict=True):
        assert (got.dtype, got.stride()) == (want.dtype, want.stride())
        assert_close(got.detach(), want.detach(), dtype=dtype, size=100, scale=1.0)


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for part in tree for t in leaves(part)] if isinstance(tree, (tuple, list)) else []


class LinearLSTM(nn.Module):
    """Written by hand of two linear modules."""

    def __init__(self):
        super().__init__()
        self.ih, self.hh = nn.Linear(4, 20), nn.Linear(5, 20)

    def forward(self, x):
        h = c = x.new_zeros(len(x), 5)
        outputs = []
        for z in self.ih(x).unbind(1):
            i, f, g, o = (z + self.hh(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1)


OPTIMIZERS = {
    "kfac": lambda model, lr=0.1, **o: KFAC(model, lr, inverse_every=2, **o),
    "ekfac": lambda model, lr=0.1, **o: EKFAC(model, lr, inverse_every=2, **o),
    "sngd": lambda model, lr=0.1, **o: SNGD(model, lr, inverse_every=2, **o),
    "projective": lambda model, lr=0.1, **o: ProjectiveKFAC(model, lr, inverse_every=2, **o),
    "fngd": lambda model, lr=0.1, **o: FNGD(model, lr, batch_size=N, **o),
}


def twins(kind):
    """A fused module, the same of linear modules, and pairs of parameters' names."""
    if kind == "LSTM":
        fused = Net(nn.LSTM(4, 5, batch_first=True), 5, lambda body, x: body(x)[0].mean(1))
        plain = Net(LinearLSTM(), 5, lambda body, x: body(x).mean(1))
        pairs = {
            f"{p}_{part}_l0": f"{part}.{p}" for part in ("ih", "hh") for p in ("weight", "bias")
        }
        return fused, plain, pairs
    source = torch.tanh if kind == "crossed" else lambda x: x

    def run(body, x):
        memory = x if kind == "attention" else source(x)
        return body(x, memory, memory)[0].mean(1)

    fused = Net(nn.MultiheadAttention(4, 2, batch_first=True), 4, run)
    plain = Net(ByHand(), 4, lambda body, x: body(x, source(x)).mean(1))
    return fused, plain, {f"out_proj.{p}": f"out_proj.{p}" for p in ("weight", "bias")}


@pytest.mark.parametrize("kind", ["LSTM", "attention", "crossed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_same_network_of_linear_modules(name, kind):
    torch.manual_seed(0)
    fused, plain, pairs = (part.double() if isinstance(part, Net) else part for part in twins(kind))
    ours, theirs = (dict(net.body.named_parameters()) for net in (fused, plain))
    packed = [f"{p}_proj" for p in "qkv"]

    def same():
        found = [(ours[a], theirs[b]) for a, b in pairs.items()]
        if kind != "LSTM":
            for p in ("weight", "bias"):
                joined = torch.cat([theirs[f"{part}.{p}"] for part in packed])
                found.append((ours[f"in_proj_{p}"], joined))
        return [*found, *zip(fused.head.parameters(), plain.head.parameters(), strict=True)]

    with torch.no_grad():
        for p in plain.parameters():
            p.uniform_(-0.8, 0.8)
        for a, b in same():
            a.copy_(b)
    x = torch.randn(N, T, 4, dtype=torch.float64)
    options = {} if name == "fngd" else {"fisher": "exact"}
    # three classes leave null directions, in which EKFAC's basis is any: one statistic is unique
    options["factor_every"] = 10 if name == "ekfac" else 2
    for net in (fused, plain):
        trained(net, OPTIMIZERS[name](net, **options), x, steps=5)
    for a, b in same():
        assert_close(a.detach().numpy(), b.detach().numpy(), size=100, kappa=1e5)


@pytest.mark.parametrize("body", ["LSTM, deep and both ways", "encoder, time first"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_lowers_the_loss(name, body):
    torch.manual_seed(0)
    model, x = MODELS[body](), torch.randn(N, T, 4)
    optimizer = OPTIMIZERS[name](model, 0.02, factor_every=2, momentum=0.5)
    losses = trained(model, optimizer, x, steps=12)
    assert losses[-1] < 0.8 * losses[0]
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("name", ["LSTM, deep and both ways", "GRU cell", "encoder"])
def test_kernels_are_replaced_at_recorded_passes_alone(name):
    """Everywhere else the outputs are the module's own, bit by bit."""
    model, x = made(name)
    plain = copy.deepcopy(model)
    optimizer = KFAC(model, 0.1, factor_every=2)
    kernels = {"lstm", "gru_cell", "multi_head_attention_forward"}

    def called(net=model):
        with Kernels() as seen:
            outputs = net(x)
        return kernels & seen.called, outputs

    def twin():
        return called(plain)[1]

    assert not called()[0]
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain.eval()(x))
    model.train()
    plain.train()
    trained(model, optimizer, x)
    plain.load_state_dict(model.state_dict())
    replaced, outputs = called()
    assert replaced
    assert torch.equal(outputs, twin())
    trained(model, optimizer, x)
    assert not called()[0]


def test_copies_and_closing():
    model, x = made("LSTM")
    keys = list(model.state_dict())
    with KFAC(model, 0.1) as optimizer:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.body.weight_hh_l0 += 1
            assert_far(twin(x), model(x), least=0.01)
        both = copy.deepcopy({"model": model, "optimizer": optimizer})
        trained(both["model"], both["optimizer"], x, steps=2)
        kept = flat(model).clone()
        trained(model, optimizer, x, steps=2)
        assert_far(flat(model), kept, least=1e-4)
        assert torch.equal(flat(model), flat(both["model"]))
        assert list(model.state_dict()) == keys
        both["optimizer"].close()
        weights = {float(s.weight) for s in optimizer.curvature.state.layers.values()}
        assert weights == {N}
    for net in (model, both["model"]):
        assert "forward" not in net.body.__dict__
        assert not any(key.startswith("_ngd") for key in net.body.__dict__)


@pytest.mark.parametrize("first", [0, 1])
def test_two_optimizers_on_one_model(first):
    model, x = made("LSTM")
    pair = [NaturalGradient(model, ngd_core.KFAC(), 0.1, fisher="empirical") for _ in range(2)]
    loss(model, x).backward()
    for optimizer in pair:
        assert {float(s.weight) for s in optimizer.curvature.state.layers.values()} == {N}
    pair[first].close()
    other = pair[1 - first]
    other.curvature.steps = 10
    loss(model, x).backward()
    weights = {float(s.weight) for s in other.curvature.state.layers.values()}
    assert min(weights) > N
    assert {float(s.weight) for s in pair[first].curvature.state.layers.values()} == {N}
    other.close()
    assert "forward" not in model.body.__dict__


def test_a_module_with_a_forward_of_its_own_is_left_alone():
    model, x = made("LSTM")
    own = model.body.__dict__["forward"] = lambda x: nn.LSTM.forward(model.body, 2 * x)
    with (
        KFAC(model, 0.1) as optimizer,
        pytest.warns(UserWarning, match=r"came through 'body\.hh_l0', 'body\.ih_l0', so there"),
    ):
        trained(model, optimizer, x)
    assert model.body.__dict__["forward"] is own


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_an_interruption(error):
    model, x = made("encoder")

    def stop(*_):
        raise error

    optimizer = KFAC(model, 0.1)
    handle = model.body.layers[1].self_attn.out_proj.register_forward_hook(stop)
    inner = functional.scaled_dot_product_attention
    try:
        functional.scaled_dot_product_attention = stop
        with pytest.raises(error):
            model(x)
    finally:
        functional.scaled_dot_product_attention = inner
        handle.remove()
    assert not torch.overrides._get_current_function_mode_stack()
    trained(model, optimizer, x, steps=2)
    assert {stats["code"] for stats in optimizer.stats.values()} == {0}


@pytest.mark.parametrize("drop", ["optimizer", "model"])
def test_nothing_keeps_a_dropped_model_alive(drop):
    model, x = made("LSTM")
    optimizer = KFAC(model, 0.1)
    trained(model, optimizer, x)
    dead = weakref.ref(optimizer.curvature if drop == "optimizer" else model.head)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        if drop == "model":
            del model
        assert dead() is None
    finally:
        gc.enable()


def test_recomputed_after_a_pass_without_gradients():
    model, x = made("LSTM in a checkpoint")
    plain, _ = made("LSTM in a checkpoint")
    optimizer = KFAC(model, 0.1)
    value = loss(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    value.backward()
    loss(plain, x).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, size=100, scale=1.0)
    assert {float(s.weight) for s in optimizer.curvature.state.layers.values()} == {N}


def test_recomputed_in_the_older_way():
    """A reentrant checkpoint: its first pass has no gradients, so it leaves no record."""
    model, x = made("LSTM")
    plain = copy.deepcopy(model)
    inner = model.run
    model.run = lambda body, x: checkpoint(inner, body, x, use_reentrant=True)
    optimizer = KFAC(model, 0.1, fisher="empirical")
    x = x.requires_grad_()
    loss(model, x).backward()
    loss(plain, x).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(p.grad, q.grad, size=100, scale=1.0)
    with pytest.warns(UserWarning, match="came through 'body.hh_l0', 'body.ih_l0', so there"):
        optimizer.step()


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize(
    "name", ["LSTM, deep and both ways", "GRU", "LSTM cell", "encoder, dropout", "attention"]
)
def test_autocast(name, fisher):
    """The dtypes and, to bfloat16's rounding, the outputs of a plain pass."""
    model, x = made(name, torch.float32)
    optimizer = KFAC(model, 0.1, fisher=fisher)
    seen = []
    model.body.register_forward_hook(lambda *given: seen.extend(leaves(given[2])))
    for recorded in (True, False):
        optimizer.curvature.steps = 0 if recorded else 1
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        optimizer.zero_grad()
        functional.cross_entropy(outputs.float(), LABELS).backward()
        if recorded:
            kept = {p: p.grad.clone() for p in model.parameters()}
    for got, want in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        assert got.dtype == want.dtype
        assert (got - want).abs().max() < 0.1
    for p, grad in kept.items():
        assert (grad - p.grad).norm() < 0.1 * p.grad.norm() + 1e-2
    optimizer.curvature.steps = 0
    optimizer.step()
    assert {stats["code"] for stats in optimizer.stats.values()} == {0}
    assert torch.isfinite(flat(model)).all()


# torch's own compiler looks at .grad where a graph goes on behind a hook
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["LSTM", "encoder"])
def test_a_compiled_model_takes_the_steps_of_the_plain_one(name, when):
    torch._dynamo.reset()
    plain, x = made(name)
    model = copy.deepcopy(plain)
    options = {"fisher": "exact", "factor_every": 2}
    optimizer = KFAC(model, 0.1, **options) if when == "after" else None
    compiled = torch.compile(model, backend="eager")
    optimizer = optimizer or KFAC(model, 0.1, **options)
    trained(compiled, optimizer, x, steps=3)
    trained(plain, KFAC(plain, 0.1, **options), x, steps=3)
    assert_close(flat(model).numpy(), flat(plain).numpy(), size=100, kappa=1e4)


def test_a_model_that_is_such_a_module():
    torch.manual_seed(0)
    model = nn.GRU(4, 3, batch_first=True).double()
    x = torch.randn(N, T, 4, dtype=torch.float64)
    optimizer = KFAC(model, 0.1, fisher="exact", class_axis=-1, examples="rows")
    assert list(optimizer.report().layers) == ["ih_l0", "hh_l0"]
    model(x)
    assert {float(s.weight) for s in optimizer.curvature.state.layers.values()} == {N}


def test_windows_folded_into_the_examples():
    """Each example is several short sequences."""
    model, x = made("LSTM")
    inner = model.run
    model.run = lambda body, x: inner(body, x.reshape(-1, 2, 4)).reshape(len(x), 3, -1).sum(1)
    optimizer = KFAC(model, 0.1, fisher="empirical")
    seen = records_of(optimizer, lambda: loss(model, x).backward())
    assert [tuple(use.a.shape) for use in seen["body.ih_l0"]] == [(N, 3, 2, 4)]
    got = factors.per_example_gradients(
        optimizer.curvature.by_name["body.hh_l0"].spec, *seen["body.hh_l0"]
    )
    weight = (model.body.weight_hh_l0, model.body.bias_hh_l0)
    for n in range(N):
        grads = torch.autograd.grad(loss(model, x[n : n + 1], LABELS[n:]), weight)
        want = torch.cat([grads[0], grads[1][:, None]], 1)
        assert_close(got[0, n].numpy(), want.numpy(), size=100, scale=1.0)


def test_a_packed_sequence_follows_the_gradient():
    torch.manual_seed(0)
    packed = rnn.pack_sequence([torch.randn(n, 4) for n in (5, 3, 2)])
    model = Net(nn.LSTM(4, 5), 5, lambda body, x: body(x)[1][0][0])
    optimizer = KFAC(model, 0.1, momentum=0.0, kl_clip=None)
    before = model.body.weight_hh_l0.detach().clone()
    functional.cross_entropy(model(packed), LABELS).backward()
    with pytest.warns(UserWarning, match="a PackedSequence is not looked at"):
        optimizer.step()
    want = before - 0.1 * model.body.weight_hh_l0.grad
    assert_close(model.body.weight_hh_l0.detach(), want, dtype="float32")


@pytest.mark.parametrize("kind", ["LSTM", "attention"])
def test_a_sequence_without_a_batch_is_refused(kind):
    torch.manual_seed(0)
    if kind == "LSTM":
        model = Net(nn.LSTM(4, 5), 5, lambda body, x: body(x)[0])
    else:
        model = Net(nn.MultiheadAttention(4, 2), 4, lambda body, x: body(x, x, x)[0])
    optimizer = KFAC(model, 0.1)
    assert len(optimizer.curvature.layers) > 2
    with pytest.raises(ValueError, match="saw 1 rows where the model's output has 5 examples"):
        model(torch.randn(5, 4))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.MultiheadAttention])
def test_outputs_with_time_first_are_refused(kind):
    """Four examples of two times: the axes could be mistaken for each other without an error."""

    def run(body, x):
        return (body(x) if kind is nn.LSTM else body(query=x, key=x, value=x))[0]

    torch.manual_seed(0)
    model, x = Net(kind(4, 4), 4, run), torch.randn(2, 4, 4)
    optimizer = KFAC(model, 0.1, class_axis=-1, examples="rows")
    with pytest.raises(ValueError, match="time first like the input of its recurrent or"):
        model(x)
    model.run = lambda body, x: run(body, x).transpose(0, 1)
    model(x)
    assert {float(s.weight) for s in optimizer.curvature.state.layers.values()} == {4}
    model(x.transpose(0, 1))  # the next pass is judged by itself


def test_the_report_names_rows():
    model, _ = made("attention, further keys")
    report = KFAC(model, 0.1).report()
    assert list(report.layers) == [
        *(f"body.{part}_proj" for part in ("q", "k", "v", "out")),
        "head",
    ]
    assert report.layers["body.k_proj"]["parameters"] == [
        "body.in_proj_weight[4:8]",
        "body.in_proj_bias[4:8]",
    ]
    assert set(report.uncovered) == {"body.bias_k", "body.bias_v"}
    model, _ = made("LSTM, projected")
    names = [f"body.{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh", "hr")]
    assert list(KFAC(model, 0.1).report().layers) == [*names, "head"]


def test_local_fisher_layers_leave_such_modules_out():
    """They go in front of calls, and no call shows these weights."""
    for name, kind in (("LSTM", "LSTM"), ("attention", "MultiheadAttention")):
        model, x = made(name)
        new = reconstruct(model)
        reasons = left_out(new)
        assert set(reasons) == {f"body.{part}" for part, _ in model.body.named_parameters()}
        assert all(why.startswith(f"{kind} reads its weight") for why in reasons.values())
        assert_close(new(x).detach(), model(x).detach(), size=100)


def test_what_is_frozen_stays():
    model, x = made("encoder")
    attention = model.body.layers[0].self_attn
    attention.in_proj_weight.requires_grad_(False)
    model.body.layers[1].self_attn.in_proj_bias.requires_grad_(False)
    kept = [attention.in_proj_weight, model.body.layers[1].self_attn.in_proj_bias]
    before = [p.clone() for p in kept]
    optimizer = KFAC(model, 0.1)
    specs = {layer.spec.name: layer.spec for layer in optimizer.curvature.layers}
    assert "body.layers.0.self_attn.q_proj" not in specs
    assert specs["body.layers.0.self_attn.out_proj"].bias
    assert not specs["body.layers.1.self_attn.k_proj"].bias
    trained(model, optimizer, x, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    model, x = made("GRU")
    model.body.requires_grad_(False)
    optimizer = KFAC(model, 0.1)
    assert [layer.spec.name for layer in optimizer.curvature.layers] == ["head"]
    trained(model, optimizer, x, steps=2)
    assert "forward" not in model.body.__dict__
