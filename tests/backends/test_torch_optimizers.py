"""The optimizers as optimizers: groups, schedulers, closures, checkpoints, copies, mistakes."""

import copy
import io

import numpy as np
import pytest
import torch
from backends.torch_cases import flat
from ngd_torch import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    NaturalGradient,
    Preconditioner,
    ProjectiveKFAC,
)
from ngd_torch._trees import leaves
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core import losses, reference
from ngd_core.step import due
from ngd_core.testing import assert_close

N = 6
MAKERS = {
    "kfac": lambda model, **o: KFAC(model, 0.1, factor_every=2, inverse_every=3, **o),
    "ekfac": lambda model, **o: EKFAC(model, 0.1, factor_every=2, inverse_every=3, **o),
    "sngd": lambda model, **o: SNGD(model, 0.1, factor_every=2, inverse_every=3, **o),
    "projective": lambda model, **o: ProjectiveKFAC(
        model, 0.1, factor_every=2, inverse_every=3, **o
    ),
    "fngd": lambda model, **o: FNGD(model, 0.1, batch_size=N, **o),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    )


def data(k=0):
    r = torch.Generator().manual_seed(k)
    return torch.randn(N, 1, 3, 3, generator=r), torch.randint(0, 3, (N,), generator=r)


def step(model, optimizer, k=0):
    x, y = data(k)
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", MAKERS)
def test_training_lowers_the_loss(name):
    model = network()
    optimizer = MAKERS[name](model)
    values = [step(model, optimizer) for _ in range(25)]
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("name", MAKERS)
def test_a_stored_state_goes_on_bit_by_bit(name):
    """Stored and loaded in the middle of an inverse interval, through torch.save and its reader."""
    model = network()
    optimizer = MAKERS[name](model)
    for k in range(4):
        step(model, optimizer, k)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    other = network(1)
    other.load_state_dict(stored["model"])
    resumed = MAKERS[name](other, seed=5)
    resumed.load_state_dict(stored["optimizer"])
    for k in range(4, 9):
        step(model, optimizer, k)
        step(other, resumed, k)
        assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_goes_its_own_way(name):
    model = network()
    optimizer = MAKERS[name](model)
    step(model, optimizer)
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    before = flat(model).clone()
    for k in range(1, 5):
        step(both["model"], both["optimizer"], k)
    assert torch.equal(flat(model), before)
    for k in range(1, 5):
        step(model, optimizer, k)
    assert torch.equal(flat(model), flat(both["model"]))


def test_a_damping_set_later_is_in_copies_and_stored_states():
    optimizer = KFAC(network(), 0.1)
    optimizer.curvature.damping, optimizer.curvature.decay = 0.5, 0.7
    stored, twin = KFAC(network(), 0.1), copy.deepcopy(optimizer)
    stored.load_state_dict(optimizer.state_dict())
    for other in (stored, twin):
        assert (other.curvature.damping, other.curvature.decay) == (0.5, 0.7)


def test_a_copied_model_trains_without_the_optimizer():
    model = network()
    optimizer = KFAC(model, 0.1)
    twin = copy.deepcopy(model)
    x, y = data()
    functional.cross_entropy(twin(x), y).backward()
    weights = [float(layer.weight) for layer in optimizer.curvature.state.layers.values()]
    assert weights == [0, 0, 0]


@pytest.mark.parametrize("name", MAKERS)
def test_a_change_of_dtype_between_steps(name):
    model = network()
    optimizer = MAKERS[name](model)
    step(model, optimizer)
    model.double()
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].double()
    x, y = data()
    optimizer.zero_grad()
    functional.cross_entropy(model(x.double()), y).backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() and p.dtype == torch.float64 for p in model.parameters())


def test_half_precision_keeps_factors_in_float32():
    model = network().to(torch.bfloat16)
    optimizer = KFAC(model, 0.1)
    x, y = data()
    functional.cross_entropy(model(x.bfloat16()).float(), y).backward()
    optimizer.step()
    found = {x.dtype for _, x in leaves(optimizer.curvature.state) if x.is_floating_point()}
    assert found == {torch.float32}
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.isfinite(flat(model)).all()


