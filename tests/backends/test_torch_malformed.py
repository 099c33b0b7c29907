"""Bad batches between good ones: nothing that is not finite gets into parameters or state."""

import copy

import ngd_torch
import numpy as np
import pytest
import torch
from harness import EXAMPLES, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N = 4
OFTEN = {"factor_every": 1, "inverse_every": 2, "damping": 0.1}
MAKERS = {
    "KFAC": lambda m: ngd_torch.KFAC(m, 0.05, **OFTEN),
    "KFAC empirical": lambda m: ngd_torch.KFAC(m, 0.05, fisher="empirical", **OFTEN),
    "EKFAC": lambda m: ngd_torch.EKFAC(m, 0.05, **OFTEN),
    "SNGD": lambda m: ngd_torch.SNGD(m, 0.05, **OFTEN),
    "FNGD": lambda m: ngd_torch.FNGD(m, 0.05, batch_size=N),
    "ProjectiveKFAC": lambda m: ngd_torch.ProjectiveKFAC(m, 0.05, **OFTEN),
    "SOFIM": lambda m: ngd_torch.SOFIM(m, 0.05, rho=1.0, weight_decay=0.1),
}
NAN, INF = float("nan"), float("inf")
KINDS = ("good", "bad", "refused", "short", "empty")
scenes = st.lists(st.tuples(st.sampled_from(KINDS), seeds), max_size=6)


