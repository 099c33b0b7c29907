"""The ReLU metric on modules: outputs as they were before anything changed them in place."""

import numpy as np
import pytest
import torch
from ngd_torch import SNGD, NaturalGradient
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N, EPS = 4, 0.1


class Twice(nn.Module):
    """One layer used twice, on different numbers of positions."""

    def __init__(self, layer, shorter):
        super().__init__()
        self.layer, self.shorter, self.head = layer, shorter, nn.LazyLinear(3)

    def forward(self, x):
        once = functional.relu_(self.layer(x))
        again = functional.relu(self.layer(self.shorter(once)))
        return self.head(torch.cat([once.flatten(1), again.flatten(1)], 1))


def dense(inplace):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3))


def conv(inplace, layer=nn.Conv2d, **options):
    layer = layer(2, 4, 2, stride=(2, 1), groups=2, **options)
    return nn.Sequential(layer, nn.ReLU(inplace), nn.Flatten(), nn.LazyLinear(3))


CASES = {
    "dense": (lambda: dense(False), (4,)),
    "dense, in place": (lambda: dense(True), (4,)),
    "sequence, in place": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(True), nn.Flatten(), nn.Linear(15, 3)),
        (3, 4),
    ),
    "conv": (lambda: conv(False), (2, 4, 3)),
    "conv, in place": (lambda: conv(True, padding=1), (2, 4, 3)),
    "transposed": (lambda: conv(True, nn.ConvTranspose2d), (2, 3, 2)),
    "dense twice": (lambda: Twice(nn.Linear(4, 4), lambda h: h[:, :2]), (3, 4)),
    "conv twice": (lambda: Twice(nn.Conv2d(2, 2, 2), lambda h: h[..., :2]), (2, 4, 4)),
}


def made(name):
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, x = make().double(), torch.randn(N, *shape, dtype=torch.float64)
    model(x)
    return model, x, torch.tensor([0, 2, 1, 1])


def rows_of(layer, x):
    """Inputs and outputs of a use, a row for each position, made without the adapter."""
    with torch.no_grad():
        z = layer(x)
    if isinstance(layer, nn.Linear):
        return [x.flatten(0, -2)], [z.flatten(0, -2)]
    o = layer.out_channels // layer.groups
    zs = [part.flatten(2).mT.flatten(0, 1) for part in z.split(o, 1)]
    rows = []
    for part in x.chunk(layer.groups, 1):
        # what the kernel reads is the derivative of one output with respect to the weight
        probe = type(layer)(
            part.shape[1],
            1,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            bias=False,
            dtype=torch.float64,
        )
        out = probe(part)
        rows.append(
            torch.stack(
                [
                    torch.autograd.grad(v, probe.weight, retain_graph=True)[0].flatten()
                    for v in out.flatten(2).mT.flatten()
                ]
            )
        )
    return rows, zs