def test_groups_and_a_scheduler():
    model = network()
    biases = [p for p in model.parameters() if p.ndim == 1]
    weights = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": weights, "weight_decay": 0.5}, {"params": biases, "lr": 0.0}]
    optimizer = KFAC(model, 0.1, params=groups, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    kept = [p.detach().clone() for p in biases]
    before = [p.detach().clone() for p in weights]
    plain = network()
    twin = KFAC(plain, 0.1, momentum=0.0)
    step(model, optimizer)
    step(plain, twin)
    for p, old, q in zip(
        weights, before, [p for p in plain.parameters() if p.ndim > 1], strict=True
    ):
        assert_close(p.detach(), (q - 0.05 * old).detach(), dtype="float32")
    assert all(torch.equal(p, old) for p, old in zip(biases, kept, strict=True))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_a_closure():
    model = network()
    optimizer = KFAC(model, 0.1)
    x, y = data()

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure).item() < first.item()


@pytest.mark.parametrize("clip", [None, 1e-4])
def test_momentum_is_heavy_ball(clip):
    """Two steps with one inverse: d_1, then 0.9 d_1 + d_2, each clipped before it is added."""
    model = network().double()
    optimizer = SNGD(model, 0.1, momentum=0.9, kl_clip=clip)
    plain = copy.deepcopy(model)
    other = SNGD(plain, 0.1, momentum=0.0, kl_clip=clip)
    for o, m in ((optimizer, model), (other, plain)):
        x, y = data()
        functional.cross_entropy(m(x.double()), y).backward()
        start = flat(m).clone()
        o.step()
    first = (start - flat(plain)) / 0.1
    assert_close(flat(model).numpy(), flat(plain).numpy())
    middle = flat(model).clone()
    for o, m in ((optimizer, model), (other, plain)):
        x, y = data(1)
        o.zero_grad()
        functional.cross_entropy(m(x.double()), y).backward()
        o.step()
    second = (middle - flat(plain)) / 0.1
    assert_close(flat(model).numpy(), (middle - 0.1 * (0.9 * first + second)).numpy(), size=100)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("factor_every", "inverse_every"), [(1, 1), (2, 3), (3, 5)])
def test_the_schedule_is_that_of_the_core(factor_every, inverse_every, early):
    """Statistics and refreshes at their steps, by the core's method called by hand."""
    model, likelihood = nn.Linear(4, 3).double(), losses.get("categorical")
    front = Preconditioner(
        model,
        ngd_core.KFAC(),
        fisher="exact",
        damping=0.1,
        decay=0.7,
        factor_every=factor_every,
        inverse_every=inverse_every,
        early=early,
    )
    method, spec = ngd_core.KFAC(), ngd_core.LayerSpec("", "dense", 4, 3)
    hyper = ngd_core.Hyper(damping=0.1, decay=0.7)
    state = method.init([spec], np.zeros(()))
    r = torch.Generator().manual_seed(0)
    for k in range(7):
        x = torch.randn(N, 4, generator=r, dtype=torch.float64)
        y = torch.randint(0, 3, (N,), generator=r)
        model.zero_grad()
        outputs = model(x)
        functional.cross_entropy(outputs, y).backward()
        grads = np.column_stack([model.weight.grad, model.bias.grad])
        vectors = losses.fisher_vectors("exact", likelihood, outputs.detach().numpy())
        records = {spec: ngd_core.LayerRecord(x.numpy(), np.stack(vectors))}
        if due(k, factor_every, early=early):
            state = method.accumulate(state, records, hyper)
        if due(k, inverse_every, early=early):
            state, _ = method.refresh(state, hyper)
        want, _ = method.direction(state, {spec: grads}, {}, hyper)
        front.step()
        got = torch.column_stack([model.weight.grad, model.bias.grad])
        assert_close(got.numpy(), want[spec], size=100, kappa=100)
        with torch.no_grad():
            model.weight.sub_(model.weight.grad)


def test_kl_clip_bounds_the_step():
    """With each layer's own rate: the sum of lr^2 d^T F d is the bound."""
    model, twin = network(), network()
    optimizer, free = (
        KFAC(
            net,
            0.5,
            kl_clip=clip,
            momentum=0.0,
            params=[
                {"params": net[0].parameters(), "lr": 2.0},
                {"params": [*net[3].parameters(), *net[5].parameters()]},
            ],
        )
        for net, clip in ((model, 1e-4), (twin, None))
    )
    before = flat(model).clone()
    step(model, optimizer)
    step(twin, free)
    rates = {"0": 2.0, "3": 0.5, "5": 0.5}
    change = sum(stats["inner"] * rates[name] ** 2 for name, stats in free.stats.items())
    assert change > 1e-4
    clipped, whole = flat(model) - before, flat(twin) - before
    assert_close(clipped, whole * (1e-4 / change) ** 0.5, dtype="float32", size=100)


