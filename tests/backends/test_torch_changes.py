"""Models that change under an optimizer, and optimizers of a part of a model."""

import copy

import pytest
import torch
from ngd_torch import EKFAC, FNGD, KFAC, SNGD, SOFIM, ProjectiveKFAC
from ngd_torch._curvature import leaves
from ngd_torch._ranks import Ranks
from torch import nn
from torch.nn import functional

from ngd_core.testing import assert_close

N = 6
OPTIONS = {"factor_every": 1, "inverse_every": 2, "momentum": 0.9}
MAKERS = {
    "kfac": lambda model, **o: KFAC(model, 0.1, fisher="exact", **OPTIONS, **o),
    "ekfac": lambda model, **o: EKFAC(model, 0.1, fisher="exact", **OPTIONS, **o),
    "sngd": lambda model, **o: SNGD(model, 0.1, **OPTIONS, **o),
    "projective": lambda model, **o: ProjectiveKFAC(model, 0.1, fisher="exact", **OPTIONS, **o),
    "fngd": lambda model, **o: FNGD(model, 0.1, batch_size=N, **o),
}


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def grown(model):
    """Put a layer between the body and the head; the head gets another name."""
    head = model.pop(2)
    model.extend([nn.Linear(5, 5), nn.Tanh(), head])
    return model[2]


def data(k=0):
    r = torch.Generator().manual_seed(k)
    return torch.randn(N, 4, generator=r), torch.randint(0, 3, (N,), generator=r)


def step(model, optimizer, k=0):
    x, y = data(k)
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def states(optimizer):
    """State of each layer by its weight, which names and places do not change."""
    layers = {layer.spec: layer.weight for layer in optimizer.curvature.layers}
    return {
        layers[spec]: [x.clone() for _, x in leaves(state)]
        for spec, state in optimizer.curvature.state.layers.items()
    }


def equal(xs, ys):
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_layers_added_later_are_trained_and_old_ones_keep_their_state(name):
    model = chain()
    optimizer = MAKERS[name](model)
    for k in range(3):
        step(model, optimizer, k)
    before = states(optimizer)
    momenta = {p: v["momentum_buffer"].clone() for p, v in optimizer.state.items()}
    new = grown(model)
    optimizer.add_param_group({"params": new.parameters()})
    after = states(optimizer)
    assert set(after) - set(before) == {new.weight}
    assert all(equal(after[weight], before[weight]) for weight in before)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], v) for p, v in momenta.items())
    assert [row["parameters"] for row in optimizer.report().layers.values()] == [
        [f"{k}.weight", f"{k}.bias"] for k in (0, 2, 4)
    ]
    kept = new.weight.detach().clone()
    for k in range(3, 6):
        step(model, optimizer, k)
    assert not torch.equal(new.weight, kept)
    assert set(optimizer.stats) == {"0", "2", "4"}
    assert not equal(states(optimizer)[new.weight], after[new.weight])
    optimizer.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", MAKERS)
def test_a_layer_added_at_once_is_as_if_it_had_been_there(name):
    found = []
    for late in (False, True):
        model = chain()
        head = list(model[2].parameters())
        body = list(model[0].parameters())
        optimizer = MAKERS[name](model, params=body if late else [*body, *head])
        if late:
            optimizer.add_param_group({"params": head})
        for k in range(4):
            step(model, optimizer, k)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*found)


def test_sampled_labels_go_on_where_they_were():
    found = []
    for late in (False, True):
        model = chain()
        optimizer = KFAC(model, 0.1, factor_every=1, inverse_every=1, params=model[0].parameters())
        step(model, optimizer)
        if late:
            optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.0})
        else:
            model[2].requires_grad_(False)
        step(model, optimizer)
        found.append(model[0].weight.detach().clone())
    assert_close(found[1], found[0], dtype="float32", size=10, kappa=10)


def test_a_thawed_layer_is_trained_once_it_is_given():
    model = chain()
    model[0].requires_grad_(False)
    optimizer = KFAC(model, 0.1, fisher="exact")
    step(model, optimizer)
    kept = model[0].weight.clone()
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.2})
    step(model, optimizer)
    step(model, optimizer)
    assert not torch.equal(model[0].weight, kept)
    assert set(optimizer.stats) == {"0", "2"}


def test_new_layers_are_preconditioned_at_the_next_step_whatever_the_schedule():
    model = chain()
    optimizer = KFAC(model, 0.1, fisher="exact", factor_every=10, inverse_every=100)
    step(model, optimizer)
    new = grown(model)
    optimizer.add_param_group({"params": new.parameters()})
    layer = next(layer for layer in optimizer.curvature.layers if layer.module is new)
    step(model, optimizer)
    state = optimizer.curvature.state.layers[layer.spec]
    assert float(state.weight) == N
    assert optimizer.stats["2"]["code"] == 0
    step(model, optimizer)
    assert float(optimizer.curvature.state.layers[layer.spec].weight) == N


