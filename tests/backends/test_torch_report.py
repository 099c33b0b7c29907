"""The report names every parameter once, and its numbers are those of the state and the counter."""

import io
import sys

import ngd_torch
import numpy as np
import pytest
import torch
from harness import EXAMPLES, seeds
from hypothesis import HealthCheck, given, settings
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import ngd_core
from ngd_core import Conv2dGeometry, Hyper, LayerRecord, LayerSpec, layer_cost
from ngd_core.testing import assert_close

aten = torch.ops.aten
N = 4
MAKERS = {
    "KFAC": lambda m, **o: ngd_torch.KFAC(m, 0.1, **o),
    "EKFAC": lambda m, **o: ngd_torch.EKFAC(m, 0.1, **o),
    "SNGD": lambda m, **o: ngd_torch.SNGD(m, 0.1, **o),
    "FNGD": lambda m, **o: ngd_torch.FNGD(m, 0.1, batch_size=N, **o),
    "ProjectiveKFAC": lambda m, **o: ngd_torch.ProjectiveKFAC(m, 0.1, **o),
}


def pieces(r):
    """Modules of all sorts, some of them twice, some weights shared, some frozen."""
    made = [
        lambda: nn.Linear(3, 4),
        lambda: nn.Linear(3, 4, bias=False),
        lambda: nn.Conv2d(2, 4, 2, groups=2),
        lambda: nn.Conv3d(1, 2, 2),
        lambda: nn.Embedding(5, 3),
        lambda: nn.LayerNorm(4),
        lambda: nn.BatchNorm1d(4),
        nn.PReLU,
        lambda: nn.GRUCell(3, 2),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))),
    ]
    picked = [made[k]() for k in r.integers(len(made), size=r.integers(1, 7))]
    names = np.asarray(["a", "g", "inverse", "layers", "fc", "0", "weight_", "x.y"])
    chosen = r.permutation(len(picked))
    model = nn.ModuleDict(
        {names[k].replace(".", "_"): picked[k] for k in chosen} | {"last": nn.Linear(3, 4)}
    )
    if r.random() < 0.5:
        model["again"] = model["last"]
    if r.random() < 0.5:
        model["tied"] = nn.Linear(3, 4)
        model["tied"].weight = model["last"].weight
    if r.random() < 0.3:
        model["crossed"] = nn.Embedding(4, 3)
        model["crossed"].weight = model["last"].weight
    for p in model.parameters():
        if r.random() < 0.2:
            p.requires_grad_(False)
    model["more"] = nn.Linear(3, 2)  # one layer at least
    return model


@settings(
    max_examples=2 * EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seeds)
def test_every_parameter_comes_exactly_once(seed):
    r = np.random.default_rng(seed)
    model = pieces(r)
    name = sorted(MAKERS)[r.integers(len(MAKERS))]
    report = MAKERS[name](model).report()
    said = [p for row in report.layers.values() for p in row["parameters"]]
    assert len(set(said)) == len(said)
    cut = {p.partition("[")[0] for p in said if "[" in p}  # rows of one parameter, layer by layer
    said = [p for p in said if "[" not in p] + sorted(cut) + list(report.uncovered)
    assert sorted(said) == sorted(name for name, _ in model.named_parameters())
    for key, p in model.named_parameters():
        assert (report.parameters[key] == "frozen") == (not p.requires_grad)
        assert key.rpartition(".")[2] in str(report)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.PReLU(), nn.Flatten(), nn.Linear(8, 70), nn.ReLU(), nn.Linear(70, 3)
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_the_state_s(name, momentum):
    """Every byte of the curvature and of momentum, told before the first step."""
    torch.manual_seed(0)
    model = network()
    optimizer = MAKERS[name](model, momentum=momentum, factor_every=1, inverse_every=1)
    told = optimizer.report()
    for _ in range(2):
        functional.cross_entropy(model(torch.randn(N, 1, 3, 3)), torch.arange(N) % 3).backward()
        optimizer.step()
    arrays = list(optimizer.state_dict()["curvature"]["arrays"].values())
    buffers = [state["momentum_buffer"] for state in optimizer.state.values() if state]
    assert told.bytes == sum(x.numel() * x.element_size() for x in [*arrays, *buffers])
    assert optimizer.report().bytes == told.bytes
    assert (told.momentum > 0) == (momentum > 0)
    numbers = sum(row["numbers"] for row in told.layers.values())
    assert numbers == sum(x.numel() for x in arrays)


def cubed(share):
    def formula(shape, *args, **kwargs):
        *stack, n, _ = shape
        return share * int(np.prod(stack)) * n**3

    return formula


# what torch does not count, by the textbooks: operations, two a multiply-add
INVERSES = {
    aten.linalg_cholesky_ex: cubed(1 / 3),
    aten.cholesky_inverse: cubed(2 / 3),
    aten._linalg_eigh: cubed(9),
}


def counted(run):
    """Multiply-adds that torch counts while `run` runs."""
    with FlopCounterMode(display=False, custom_mapping=INVERSES) as counter:
        run()
    return counter.get_total_flops() / 2