@pytest.mark.parametrize("basis", ["top", "gaussian", "range"])
def test_projective_bases_and_recursion(basis):
    """The core's state and direction, noise of the seed; recursion follows every batch."""
    torch.manual_seed(0)
    model = nn.Linear(70, 66).double()
    options = {"rank": 5, "sides": "both", "basis": basis, "recursive": True}
    options |= {"fisher": "exact", "seed": 3}
    optimizer = ProjectiveKFAC(model, 0.5, momentum=0.0, kl_clip=None, damping=0.1, **options)
    again = ProjectiveKFAC(copy.deepcopy(model), 0.5, **options)
    for path, x in optimizer.curvature.state_dict()["arrays"].items():
        assert torch.equal(x, again.curvature.state_dict()["arrays"][path])
    other = ProjectiveKFAC(copy.deepcopy(model), 0.5, **{**options, "seed": 4})
    same = [
        torch.equal(x, other.curvature.state_dict()["arrays"][path])
        for path, x in optimizer.curvature.state_dict()["arrays"].items()
    ]
    assert all(same) == (basis == "top")
    state = optimizer.curvature.state
    x, y = torch.randn(4, 70).double(), torch.randint(0, 66, (4,))
    outputs = model(x)
    functional.cross_entropy(outputs, y).backward()
    before = torch.column_stack([model.weight, model.bias]).detach()
    grads = torch.column_stack([model.weight.grad, model.bias.grad])
    optimizer.step()
    method, (spec,) = optimizer.curvature.method, state.layers
    vectors = losses.fisher_vectors("exact", losses.categorical, outputs.detach())
    hyper = ngd_core.Hyper(damping=0.1)
    state = method.accumulate(state, {spec: ngd_core.LayerRecord(x, vectors)}, hyper)
    state, _ = method.refresh(state, hyper)
    want, _ = method.direction(state, {spec: grads}, {}, hyper)
    got = (before - torch.column_stack([model.weight, model.bias]).detach()) / 0.5
    assert_close(got.numpy(), want[spec].numpy(), size=100, kappa=1e4)


def test_fngd_is_exact_in_its_first_epoch_and_weighted_later():
    """Against the definition, with per-example gradients from autograd."""
    model = nn.Sequential(nn.Linear(3, 3)).double()
    optimizer = FNGD(model, 0.5, batch_size=N, damping=2.0, momentum=0.0)
    r = torch.Generator().manual_seed(0)
    epochs, directions = [], []
    for _ in range(2):
        epochs.append([])
        for _ in range(3):
            x = torch.randn(N, 3, generator=r, dtype=torch.float64)
            y = torch.randint(0, 3, (N,), generator=r)
            columns = []
            model.eval()  # passes that are not for training are not looked at
            for n in range(N):
                loss = functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
                weight, bias = torch.autograd.grad(loss, tuple(model.parameters()))
                columns.append(torch.cat([weight, bias[:, None]], dim=1).reshape(-1))
            epochs[-1].append((np.arange(N), torch.stack(columns, dim=1).numpy()))
            model.train()
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            weight, bias = (b - p.detach() for b, p in zip(before, model.parameters(), strict=True))
            directions.append(torch.cat([weight, bias[:, None]], dim=1).reshape(-1) / 0.5)
        optimizer.epoch_end()
    want = [u for part in reference.fngd_directions(epochs, 2.0) for u in part]
    for got, u in zip(directions, want, strict=True):
        assert_close(got.numpy(), u, size=100, kappa=100)


