"""Steps leave no tensor behind, and closed optimizers no hook."""

import gc
import weakref

import ngd_torch
import pytest
import torch
from ngd_torch._passes import Place
from torch import nn
from torch.nn import functional

import ngd_core

N, STEPS = 4, 100
OFTEN = {"factor_every": 2, "inverse_every": 3}


class Fronted:
    """A preconditioner and the optimizer behind it."""

    def __init__(self, model):
        self.front = ngd_torch.Preconditioner(model, ngd_core.KFAC(), **OFTEN)
        self.adam = torch.optim.Adam(model.parameters())

    def zero_grad(self):
        self.adam.zero_grad()

    def step(self):
        self.front.step()
        self.adam.step()

    def close(self):
        self.front.close()


def weighing(model):
    """FNGD behind its first epoch."""
    optimizer = ngd_torch.FNGD(model, 0.01, batch_size=N, weighted_backward=True)
    optimizer.epoch_end()
    return optimizer


MAKERS = {
    "KFAC": lambda m: ngd_torch.KFAC(m, 0.01, **OFTEN),
    "KFAC empirical": lambda m: ngd_torch.KFAC(m, 0.01, fisher="empirical", **OFTEN),
    "KFAC exact": lambda m: ngd_torch.KFAC(m, 0.01, fisher="exact", damping_split="exact", **OFTEN),
    "EKFAC": lambda m: ngd_torch.EKFAC(m, 0.01, **OFTEN),
    "SNGD": lambda m: ngd_torch.SNGD(m, 0.01, **OFTEN),
    "FNGD": lambda m: ngd_torch.FNGD(m, 0.01, batch_size=N),
    "FNGD weighted": weighing,
    "ProjectiveKFAC": lambda m: ngd_torch.ProjectiveKFAC(m, 0.01, **OFTEN),
    "SOFIM": lambda m: ngd_torch.SOFIM(m, 0.01, rho=1.0),
    "Preconditioner": Fronted,
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.PReLU(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def stepped(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(torch.randn(N, 1, 3, 3)), torch.arange(N) % 3)
        loss.backward()
        optimizer.step()


def alive():
    """Number of tensors, and bytes of their storages, that Python can reach."""
    while gc.collect():
        pass
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.parametrize("name", MAKERS)
def test_steps_leave_nothing_behind(name):
    """As many tensors and bytes after many steps as after few; passes without a step, too."""
    model = network()
    optimizer = MAKERS[name](model)
    stepped(model, optimizer, 24)
    before = alive()
    stepped(model, optimizer, STEPS)
    if not name.startswith("FNGD"):  # which takes one batch a step
        for _ in range(24):
            functional.cross_entropy(model(torch.randn(N, 1, 3, 3)), torch.arange(N) % 3).backward()
        stepped(model, optimizer, 1)
    after = alive()
    assert after[0] <= before[0]
    assert after[1] <= before[1]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "SOFIM"])
def test_no_use_of_a_layer_outlives_its_step(name):
    """Not even until garbage is collected: a hook in a graph and what knows the graph need not go.

    Python cannot collect such a circle where two paths of the graph meet, as in a residual net.
    """
    model = network()
    optimizer = MAKERS[name](model)
    gc.collect()
    gc.disable()
    try:
        stepped(model, optimizer, 2)
        with pytest.raises(RuntimeError, match="shape"):
            model(torch.randn(N, 1, 4, 4))  # breaks off behind the first layer
        if name == "FNGD":
            optimizer.epoch_end()
        stepped(model, optimizer, 5)
        left = [x for x in gc.get_objects() if type(x) is Place]
    finally:
        gc.enable()
    assert not left


def hooks(model):
    """All that hangs on modules and parameters."""
    found = []
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found += getattr(module, kind).values()
    for p in model.parameters():
        found += (p._backward_hooks or {}).values()
        found += (getattr(p, "_post_accumulate_grad_hooks", None) or {}).values()
    return found


@pytest.mark.parametrize("how", ["closed", "dropped"])
@pytest.mark.parametrize("name", MAKERS)
def test_fifty_optimizers_leave_no_hook(name, how):
    """Those that are dropped without `close` leave hooks that do nothing and hold nothing."""
    model, made = network(), []
    for k in range(50):
        optimizer = MAKERS[name](model)
        made.append(weakref.ref(getattr(optimizer, "curvature", optimizer)))
        if k % 10 == 0:
            stepped(model, optimizer, 1)
        if how == "closed" and hasattr(optimizer, "close"):
            optimizer.close()
    del optimizer
    if how == "closed":
        assert hooks(model) == []
    assert not any(dead() for dead in made)