class Network(nn.Module):
    """A convolution, a norm, parameters without curvature, one of them of a sparse gradient."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.PReLU()
        self.fc, self.table = nn.Linear(8, 3), nn.Embedding(5, 3, sparse=True)

    def forward(self, x):
        z = self.fc(self.act(self.norm(self.conv(x))).flatten(1))
        return z + self.table(torch.arange(len(x)) % 5)


def batch(r, n=N):
    x = r.standard_normal((n, 1, 3, 3), dtype=np.float32)
    return torch.asarray(x), torch.asarray(r.integers(0, 3, n))


def gradients(model, optimizer, x, y, factor=1.0):
    optimizer.zero_grad()
    loss = factor * functional.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def one_gradient(model, optimizer, r, value):
    """A single entry of a single gradient."""
    gradients(model, optimizer, *batch(r))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    grad = grads[r.integers(len(grads))]
    (grad._values() if grad.is_sparse else grad).view(-1)[0] = value


def poisoned(model, optimizer, r, value, rows):
    x, y = batch(r)
    x[:rows] = value
    gradients(model, optimizer, x, y)


BAD = {  # gradients that are not finite, or a step that would not be
    "NaN batch": lambda m, o, r: poisoned(m, o, r, NAN, N),
    "infinite batch": lambda m, o, r: poisoned(m, o, r, INF, N),
    "one NaN example": lambda m, o, r: poisoned(m, o, r, NAN, 1),
    "overflowed loss": lambda m, o, r: gradients(m, o, *batch(r), factor=INF),
    "loss is NaN": lambda m, o, r: gradients(m, o, *batch(r), factor=NAN),
    "an infinite gradient": lambda m, o, r: one_gradient(m, o, r, -INF),
    "a NaN gradient": lambda m, o, r: one_gradient(m, o, r, NAN),
    "rate is NaN": lambda m, o, r: rated(m, o, r, NAN),
    "rate is infinite": lambda m, o, r: rated(m, o, r, INF),
    "rate leads out": lambda m, o, r: rated(m, o, r, 1e300),
}
# what torch itself does not take, before or within the backward pass
REFUSED = {
    "integer inputs": lambda m, _, r: m(batch(r)[0].long()),
    "float labels": lambda m, o, r: gradients(m, o, batch(r)[0], torch.ones(N)),
    "label out of range": lambda m, o, r: gradients(m, o, batch(r)[0], torch.full((N,), 7)),
    "more labels": lambda m, o, r: gradients(m, o, batch(r)[0], batch(r, N + 1)[1]),
    "other width": lambda m, _, __: m(torch.ones(N, 1, 5, 5)),
    "other rank": lambda m, _, __: m(torch.ones(N)),
    "no graph": lambda m, _, r: m(batch(r)[0]).argmax(-1).float().sum().backward(),
    "twice backward": lambda m, o, r: gradients(m, o, *batch(r)).backward(),
}


def rated(model, optimizer, r, lr):
    gradients(model, optimizer, *batch(r))
    if hasattr(optimizer, "kl_clip"):
        optimizer.kl_clip = None  # which would save it
    for group in optimizer.param_groups:
        group["lr"] = lr


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors(value)


def whole(model, optimizer):
    """Copies of all parameters and of momentum."""
    momentum = [state[k] for state in optimizer.state.values() for k in sorted(state)]
    momentum += list(tensors(getattr(optimizer, "moments", ())))
    parts = [p.detach() for p in model.parameters()]
    return copy.deepcopy(parts), copy.deepcopy([m for m in momentum if m.is_floating_point()])


def assert_finite(model, optimizer):
    for x in (*model.parameters(), *tensors(optimizer.state_dict())):
        assert torch.isfinite(x).all()


def assert_equal(one, other):
    assert len(one) == len(other)
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def bad_step(model, optimizer, name, r):
    settings_before = [dict(group) for group in optimizer.param_groups]
    clip, skipped = getattr(optimizer, "kl_clip", None), optimizer.skipped
    before = whole(model, optimizer)
    BAD[name](model, optimizer, r)
    optimizer.step()
    after = whole(model, optimizer)
    assert_equal(after[0], before[0])
    if not (isinstance(optimizer, ngd_torch.SOFIM) and name.startswith("rate")):
        assert_equal(after[1], before[1] or [torch.zeros_like(x) for x in after[1]])
    assert optimizer.skipped == skipped + 1
    for group, old in zip(optimizer.param_groups, settings_before, strict=True):
        group.update(lr=old["lr"])
    if clip is not None:
        optimizer.kl_clip = clip


def good_step(model, optimizer, r, n=N):
    before = whole(model, optimizer)[0]
    x, y = batch(r, n)
    assert torch.isfinite(gradients(model, optimizer, x, y))
    skipped = optimizer.skipped
    optimizer.step()
    assert optimizer.skipped == skipped
    for p, old in zip(model.parameters(), before, strict=True):
        if p is not model.table.weight:  # rows that no token reads
            assert not torch.equal(p, old)


@pytest.mark.parametrize("name", MAKERS)
def test_bad_batches_leave_all_finite_and_the_next_good_one_trains(name):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(scenes, seeds)
    def check(scenes, seed):
        torch.manual_seed(seed)
        model = Network()
        optimizer = MAKERS[name](model)
        for kind, drawn in [*scenes, ("good", seed)]:
            r = np.random.default_rng(drawn)
            if kind == "bad":
                bad_step(model, optimizer, list(BAD)[r.integers(len(BAD))], r)
            elif kind == "refused":
                before = whole(model, optimizer)
                with pytest.raises((RuntimeError, IndexError, ValueError)):
                    REFUSED[list(REFUSED)[r.integers(len(REFUSED))]](model, optimizer, r)
                for one, other in zip(whole(model, optimizer), before, strict=True):
                    assert_equal(one, other)
            elif kind == "empty":  # its gradients are zero: momentum and decay go on
                gradients(model, optimizer, *batch(r, 0))
                optimizer.step()
            else:
                good_step(model, optimizer, r, N if kind == "good" else int(r.integers(1, N + 1)))
            assert_finite(model, optimizer)

    check()


@pytest.mark.parametrize("kind", [*BAD, *REFUSED])
@pytest.mark.parametrize("name", MAKERS)
def test_each_at_the_first_step(name, kind):
    """Then, as if nothing had been, the steps of an optimizer that saw the good batches alone."""
    torch.manual_seed(0)
    model = Network()
    twin = copy.deepcopy(model)
    optimizer, other = MAKERS[name](model), MAKERS[name](twin)
    if kind in BAD:
        bad_step(model, optimizer, kind, np.random.default_rng(0))
    else:
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            REFUSED[kind](model, optimizer, np.random.default_rng(0))
    assert_finite(model, optimizer)
    for k in range(3):
        good_step(model, optimizer, np.random.default_rng(k + 1))
        good_step(twin, other, np.random.default_rng(k + 1))
    assert_finite(model, optimizer)
    seen_by_none = kind in ("NaN batch", "infinite batch", "other rank")
    if seen_by_none and name in ("KFAC empirical", "SNGD", "SOFIM"):  # no labels are sampled
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(p.detach(), q.detach(), dtype="float32", size=100, kappa=100)


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_batch_comes_first(name):
    """Nobody is warned of layers that saw nothing: their gradients are zero."""
    torch.manual_seed(0)
    model = Network()
    optimizer = MAKERS[name](model)
    assert torch.isnan(gradients(model, optimizer, *batch(np.random.default_rng(0), 0)))
    optimizer.step()
    assert optimizer.skipped == 0
    good_step(model, optimizer, np.random.default_rng(1))
    assert_finite(model, optimizer)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("name", MAKERS)
def test_huge_and_tiny_inputs(name, scale):
    torch.manual_seed(0)
    model = Network()
    optimizer = MAKERS[name](model)
    x, y = batch(np.random.default_rng(0))
    for _ in range(2):
        gradients(model, optimizer, scale * x, y)
        optimizer.step()
        assert_finite(model, optimizer)


def test_stats_tell_the_layers_and_skipped_counts_the_steps():
    torch.manual_seed(0)
    model = Network()
    optimizer = MAKERS["KFAC"](model)
    for k, bad in enumerate((False, True, True, False)):
        gradients(model, optimizer, *batch(np.random.default_rng(k)))
        if bad:
            model.fc.bias.grad[1] = NAN
        optimizer.step()
        codes = {name: stats["code"] for name, stats in optimizer.stats.items()}
        assert codes == {"conv": 0, "norm": 0, "fc": 5 if bad else 0}
    assert optimizer.skipped == 2


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_that_a_gradient_scaler_leaves_out(name):
    """Also FNGD, of which the next batch is no second one in a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    optimizer = MAKERS[name](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k in range(4):
        x, y = batch(np.random.default_rng(k))
        optimizer.zero_grad(set_to_none=k % 2 == 0)
        before = whole(model, optimizer)
        factor = INF if k < 2 else 1.0
        scaler.scale(functional.cross_entropy(model(x), y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        same = torch.equal(whole(model, optimizer)[0][0], before[0][0])
        assert same == (k < 2)
        assert_finite(model, optimizer)
    assert scaler.get_scale() == 1.0
    assert optimizer.skipped == 0


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_preconditioner_leaves_what_is_not_finite_for_the_scaler_to_see(unscaled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    front = ngd_torch.Preconditioner(model, ngd_core.KFAC(), **OFTEN)
    adam = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k, factor in enumerate((INF, 1.0, NAN, 1.0)):
        x, y = batch(np.random.default_rng(k))
        adam.zero_grad()
        before = model[1].weight.detach().clone()
        scaler.scale(functional.cross_entropy(model(x), y) * factor).backward()
        if unscaled:
            scaler.unscale_(adam)
        front.step()
        scaler.step(adam)
        scaler.update()
        assert torch.equal(model[1].weight, before) == (factor != 1.0)
        assert torch.isfinite(model[1].weight).all()
    assert scaler.get_scale() == 1.0
    assert all(torch.isfinite(x).all() for x in tensors(front.state_dict()))


def test_a_batch_larger_than_fngd_was_told():
    torch.manual_seed(0)
    model = Network()
    optimizer = MAKERS["FNGD"](model)
    with pytest.raises(ValueError, match=r"^[^\n]*\.$"):
        gradients(model, optimizer, *batch(np.random.default_rng(0), N + 1))
    good_step(model, optimizer, np.random.default_rng(1))
    assert_finite(model, optimizer)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_without_inputs_follows_its_gradient():
    model = nn.ModuleDict({"none": nn.Linear(0, 3), "fc": nn.Linear(9, 3)})
    model.forward = lambda x: model["fc"](x.flatten(1)) + model["none"](x.new_zeros(len(x), 0))
    optimizer = ngd_torch.KFAC(model, 0.1)
    why = {"none.weight": "its weight is empty", "none.bias": "its weight is empty"}
    assert optimizer.report().uncovered == why
    before = model["none"].bias.detach().clone()
    gradients(model, optimizer, *batch(np.random.default_rng(0)))
    optimizer.step()
    assert_close(
        model["none"].bias.detach(), before - 0.1 * model["none"].bias.grad, dtype="float32"
    )


def test_layers_frozen_on_the_way_stay():
    torch.manual_seed(0)
    model = Network()
    optimizer = MAKERS["KFAC"](model)
    good_step(model, optimizer, np.random.default_rng(0))
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    for k in range(3):
        gradients(model, optimizer, *batch(np.random.default_rng(k)))
        optimizer.step()
    assert torch.equal(model.conv.weight, before)
    assert_finite(model, optimizer)


class Loss(nn.Module):
    """Gives its own loss, alone or beside the outputs."""

    def __init__(self, *, alone):
        super().__init__()
        self.fc, self.alone = nn.Linear(9, 3), alone

    def forward(self, x):
        z = self.fc(x.flatten(1))
        loss = functional.cross_entropy(z, torch.arange(len(x)) % 3)
        return loss if self.alone else {"loss": loss, "logits": z}


def test_a_model_that_gives_its_loss():
    x, _ = batch(np.random.default_rng(0))
    model = Loss(alone=False)
    with ngd_torch.KFAC(model, 0.1), pytest.raises(ValueError, match="is a scalar, without"):
        model(x)
    optimizer = ngd_torch.KFAC(model, 0.1, likelihood={"logits": "categorical"})
    model(x)["loss"].backward()
    optimizer.step()
    assert optimizer.stats["fc"]["code"] == 0


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda m: ngd_torch.KFAC(m.requires_grad_(False), 0.1), "unfreeze those"),
        (lambda m: ngd_torch.SOFIM(m.requires_grad_(False), 0.1, rho=1.0), "unfreeze those"),
        (
            lambda m: ngd_torch.Preconditioner(m.requires_grad_(False), ngd_core.KFAC()),
            "unfreeze those",
        ),
        (lambda m: ngd_torch.KFAC(m, INF), "lr is inf; expected a finite"),
        (lambda m: ngd_torch.SOFIM(m, NAN, rho=1.0), "lr is nan; expected a finite"),
        (lambda m: ngd_torch.KFAC(m, 0.1, weight_decay=INF), "weight_decay is inf"),
        (lambda m: ngd_torch.KFAC(m, 0.1, damping=-1.0), "damping is -1.0; expected a finite"),
        (lambda m: ngd_torch.KFAC(m, 0.1, damping=INF), "damping is inf; expected a finite"),
        (lambda m: ngd_torch.KFAC(m, 0.1, decay=1.5), "decay is 1.5; expected a number"),
        (lambda m: ngd_torch.KFAC(m, 0.1, decay=NAN), "decay is nan; expected a number"),
    ],
)
def test_what_can_be_told_at_construction_is(make, part):
    with pytest.raises(ValueError, match=r"^[^\n]*\.$") as raised:
        make(Network())
    assert part in str(raised.value)