@pytest.mark.parametrize("share", ["position", "iteration", "sample"])
def test_fngd_shares_coefficients_as_the_core_does(share):
    """Three reshuffled epochs beside the core's method by hand, stored and resumed on the way."""
    n, iterations = 12, 3
    sizes = {"batch_size": 4, "iterations": iterations, "dataset_size": n}
    options = {"share": share, "damping": 2.0, "momentum": 0.0, **sizes}
    r = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=r, dtype=torch.float64)
    y = torch.randint(0, 3, (n,), generator=r)
    model = nn.Linear(3, 3).double()
    optimizer = FNGD(model, 0.5, **options)
    method, (spec,) = optimizer.curvature.method, optimizer.curvature.state.layers
    state, hyper = method.init([spec], x), ngd_core.Hyper(damping=2.0)
    for epoch in range(3):
        for k, rows in enumerate(torch.randperm(n, generator=r).split(4)):
            index = {"position": None, "iteration": torch.tensor(k), "sample": rows}[share]
            optimizer.zero_grad()
            optimizer.index = rows
            outputs = model(x[rows])
            functional.cross_entropy(outputs, y[rows]).backward()
            g = losses.categorical.gradient(outputs.detach(), y[rows])
            records = {spec: ngd_core.LayerRecord(x[rows], g)}
            grads = {spec: torch.column_stack([model.weight.grad, model.bias.grad])}
            before = torch.column_stack([model.weight, model.bias]).detach()
            if epoch == 0:
                state = method.accumulate(state, records, hyper, index=index)
            want, _ = method.direction(state, grads, records, hyper, index=index)
            optimizer.step()
            assert optimizer.index is None
            got = (before - torch.column_stack([model.weight, model.bias]).detach()) / 0.5
            assert_close(got.numpy(), want[spec].numpy(), size=100, kappa=100)
            if (epoch, k) == (1, 1):
                stored = optimizer.state_dict()
                optimizer = FNGD(model, 0.5, **options)
                optimizer.load_state_dict(stored)
        optimizer.epoch_end()
        state, _ = method.refresh(state, hyper)


def test_fngd_by_sample_has_to_be_told():
    model = network()
    optimizer = FNGD(model, 0.1, share="sample", dataset_size=N)
    assert optimizer.index is None
    x, y = data()
    with pytest.raises(RuntimeError, match=r"set optimizer\.index to their numbers"):
        functional.cross_entropy(model(x), y).backward()