CORE = {
    "kfac": ngd_core.KFAC(ops=ngd_torch.NATIVE),
    "kfac exact": ngd_core.KFAC(damping_split="exact"),
    "ekfac": ngd_core.EKFAC(),
    "sngd": ngd_core.SNGD(ops=ngd_torch.NATIVE),
    "sngd relu": ngd_core.SNGD(metric="relu", ops=ngd_torch.NATIVE),
    "fngd": ngd_core.FNGD(batch_size=24, ops=ngd_torch.NATIVE),
    "projective": ngd_core.ProjectiveKFAC(rank=0.5, min_size=8, ops=ngd_torch.NATIVE),
    "projective still": ngd_core.ProjectiveKFAC(
        rank=3, min_size=2, recursive=False, ops=ngd_torch.NATIVE
    ),
}
SPECS = {
    "dense": (LayerSpec("l", "dense", 9, 5), (9,), (5,)),
    "no bias": (LayerSpec("l", "dense", 9, 12, bias=False), (9,), (12,)),
    "positions": (LayerSpec("l", "dense", 9, 5), (3, 9), (3, 5)),
    "reduced": (LayerSpec("l", "dense", 9, 5, sharing="reduce"), (3, 9), (3, 5)),
    "convolution": (
        LayerSpec("l", "conv2d", 2, 6, geometry=Conv2dGeometry(2)),
        (2, 3, 4),
        (6, 2, 3),
    ),
    "groups": (
        LayerSpec("l", "conv2d", 4, 6, bias=False, geometry=Conv2dGeometry((2, 1), groups=2)),
        (4, 3, 2),
        (6, 2, 2),
    ),
    "embedding": (LayerSpec("l", "embedding", 7, 4, bias=False), (3,), (3, 4)),
    "scale": (LayerSpec("l", "scale", 4, 4), (3, 4), (3, 4)),
}
PAIRS = [
    (method, layer)
    for method in CORE
    for layer in SPECS
    if layer not in ("embedding", "scale")
    or method.startswith(("kfac", "fngd"))
    or (method, layer) == ("ekfac", "scale")
]


def positions_of(spec, g):
    return int(np.prod(g)) // spec.out_features


def batch_of(layer, n, vectors=1):
    _, a, g = SPECS[layer]
    torch.manual_seed(n)
    inputs = torch.randint(0, 7, (n, *a)) if layer == "embedding" else torch.randn(n, *a)
    outputs = torch.randn(*((vectors,) if vectors > 1 else ()), n, *g)
    return LayerRecord(inputs, outputs, torch.randn(n, *g))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize(("method", "layer"), PAIRS)
def test_statistics_cost_what_is_counted(method, layer, vectors):
    """What twice the batch costs more; for Gram matrices, the whole."""
    if method == "fngd":
        vectors = 1
    spec, _, g = SPECS[layer]
    core, hyper = CORE[method], Hyper(damping=1.0)
    positions, counts, costs = positions_of(spec, g), [], []
    for n in (6, 12):
        state, record = core.init([spec], torch.zeros(())), batch_of(layer, n, vectors)
        counts.append(counted(lambda s=state, b=record: core.accumulate(s, {spec: b}, hyper)))
        cost = layer_cost(core, spec, examples=n, positions=positions, vectors=vectors)
        costs.append(cost.statistics)
        if method == "fngd":
            counts[-1] -= 2 * n * n  # residual of the inverse
    if method == "fngd":
        assert_close(counts, costs)
    else:
        assert_close(counts[1] - counts[0], costs[1] - costs[0])


def test_an_inverse_that_follows_costs_what_is_counted():
    """Up to its eigendecompositions, of order m, which are counted at 9 m^3 operations, not 10."""
    spec = LayerSpec("l", "dense", 40, 3, bias=False)
    core, counts, costs = ngd_core.ProjectiveKFAC(rank=36, recursive=True, min_size=8), [], []
    for m in (6, 12):
        state, record = (
            core.init([spec], torch.zeros(())),
            LayerRecord(torch.ones(m, 40), torch.ones(m, 3)),
        )
        counts.append(counted(lambda s=state, b=record: core.accumulate(s, {spec: b}, Hyper())))
        costs.append(layer_cost(core, spec, examples=m).statistics)
    assert abs((costs[1] - costs[0]) - (counts[1] - counts[0])) <= (12**3 - 6**3) / 2