def test_a_grown_optimizer_is_stored_and_copied():
    model = chain()
    optimizer = MAKERS["kfac"](model)
    step(model, optimizer)
    optimizer.add_param_group({"params": grown(model).parameters(), "lr": 0.05})
    step(model, optimizer, 1)
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    fresh = copy.deepcopy(model)
    last = list(fresh[2].parameters())
    other = KFAC(
        fresh,
        0.1,
        fisher="exact",
        **OPTIONS,
        params=[
            {"params": [*fresh[0].parameters(), *fresh[4].parameters()]},
            {"params": last, "lr": 0.05},
        ],
    )
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for k in range(2, 5):
        step(model, optimizer, k)
        step(both["model"], both["optimizer"], k)
        step(fresh, other, k)
    for twin in (both["model"], fresh):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_parameter_outside_the_model_is_refused(when):
    model, alien = chain(), nn.Parameter(torch.zeros(2, 7))
    sentence = r"A parameter of shape \(2, 7\) is in no module of the model"
    if when == "at once":
        with pytest.raises(ValueError, match=sentence):
            KFAC(model, 0.1, params=[*model.parameters(), alien])
        assert not any(m._forward_hooks for m in model.modules())
        return
    optimizer = KFAC(model, 0.1)
    with pytest.raises(ValueError, match=sentence):
        optimizer.add_param_group({"params": [alien]})
    assert len(optimizer.param_groups) == 1
    step(model, optimizer)


def test_an_added_parameter_without_curvature_is_an_error_where_that_was_asked_for():
    model = chain()
    optimizer = KFAC(model, 0.1, uncovered="error")
    model.append(nn.PReLU(3))
    with pytest.raises(ValueError, match="no rule for PReLU"):
        optimizer.add_param_group({"params": model[3].parameters()})
    assert len(optimizer.param_groups) == 1
    step(model, optimizer)
    assert set(optimizer.stats) == {"0", "2"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_layer_taken_out_is_left_alone(name):
    model = chain()
    optimizer = MAKERS[name](model)
    step(model, optimizer)
    old = model[2].weight
    model[2] = nn.Linear(5, 3)
    kept, new = old.detach().clone(), model[2].weight.detach().clone()
    for k in range(1, 4):
        step(model, optimizer, k)
    assert torch.equal(model[2].weight, new)
    assert torch.equal(old, kept)
    report = optimizer.report()
    assert set(report.layers) == {"0"}
    assert report.uncovered == dict.fromkeys(
        ("2.weight", "2.bias"), "not among the optimizer's parameters"
    )
    optimizer.add_param_group({"params": model[2].parameters()})
    for k in range(4, 7):
        step(model, optimizer, k)
    assert not torch.equal(model[2].weight, new)
    assert set(optimizer.stats) == {"0", "2"}
    assert not optimizer.report().uncovered


def test_only_layers_of_the_groups_have_statistics():
    model = chain()
    optimizer = KFAC(model, 0.1, params=model[2].parameters(), uncovered="error")
    assert [spec.name for spec in optimizer.curvature.state.layers] == ["2"]
    assert optimizer.report().uncovered == dict.fromkeys(
        ("0.weight", "0.bias"), "not among the optimizer's parameters"
    )
    assert "not trained: not among the optimizer's parameters" in str(optimizer.report())
    assert not model[0]._forward_hooks
    kept = model[0].weight.clone()
    step(model, optimizer)
    assert torch.equal(model[0].weight, kept)
    assert set(optimizer.stats) == {"2"}


def test_a_layer_of_which_one_parameter_is_trained():
    model = chain()
    optimizer = KFAC(model, 0.1, params=[model[0].weight])
    kept = model[0].bias.clone()
    step(model, optimizer)
    assert torch.equal(model[0].bias, kept)
    assert set(optimizer.stats) == {"0"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_layer_that_is_idle_for_a_step(name):
    """With gradients of zeros in place of none, too."""
    model = nn.ModuleDict({"one": nn.Linear(4, 3), "two": nn.Linear(4, 3)})

    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.part = model, "one"

        def forward(self, x):
            return self.parts[self.part](x)

    net = Either()
    optimizer = MAKERS[name](net, **({"momentum": 0.0} if name == "fngd" else {}))
    for k, part in enumerate(("one", "two", "one")):
        net.part = part
        other = model["two" if part == "one" else "one"].weight
        idle = other.detach().clone()
        x, y = data(k)
        optimizer.zero_grad(set_to_none=False)
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        assert torch.isfinite(net.parts[part].weight).all()
        if name == "fngd":
            assert torch.equal(other, idle)


def test_growing_leaves_no_old_hooks():
    model = chain()
    optimizer = KFAC(model, 0.1)
    for _ in range(20):
        new = grown(model)
        optimizer.add_param_group({"params": new.parameters()})
        step(model, optimizer)
        model.pop(3)
        model.pop(2)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    assert max(hooks) <= 2
    assert len(optimizer.curvature.capture.handles) <= 5


# --- SOFIM


def test_sofim_takes_further_groups_and_keeps_its_momentum():
    """M over both, of which the first part goes on and the second begins with its gradient."""
    torch.manual_seed(0)
    p, q = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 2))
    optimizer = SOFIM([p], 0.5, rho=2.0, beta=0.8)
    gs = torch.randn(3, 3, dtype=torch.float64)
    hs = torch.randn(3, 2, dtype=torch.float64)
    p.grad = gs[0]
    optimizer.step()
    optimizer.add_param_group({"params": [q], "lr": 0.25})
    moments, weights = {0: gs[0], 1: 0 * hs[0]}, {0: 1.0, 1: 0.0}
    for k in (1, 2):
        p.grad, q.grad = gs[k], hs[k]
        before = p.detach().clone(), q.detach().clone()
        optimizer.step()
        for n, g in enumerate((gs[k], hs[k])):
            total = 0.8 * weights[n] + 1
            moments[n] = (0.8 * weights[n] * moments[n] + g) / total
            weights[n] = total
        scale = 2.0 + sum((m**2).sum() for m in moments.values())
        for x, old, lr, m in zip((p, q), before, (0.5, 0.25), moments.values(), strict=True):
            assert_close(x.detach().numpy(), (old - lr * m / scale).numpy(), size=10)
    stored = optimizer.state_dict()
    other = SOFIM([{"params": [p]}, {"params": [q], "lr": 0.25}], 0.5, rho=2.0, beta=0.8)
    other.load_state_dict(stored)
    assert len(other.moments.tensors) == 2


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = x.reshape(N, 2, 2).repeat(1, 1, 2)
        return self.head(self.attention(x, x * x, x + 1)[0].mean(1))