def test_preconditioner_before_adam_and_before_sgd():
    x, y = data()
    model, twin = network(), network()
    optimizer = KFAC(twin, 0.1, momentum=0.0, kl_clip=None)
    front, sgd = Preconditioner(model, ngd_core.KFAC()), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        sgd.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        front.step()
        sgd.step()
        step(twin, optimizer)
    assert_close(flat(model), flat(twin), dtype="float32", size=100, kappa=100)
    adam = torch.optim.Adam(model.parameters())
    functional.cross_entropy(model(x), y).backward()
    front.step()
    adam.step()
    assert torch.isfinite(flat(model)).all()
    front.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_report_before_the_first_step():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.PReLU(), nn.Linear(5, 3))
    model[3].requires_grad_(False)
    report = KFAC(model, 0.1).report()
    assert report.layers["0"]["parameters"] == ["0.weight", "0.bias"]
    assert report.layers["0"]["block"] == (5, 5)
    assert report.layers["0"]["bytes"] > 4 * 4 * 25
    assert report.layers["1"]["kind"] == "scale"
    assert report.uncovered["2.weight"] == "no rule for PReLU"
    assert report.uncovered["3.weight"] == "frozen"
    text = str(report)
    assert "2.weight follows its gradient: no rule for PReLU" in text
    assert "3.weight is not trained: frozen" in text
    assert "weight, bias" in text


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda m: KFAC(m, -1.0), ValueError, ["lr is -1.0"]),
        (lambda m: KFAC(m, 0.1, momentum=1.0), ValueError, ["momentum is 1.0"]),
        (lambda m: KFAC(m, 0.1, weight_decay=-1), ValueError, ["weight_decay is -1"]),
        (lambda m: KFAC(m, 0.1, kl_clip=0), ValueError, ["kl_clip is 0"]),
        (lambda m: KFAC(m, 0.1, dampening=0.1), TypeError, ["'dampening'", "damping"]),
        (lambda m: KFAC(m, 0.1, fisher="true"), ValueError, ["fisher is 'true'", "'mc'"]),
        (lambda m: KFAC(m, 0.1, likelihood="poisson"), ValueError, ["'poisson'", "'gaussian'"]),
        (lambda m: KFAC(m, 0.1, factor_every=0), ValueError, ["factor_every is 0"]),
        (lambda m: KFAC(m, 0.1, damping_split="half"), ValueError, ["'half'", "'exact'"]),
        (lambda _: KFAC(nn.PReLU(), 0.1), ValueError, ["no layer with curvature", "Linear"]),
        (
            lambda m: KFAC(nn.Sequential(m, nn.PReLU()), 0.1, uncovered="error"),
            ValueError,
            ["1 parameters", "'1.weight'", "PReLU", "layers={...}"],
        ),
        (
            lambda m: NaturalGradient(m, ngd_core.TridiagonalKFAC(), 0.1),
            ValueError,
            ["TridiagonalKFAC looks at all layers", "use KFAC"],
        ),
        (
            lambda m: Preconditioner(m, ngd_core.SOFIM(rho=1.0)),
            ValueError,
            ["SOFIM looks at all layers", "ngd_torch.SOFIM"],
        ),
        (lambda m: Preconditioner(m, ngd_core.KFAC(), momentum=0.9), TypeError, ["momentum"]),
        (
            lambda m: KFAC(m, 0.1).load_state_dict(torch.optim.SGD(m.parameters()).state_dict()),
            ValueError,
            ["no curvature", "KFAC.state_dict()"],
        ),
        (
            lambda m: KFAC(m, 0.1).load_state_dict(SNGD(m, 0.1).state_dict()),
            ValueError,
            ["expected shape", "same model and method"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(make, error, parts):
    with pytest.raises(error) as raised:
        make(network())
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_that_is_not_finite_moves_nothing(name):
    model = network()
    optimizer = MAKERS[name](model, momentum=0.0)
    step(model, optimizer)
    step(model, optimizer, 1)
    before = flat(model).clone()
    x, y = data()
    optimizer.zero_grad()
    functional.cross_entropy(model(x * float("nan")), y).backward()
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert {stats["code"] for stats in optimizer.stats.values()} == {5}
    step(model, optimizer, 2)
    assert torch.isfinite(flat(model)).all()
    assert not torch.equal(flat(model), before)


def test_sofim_is_its_definition_over_groups_and_through_a_checkpoint():
    model, other = network().double(), network(1).double()
    half = list(model.parameters())
    groups = [{"params": half[:3]}, {"params": half[3:], "lr": 0.3, "weight_decay": 0.1}]
    optimizer = SOFIM(groups, 0.2, rho=0.5, beta=0.8)
    gradients = []
    for k in range(5):
        if k == 3:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            stored = torch.load(file, weights_only=True)
            other.load_state_dict(stored["model"])
            model, half = other, list(other.parameters())
            groups = [{"params": half[:3]}, {"params": half[3:], "lr": 0.3, "weight_decay": 0.1}]
            optimizer = SOFIM(groups, 0.2, rho=0.5, beta=0.8)
            optimizer.load_state_dict(stored["optimizer"])
        x, y = data(k)
        optimizer.zero_grad()
        functional.cross_entropy(model(x.double()), y).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in half]).numpy())
        before = flat(model).clone().numpy()
        optimizer.step()
        u = reference.sofim_direction(reference.sofim_moment(gradients, 0.8), 0.5)
        first = sum(p.numel() for p in half[:3])
        rates = np.where(np.arange(len(u)) < first, 0.2, 0.3)
        shrink = np.where(np.arange(len(u)) < first, 1.0, 1 - 0.03)
        assert_close(flat(model).numpy(), shrink * before - rates * u, size=100)


def test_sofim_takes_a_model_and_copies():
    model = network()
    optimizer = SOFIM(model, 0.5, rho=0.5)
    losses = [step(model, optimizer) for _ in range(30)]
    assert losses[-1] < losses[0]
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    step(model, optimizer)
    step(both["model"], both["optimizer"])
    assert torch.equal(flat(model), flat(both["model"]))
    with pytest.raises(ValueError, match="rho"):
        SOFIM(model, 0.5, rho=0.0)
    with pytest.raises(ValueError, match="holds nothing for"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


def test_it_is_an_optimizer():
    optimizer = NaturalGradient(network(), ngd_core.KFAC(), 0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(KFAC(network(), 0.1), NaturalGradient)
