"""States that do not fit, copies that cannot be made, and what a call may leave out."""

import copy
import io
import pickle

import pytest
import torch
from ngd_torch import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    Preconditioner,
    ProjectiveKFAC,
)
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core.testing import assert_close

N = 6
MAKERS = {
    "kfac": lambda model: KFAC(model, 0.1, factor_every=1),
    "ekfac": lambda model: EKFAC(model, 0.1, factor_every=1),
    "sngd": lambda model: SNGD(model, 0.1, factor_every=1),
    "projective": lambda model: ProjectiveKFAC(model, 0.1, factor_every=1),
    "fngd": lambda model: FNGD(model, 0.1, batch_size=N),
    "sofim": lambda model: SOFIM(model, 0.1, rho=1.0),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data(k=0):
    r = torch.Generator().manual_seed(k)
    return torch.randn(N, 4, generator=r), torch.randint(0, 3, (N,), generator=r)


def step(model, optimizer, k=0):
    x, y = data(k)
    optimizer.zero_grad()
    functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y).backward()
    optimizer.step()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def stored(optimizer):
    """Bytes of everything in a state."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def curvature(**new):
    return lambda state: {**state, "curvature": {**state["curvature"], **new}}


def curvature_without(key):
    return lambda state: {**state, "curvature": without(key)(state["curvature"])}


def arrays_of(state):
    inner = state["curvature"]
    return inner.get("arrays", inner)


def with_arrays(change):
    def changed(state):
        inner = state["curvature"]
        new = change(dict(arrays_of(state)))
        return {**state, "curvature": {**inner, "arrays": new} if "arrays" in inner else new}

    return changed


def less(arrays):
    arrays.popitem()
    return arrays


def reshaped(arrays):
    name = list(arrays)[-1]
    return {**arrays, name: torch.zeros(*arrays[name].shape, 2)}


def no_tensor(arrays):
    return {**arrays, list(arrays)[-1]: 0.5}


def first_group(**new):
    def changed(state):
        first, *rest = state["param_groups"]
        return {**state, "param_groups": [{**first, **new}, *rest]}

    return changed


def group_without(key):
    def changed(state):
        first, *rest = state["param_groups"]
        return {**state, "param_groups": [without(key)(first), *rest]}

    return changed


def wrong_momentum(state):
    return {**state, "state": {**state["state"], 0: {"momentum_buffer": torch.zeros(7)}}}


COMMON = {
    "nothing": lambda _: {},
    "no curvature": without("curvature"),
    "no groups": without("param_groups"),
    "no state": without("state"),
    "a group more": lambda s: {**s, "param_groups": [*s["param_groups"], {"params": [9]}]},
    "a parameter less": first_group(params=[0, 1, 2]),
    "no learning rate": group_without("lr"),
    "an array less": with_arrays(less),
    "an array more": with_arrays(lambda arrays: {**arrays, "/layers/7/a": torch.zeros(2)}),
    "another shape": with_arrays(reshaped),
    "no tensor": with_arrays(no_tensor),
}
NATURAL = {
    **{
        f"no {key}": curvature_without(key)
        for key in ("arrays", "steps", "epochs", "damping", "decay", "unseen", "generators")
    },
    "generators of no device": curvature(generators={"cpu": 3}),
    "steps in words": curvature(steps="three"),
    "momentum of another shape": wrong_momentum,
}
BROKEN = [
    *[(name, case) for name in ("kfac", "sofim") for case in COMMON],
    *[("kfac", case) for case in NATURAL],
    *[(name, "an array more") for name in ("ekfac", "sngd", "projective", "fngd")],
]


@pytest.mark.parametrize(("name", "case"), BROKEN)
def test_a_state_that_does_not_fit_changes_nothing(name, case):
    model, other = network(), network(1)
    optimizer, giver = MAKERS[name](model), MAKERS[name](other)
    for k in range(2):
        step(model, optimizer, k)
        step(other, giver, k + 5)
    giver.param_groups[0]["lr"] = 0.7
    before = stored(optimizer)
    broken = {**COMMON, **NATURAL}[case](giver.state_dict())
    with pytest.raises(ValueError, match=r"[a-z].*;.*[a-z]"):
        optimizer.load_state_dict(broken)
    assert stored(optimizer) == before
    optimizer.load_state_dict(giver.state_dict())
    assert stored(optimizer) == stored(giver)


@pytest.mark.parametrize("case", ["no arrays", "no unseen", "an array more"])
def test_a_preconditioner_refuses_it_too(case):
    front, giver = (Preconditioner(network(k), ngd_core.KFAC()) for k in range(2))
    broken = {**COMMON, **NATURAL}[case]({"curvature": giver.state_dict()})["curvature"]
    before = stored(front)
    with pytest.raises(ValueError, match="same model and method"):
        front.load_state_dict(broken)
    assert stored(front) == before


def test_a_copy_of_a_copy_is_made():
    """Torch adds entries of its own to the defaults when it loads."""
    optimizer = copy.deepcopy(KFAC(network(), 0.1))
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(KFAC(network(), 0.1).state_dict())


def test_states_stored_before_further_entries_were_kept_are_taken():
    model = network()
    optimizer = KFAC(model, 0.1)
    step(model, optimizer)
    state = curvature_without("generators_of_further_ranks")(optimizer.state_dict())
    optimizer.load_state_dict(curvature_without("due")(state))


@pytest.mark.parametrize("way", [copy.copy, pickle.dumps, lambda o: torch.save(o, io.BytesIO())])
@pytest.mark.parametrize("make", [MAKERS["kfac"], lambda m: Preconditioner(m, ngd_core.KFAC())])
def test_what_would_be_lost_in_a_file_is_refused(make, way):
    model = network()
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        way(make(model))


def test_a_sofim_goes_into_a_file():
    model = network()
    optimizer = SOFIM(model, 0.1, rho=1.0)
    step(model, optimizer)
    both = pickle.loads(pickle.dumps({"model": model, "optimizer": optimizer}))
    for k in range(1, 3):
        step(model, optimizer, k)
        step(both["model"], both["optimizer"], k)
    assert torch.equal(flat(model), flat(both["model"]))


def test_a_scheduler_and_a_copy_of_it_still_work():
    optimizer = KFAC(network(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    twin = copy.deepcopy(scheduler)
    assert twin.optimizer is not optimizer
    assert twin.optimizer.curvature is not optimizer.curvature


def test_a_copied_preconditioner_serves_the_copied_model():
    model = network()
    front = Preconditioner(model, ngd_core.KFAC(), factor_every=1, inverse_every=2)

    def turn(model, front, k):
        model.zero_grad()
        x, y = data(k)
        functional.cross_entropy(model(x), y).backward()
        front.step()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    turn(model, front, 0)
    both = copy.deepcopy({"model": model, "front": front})
    for k in range(1, 4):
        assert torch.equal(turn(model, front, k), turn(both["model"], both["front"], k))


def test_a_layer_taken_out_cannot_be_copied():
    model = network()
    optimizer = KFAC(model, 0.1)
    model[2] = nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"\(3, 5\) was taken out of the model.*new optimizer"):
        copy.deepcopy(optimizer)


def test_a_preconditioner_looks_at_a_grown_model():
    model = network()
    front = Preconditioner(model, ngd_core.KFAC(), damping=0.1, fisher="exact")

    def turn(front):
        model.zero_grad()
        x, y = data()
        functional.cross_entropy(model(x), y).backward()
        front.step()

    turn(front)
    before = front.curvature.state.layers[front.curvature.by_name["0"].spec]
    model.append(nn.Linear(3, 3))
    front.look_again()
    assert set(front.report().layers) == {"0", "2", "3"}
    after = front.curvature.state.layers[front.curvature.by_name["0"].spec]
    assert torch.equal(after.a, before.a)
    turn(front)
    got = model[3].weight.grad.clone()
    front.close()
    fresh = Preconditioner(model, ngd_core.KFAC(), damping=0.1, fisher="exact")
    turn(fresh)
    assert_close(got, model[3].weight.grad, dtype="float32", size=10, kappa=100)


def test_a_preconditioner_looks_for_the_trained_alone():
    model = network()
    front = Preconditioner(model, ngd_core.KFAC())
    model[0].requires_grad_(False)
    front.look_again()
    assert set(front.report().layers) == {"2"}


@pytest.mark.parametrize("dtypes", [(torch.float64,), (torch.float32,), (torch.float16,)])
@pytest.mark.parametrize("start", [torch.float32, torch.float64])
def test_momentum_of_sofim_follows_the_parameters(start, dtypes):
    model = network().to(start)
    optimizer = SOFIM(model, 0.1, rho=1.0)
    step(model, optimizer)
    for dtype in dtypes:
        model.to(dtype)
        step(model, optimizer, 1)
        want = torch.float64 if dtype == torch.float64 else torch.float32
        found = {x.moment.dtype for x in optimizer.moments.tensors.values()}
        assert found == {x.weight.dtype for x in optimizer.moments.tensors.values()} == {want}
        assert {x.rejected.dtype for x in optimizer.moments.tensors.values()} == {torch.int32}


def test_momentum_of_sofim_has_the_precision_of_the_parameters():
    model = network().double()
    x, y = data()
    optimizer = SOFIM(model.float(), 0.1, rho=1.0, beta=0.0)
    model.double()
    functional.cross_entropy(model(x.double()), y).backward()
    optimizer.step()
    for moment, p in zip(optimizer.moments.tensors.values(), model.parameters(), strict=True):
        assert torch.equal(moment.moment, p.grad)


def test_a_bias_without_its_weights_gradient_is_preconditioned():
    """The missing part of the block is zeros, as where the bias is missing."""
    model = network()
    optimizer = KFAC(model, 0.1, momentum=0.0, kl_clip=None, fisher="exact", damping=0.1)
    x, y = data()
    functional.cross_entropy(model(x), y).backward()
    twin = copy.deepcopy(optimizer)
    twin_model = twin.curvature.model
    functional.cross_entropy(twin_model(x), y).backward()
    optimizer.curvature.state = twin.curvature.state
    model[0].weight.grad = None
    twin_model[0].weight.grad.zero_()
    weight = model[0].weight.detach().clone()
    raw = model[0].bias.detach() - 0.1 * model[0].bias.grad
    optimizer.step()
    twin.step()
    assert torch.equal(model[0].weight, weight)
    assert not torch.allclose(model[0].bias, raw)
    assert torch.equal(model[0].bias, twin_model[0].bias)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_layer_called_by_keyword_is_seen(fisher):
    class Named(nn.Module):
        def __init__(self, layers, keywords):
            super().__init__()
            self.layers, self.keywords = layers, keywords

        def forward(self, x):
            body, head = self.layers[0], self.layers[2]
            if self.keywords:
                return head(input=torch.tanh(body(input=x)))
            return head(torch.tanh(body(x)))

    found = []
    for keywords in (False, True):
        model = Named(network(), keywords)
        optimizer = KFAC(model, 0.1, fisher=fisher)
        for k in range(2):
            step(model, optimizer, k)
        found.append(flat(model))
    assert torch.equal(*found)


def test_a_model_that_is_a_layer_called_by_keyword():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = KFAC(model, 0.1)
    x, y = data()
    functional.cross_entropy(model(input=x), y).backward()
    optimizer.step()
    assert optimizer.stats["Linear"]["code"] == 0


@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_the_size_a_transposed_convolution_was_asked_for(kind, chunk_bytes):
    """Called with ``output_size``: as the layer that has so much output padding."""
    axes = 1 if kind is nn.ConvTranspose1d else 2
    size = (8,) if axes == 1 else (8, 7)
    padding = (1,) if axes == 1 else (1, 0)

    class Asked(nn.Module):
        def __init__(self, by_size):
            super().__init__()
            self.by_size = by_size
            own = 0 if by_size else padding
            self.up = kind(2, 2, 3, stride=2, groups=2, output_padding=own)
            self.head = nn.LazyLinear(3)

        def forward(self, x):
            z = torch.tanh(self.up(x, output_size=size) if self.by_size else self.up(x))
            return self.head(z.flatten(1))

    x, y = torch.randn(N, 2, *[3] * axes), data()[1]
    found = []
    for by_size in (False, True):
        torch.manual_seed(0)
        model = Asked(by_size)
        model(x)
        optimizer = KFAC(model, 0.1, fisher="exact", chunk_bytes=chunk_bytes)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        found.append(flat(model))
    assert_close(found[1], found[0], dtype="float32", size=100, kappa=100)
