"""Factors have a dtype of their own, whatever dtypes parameters and passes have."""

import copy

import pytest
import torch
from ngd_torch import EKFAC, KFAC, SNGD, ProjectiveKFAC
from torch import nn
from torch.nn import functional

from ngd_core.testing import assert_close

N = 8
LABELS = torch.arange(N) % 3
KINDS = {"kfac": KFAC, "ekfac": EKFAC, "sngd": SNGD, "projective": ProjectiveKFAC}


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(N, 4)


def moment(x):
    """Second moment of the rows ``[x; 1]`` in float64."""
    x = torch.cat([x.double(), torch.ones(len(x), 1).double()], dim=1)
    return x.T @ x / len(x)


def states(optimizer):
    return list(optimizer.curvature.state.layers.values())


def floats(state):
    return {x.dtype for x in torch.utils._pytree.tree_leaves(state) if x.is_floating_point()}


@pytest.mark.parametrize("kind", KINDS)
def test_factors_in_float64_of_a_model_in_float32(kind):
    """All that is kept is in float64, through steps and a change of the model's dtype."""
    model, x = made()
    optimizer = KINDS[kind](model, 0.1, factor_every=1, inverse_every=1, factor_dtype="float64")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model.to(dtype)
        optimizer.zero_grad()
        optimizer.state.clear()
        functional.cross_entropy(model(x.to(dtype)).float(), LABELS).backward()
        optimizer.step()
        assert floats(optimizer.curvature.state.layers) == {torch.float64}
        assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("model_dtype", "factor_dtype", "kept"),
    [
        (torch.float32, "float64", torch.float64),
        (torch.bfloat16, "float64", torch.float64),
        (torch.float64, "float32", torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
    ],
)
def test_a_factor_has_the_precision_of_its_dtype(model_dtype, factor_dtype, kept):
    """The first input factor against that of the same numbers in float64."""
    model, x = made()
    model, x = model.to(model_dtype), x.to(model_dtype)
    optimizer = KFAC(model, 0.1, factor_dtype=factor_dtype)
    model(x)
    state = states(optimizer)[0]
    assert state.a.dtype == kept
    assert_close(state.a, moment(x), dtype=str(kept).removeprefix("torch."), size=N)


def test_factors_in_float64_are_those_of_the_model_in_float64():
    model, x = made()
    twin = copy.deepcopy(model).double()
    got = KFAC(model, 0.1, fisher="exact", factor_dtype="float64")
    want = KFAC(twin, 0.1, fisher="exact")
    model(x)
    twin(x.double())
    for one, other in zip(states(got), states(want), strict=True):
        assert_close(one.a, other.a, dtype="float32", size=N)
        assert_close(one.g, other.g, dtype="float32", size=N)


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_factor_or_direction_is_computed_under_autocast(dtype, fisher):
    """All in one block of autocast, the step too: input factors keep float32's precision."""
    model, x = made()
    inputs = []
    model[2].register_forward_hook(lambda *args: inputs.append(args[1][0].detach()))
    optimizer = KFAC(model, 0.1, fisher=fisher, kl_clip=None, momentum=0.0)
    twin = copy.deepcopy({"model": model, "optimizer": optimizer})
    with torch.autocast("cpu", dtype):
        functional.cross_entropy(model(x), LABELS).backward()
    for state, a in zip(states(optimizer), (x, inputs[0]), strict=True):
        assert_close(state.a, moment(a), dtype="float32", size=N)
        assert floats(state) == {torch.float32}
    twin["optimizer"].load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), twin["model"].parameters(), strict=True):
        q.grad = p.grad.clone()
    with torch.autocast("cpu", dtype):
        optimizer.step()
    twin["optimizer"].step()
    for p, q in zip(model.parameters(), twin["model"].parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_extra_pass_is_not_under_autocast():
    """A model that computes in float32 within a block of autocast has float32's gradients."""

    class Own(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.body(x)

    body, x = made()
    model = Own(body)
    got = KFAC(model, 0.1, fisher="exact")
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    got.close()
    want = KFAC(body, 0.1, fisher="exact")
    body(x)
    for one, other in zip(states(got), states(want), strict=True):
        assert_close(one.g, other.g, dtype="float32", size=N)


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_gradient_scaler(dtype, fisher):
    """The same factors with a scaled loss as with the loss itself, and steps that are finite."""
    found = []
    for size in (2.0**10, 1.0):
        model, x = made()
        scaler = torch.amp.GradScaler("cpu", init_scale=size)
        optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1, loss_scale=scaler.get_scale)
        for _ in range(3):
            with torch.autocast("cpu", dtype):
                loss = functional.cross_entropy(model(x).float(), LABELS)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(states(optimizer))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert {stats["code"] for stats in optimizer.stats.values()} == {0}
    name = str(dtype).removeprefix("torch.")
    for one, other in zip(*found, strict=True):
        assert_close(one.a, other.a, dtype=name)
        assert_close(one.g, other.g, dtype=name)


def test_labels_are_sampled_in_float32_for_outputs_in_half_precision():
    """In bfloat16 the sum over 1,000 alike probabilities ends far from 1, at a few labels."""
    model = nn.Sequential(nn.Linear(1, 1000, bias=False)).to(torch.bfloat16)
    nn.init.zeros_(model[0].weight)
    optimizer = KFAC(model, 0.1)
    seen = []
    optimizer.curvature.deliver = lambda found: seen.append(found["0"][0].g)
    model(torch.ones(2000, 1, dtype=torch.bfloat16))
    labels = seen[0][0].argmin(dim=-1)
    assert len(labels.unique()) > 700  # 1000 (1 - 1 / e^2) = 865 are expected


def test_a_norm_in_half_precision_is_looked_at_in_float32():
    """What it normalises is the input, which half precision has rounded once already."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).to(torch.bfloat16)
    x = torch.randn(N, 4).to(torch.bfloat16)
    optimizer = KFAC(model, 0.1)
    seen = {}
    optimizer.curvature.deliver = seen.update
    model(x)
    assert_close(seen["0"][0].a, functional.layer_norm(x.float(), (4,)), dtype="float32", size=4)