def wanted(layer, uses, grads):
    """Directions by loops over outputs and a dense solve each."""
    every = [rows_of(layer, x) for x in uses]
    groups = len(every[0][0])
    found = []
    for j, g in enumerate(block(layer, grads[layer.weight], grads[layer.bias])):
        k, at = divmod(j, len(layer.bias) // groups)
        x = torch.cat([rows[k] for rows, _ in every])
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        z = torch.cat([zs[k][:, at] for _, zs in every])
        fisher = (torch.sigmoid(z)[:, None] ** 2 * x).mT @ x / len(x)
        damped = fisher + EPS * torch.eye(len(fisher), dtype=fisher.dtype)
        found.append(torch.linalg.solve(damped, g))
    return torch.stack(found)


def block(layer, weight, bias):
    """A row for each output; a transposed weight is (in, out / groups, taps)."""
    if isinstance(layer, nn.ConvTranspose2d):
        groups = layer.groups
        i = weight.shape[0] // groups
        weight = weight.reshape(groups, i, -1, *layer.kernel_size).transpose(1, 2)
    rows = len(bias)
    return torch.cat([weight.reshape(rows, -1), bias[:, None]], 1)


@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
@pytest.mark.parametrize("name", CASES)
def test_directions_are_those_of_the_metric_by_loops(name, chunk_bytes):
    model, x, y = made(name)
    layer = model.layer if isinstance(model, Twice) else model[0]
    uses = [x]
    if isinstance(model, Twice):
        with torch.no_grad():
            uses.append(model.shorter(torch.relu(layer(x))))
    optimizer = SNGD(
        model,
        0.1,
        metric="relu",
        damping=EPS,
        damping_mode="absolute",
        momentum=0.0,
        kl_clip=None,
        chunk_bytes=chunk_bytes,
    )
    before = [p.detach().clone() for p in layer.parameters()]
    functional.cross_entropy(model(x), y).backward()
    grads = {p: p.grad.clone() for p in layer.parameters()}
    with torch.random.fork_rng():
        want = wanted(layer, uses, grads)
    optimizer.step()
    moved = [(b - p.detach()) / 0.1 for b, p in zip(before, layer.parameters(), strict=True)]
    assert_close(block(layer, *moved).numpy(), want.numpy(), size=100, kappa=1e3)


def test_a_layer_told_to_be_linear_is():
    """And all directions are those of the core, called by hand."""
    model, x, y = made("dense, in place")
    method = ngd_core.SNGD(metric="relu", linear_layers=("2",), damping_mode="absolute")
    optimizer = NaturalGradient(model, method, 0.1, damping=EPS, momentum=0.0, fisher="empirical")
    layers = {layer.spec: layer for layer in optimizer.curvature.layers}
    z = functional.linear(x, model[0].weight, model[0].bias).detach()
    inputs = {"0": x, "2": torch.relu(z)}
    functional.cross_entropy(model(x), y).backward()
    records = {
        spec: ngd_core.LayerRecord(
            inputs[spec.name].numpy(),
            np.zeros((N, spec.out_features)),
            z.numpy() if spec.name == "0" else None,
        )
        for spec in layers
    }
    hyper = ngd_core.Hyper(damping=EPS, decay=0.95)
    state = method.init(list(layers), np.zeros(()))
    state, _ = method.refresh(method.accumulate(state, records, hyper), hyper)
    blocks = {spec: layer.block().numpy() for spec, layer in layers.items()}
    want, _ = method.direction(state, blocks, {}, hyper)
    got = optimizer.curvature.directions()
    for spec, layer in layers.items():
        mine = torch.cat([got[layer.weight], got[layer.bias][:, None]], 1)
        assert_close(mine.numpy(), want[spec], size=100, kappa=1e3)


def test_other_methods_keep_no_outputs():
    model, x, y = made("dense")
    optimizer, seen = SNGD(model, 0.1), []
    deliver = optimizer.curvature.deliver
    optimizer.curvature.deliver = lambda found: (seen.append(found), deliver(found))
    functional.cross_entropy(model(x), y).backward()
    assert len(seen) == 2
    assert all(use.z is None for found in seen for uses in found.values() for use in uses)


def test_outputs_that_a_recurrent_module_does_not_show_are_refused():
    model = nn.RNN(3, 4, batch_first=True, nonlinearity="relu")

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = model, nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    whole = Last()
    optimizer = SNGD(whole, 0.1, metric="relu")
    with pytest.raises(ValueError, match=r"'rnn\.hh_l0'.*linear_layers"):
        whole(torch.randn(N, 5, 3))
    optimizer.close()
    names = ("rnn.ih_l0", "rnn.hh_l0")
    method = ngd_core.SNGD(metric="relu", linear_layers=names)
    optimizer = NaturalGradient(whole, method, 0.1, fisher="empirical")
    functional.cross_entropy(whole(torch.randn(N, 5, 3)), torch.tensor([0, 2, 1, 1])).backward()
    optimizer.step()
    assert set(optimizer.stats) == {*names, "head"}