@pytest.mark.parametrize(("method", "layer"), PAIRS)
def test_directions_and_refreshes_cost_what_is_counted(method, layer):
    spec, _, g = SPECS[layer]
    core, hyper, record = CORE[method], Hyper(damping=1.0), batch_of(layer, 12)
    cost = layer_cost(core, spec, examples=12, positions=positions_of(spec, g))
    state = core.accumulate(core.init([spec], torch.zeros(())), {spec: record}, hyper)
    states = []
    refresh = counted(lambda: states.append(core.refresh(state, hyper)[0]))
    grads = {spec: torch.randn(spec.block_shape)}
    direction = counted(lambda: core.direction(states[0], grads, {spec: record}, hyper))
    assert direction == cost.direction + cost.weighting
    # residuals of the inverses, one vector each
    assert (
        0
        <= refresh - cost.refresh
        <= 2
        * spec.groups
        * (spec.columns**2 * (spec.rows if method == "sngd relu" else 1) + spec.rows**2)
    )


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(5, 4), (3, 5)), (nn.Conv2d(4, 6, 2, groups=2), (4, 3, 4))]
)
def test_a_layer_s_own_cost_is_what_is_counted(layer, shape):
    x = torch.randn(N, *shape, requires_grad=True)
    spec = ngd_torch.KFAC(layer, 0.1).curvature.layers[0].spec
    positions = positions_of(spec, layer(x).shape[1:])
    cost = layer_cost(ngd_core.KFAC(), spec, examples=N, positions=positions)
    assert counted(lambda: layer(x)) == cost.own / 3
    if spec.groups == 1:  # torch counts the backward pass of groups as if there were none
        assert counted(lambda: layer(x).sum().backward()) == cost.own


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("name", MAKERS)
def test_whole_steps_cost_what_the_report_says(name, fisher):
    """Four steps, statistics at two of them: what twice the batch costs more, all layers."""
    if name in ("SNGD", "FNGD"):
        options = {"factor_every": 2, "inverse_every": 4}
    else:
        options = {"factor_every": 2, "inverse_every": 4, "fisher": fisher}
    said, counts = [], []
    for n in (4, 8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        maker = MAKERS[name] if name != "FNGD" else lambda m, **o: ngd_torch.FNGD(m, 0.1, **o)
        if name == "FNGD":
            options["batch_size"] = n
        optimizer = maker(model, **options)
        x, y = torch.randn(n, 6, requires_grad=True), torch.zeros(n).long()

        def steps(model=model, optimizer=optimizer, x=x, y=y):
            for _ in range(4):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()

        counts.append(counted(steps))
        if name == "FNGD":
            counts[-1] -= 4 * 2 * 2 * n * n  # residuals of the inverses
        step, own = optimizer.report().cost()
        said.append(4 * (step + own))
    if fisher == "mc" and name not in ("SNGD", "FNGD"):
        # nothing is carried back through the first layer for samples: two passes of four steps
        said = [total - 2 * n * 30 for total, n in zip(said, (4, 8), strict=True)]
    assert_close(counts[1] - counts[0], said[1] - said[0])


def test_what_is_not_known_is_said():
    class Mine:
        """A method from elsewhere."""

        kinds = ngd_core.KFAC.kinds

        def init(self, specs, like):
            return ngd_core.KFAC().init(specs, like)

    assert layer_cost(Mine(), SPECS["dense"][0]) is None
    assert layer_cost(ngd_core.DenseNGD(), SPECS["dense"][0]) is None
    report = ngd_torch.Preconditioner(network(), Mine()).report()
    assert {row["step"] for row in report.layers.values()} == {None}
    assert "?" in str(report)
    with pytest.raises(ValueError, match="is not known; take a step"):
        report.cost()
    with pytest.raises(ValueError, match="is not known; take a step"):
        MAKERS["KFAC"](network()).report().cost()


def test_the_table_as_text():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(288, 10))
    model[3].bias.requires_grad_(False)
    optimizer = ngd_torch.KFAC(model, 0.1, momentum=0.0)
    assert str(optimizer.report()).splitlines() == [
        "layer  parameters    kind    block       state   step    row    own",
        "0      weight, bias  conv2d  8x28      6.6 KiB  8.18k    101    648",
        "3      weight        dense   10x288  648.8 KiB   978k  8.59k  8.64k",
        "",
        "1.weight follows its gradient: no rule for PReLU",
        "3.bias is not trained: frozen",
        "Parameters: 3 covered, 1 frozen, 1 uncovered. State: 655.4 KiB.",
        *ngd_torch._report.LEGEND.splitlines(),
    ]
    x = torch.randn(32, 3, 8, 8)
    functional.cross_entropy(model(x), torch.zeros(32).long()).backward()
    last = str(optimizer.report()).splitlines()[-1]
    assert last == "A step on the last batch of 32: 1.38M, beside 1.02M of the layers' own."


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_rich_holds_every_word(width):
    report = ngd_torch.KFAC(network(), 0.1).report()
    out = io.StringIO()
    Console(file=out, width=width).print(report)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(out.getvalue().split()) == " ".join(str(report).split())


def test_without_rich_it_prints(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    report = ngd_torch.KFAC(network(), 0.1).report()
    assert "weight, bias" in str(report)
    assert set(report._asdict()) == {"layers", "uncovered", "momentum"}
    with pytest.raises(ImportError):
        report.__rich__()


def test_counts_and_sizes_for_people():
    count, size = ngd_torch._report._count, ngd_torch._report._size
    numbers = (0, 999, 1000, 12345, 999499, 1e6, 2.5e9)
    assert [count(n) for n in numbers] == ["0", "999", "1k", "12.3k", "999k", "1M", "2.5G"]
    assert [size(n) for n in (7, 2048, 3 << 20, 5 << 30)] == [
        "7 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