def test_slices_of_one_weight_keep_each_its_own_state():
    torch.manual_seed(0)
    model = Attentive()
    optimizer = MAKERS["kfac"](model)
    step(model, optimizer)
    before = {spec.name: state for spec, state in optimizer.curvature.state.layers.items()}
    assert not torch.equal(before["attention.q_proj"].a, before["attention.v_proj"].a)
    model.more = nn.Linear(4, 4)
    optimizer.add_param_group({"params": model.more.parameters()})
    after = {spec.name: state for spec, state in optimizer.curvature.state.layers.items()}
    for name, state in before.items():
        assert equal([x for _, x in leaves(after[name])], [x for _, x in leaves(state)]), name


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_grows_between_two_batches_of_a_step(name):
    model = chain()
    optimizer = MAKERS[name](model)
    step(model, optimizer)
    step(model, optimizer)
    x, y = data()
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    new = grown(model)
    optimizer.add_param_group({"params": new.parameters()})
    if name == "fngd":
        optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert set(optimizer.stats) == {"0", "2", "4"}
    examples = {name: batch[0] for name, batch in optimizer.curvature.sizes.items()}
    twice = N if name == "fngd" else 2 * N
    assert examples == {"0": twice, "2": N, "4": twice}


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_a_pass_from_before_a_model_grew_is_of_no_other_layer(fisher):
    model = chain()
    optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1)
    step(model, optimizer)
    x, y = data()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    old = model[2]
    new = grown(model)
    optimizer.add_param_group({"params": new.parameters()})
    before = states(optimizer)
    loss.backward()
    after = states(optimizer)
    assert all(equal(after[weight], before[weight]) for weight in (new.weight, old.weight))


def test_kl_clip_bounds_a_step_of_biases_alone():
    """With the rate of the bias, where the weight is in no group."""
    found = []
    for clip in (None, 1e-9):
        model = chain()
        biases = [model[0].bias, model[2].bias]
        optimizer = KFAC(model, 0.1, params=biases, kl_clip=clip, momentum=0.0)
        before = [p.detach().clone() for p in biases]
        step(model, optimizer)
        moves = [p.detach() - q for p, q in zip(biases, before, strict=True)]
        found.append(torch.cat(moves).norm())
    assert found[1] < 0.1 * found[0]


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_a_use_without_a_gradient_does_not_hide_the_others(fisher):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = chain()

        def forward(self, x):
            self.aside = self.body[0](2 * x)
            return self.body(x)

    found = []
    for model in (Aside(), chain()):
        optimizer = KFAC(model, 0.1, fisher=fisher, factor_every=1)
        step(model, optimizer)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*found)


def test_a_step_given_up_leaves_no_batch_waiting_for_other_processes(monkeypatch):
    monkeypatch.setattr(Ranks, "gathers", True)
    monkeypatch.setattr("ngd_torch._curvature.gathered", lambda waiting, _: waiting)
    found = []
    for give_up in (True, False):
        model = chain()
        optimizer = MAKERS["fngd"](model)
        step(model, optimizer)
        if give_up:
            x, y = data(7)
            functional.cross_entropy(model(x), y).backward()
        step(model, optimizer, 1)
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*found)


def test_two_batches_in_one_step_of_several_processes_are_refused_by_fngd(monkeypatch):
    monkeypatch.setattr(Ranks, "gathers", True)
    monkeypatch.setattr("ngd_torch._curvature.gathered", lambda waiting, _: waiting)
    model = chain()
    optimizer = MAKERS["fngd"](model)
    for k in range(2):
        x, y = data(k)
        functional.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="saw two batches in one step"):
        optimizer.step()
