"""Where theory says that K-FAC, KFC and the dense method are exact, and where it says they are not.

The core's factors come from `nn` and `losses`; the exact Fisher comes from the oracle, by complex
steps on the same network.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from harness import BACKENDS, EXAMPLES, dtypes, law, rng, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ngd_core import DenseNGD, Hyper, factors, losses, nn, reference
from ngd_core.inversion import kronecker_dense
from ngd_core.testing.assertions import assert_close, assert_far

SHARINGS = ("expand", "reduce")
LIKELIHOODS = ("gaussian", "categorical", "bernoulli")
CURVED = (nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.GELU())
NUMPY = BACKENDS[0]


class Case(NamedTuple):
    """A network, and the layers whose Fisher blocks are looked at."""

    model: nn.Sequential
    params: dict[str, np.ndarray]
    x: np.ndarray
    names: tuple[str, ...] = ("block",)
    likelihood: str = "gaussian"


def case(r, x, layers, fixed=None, **rest) -> Case:
    """Network with random parameters of a size that saturates nothing, but for the fixed ones."""
    model = nn.Sequential(*layers)
    params = {
        name: r.standard_normal(shape) / shape[-1] ** 0.5
        for name, shape in nn.shapes(model).items()
    }
    return Case(model, {**params, **(fixed or {})}, x, **rest)


# the two sides ------------------------------------------------------------------------------


def oracle(model) -> reference.Network:
    """The same network for the oracle."""
    return reference.Network(tuple(_oracle_layer(layer) for layer in model.layers))


def _oracle_layer(layer):
    names = {nn.GlobalAvgPool2d: "global_avg_pool2d", nn.MaxPool2d: "max_pool2d"}
    kind = names.get(type(layer), type(layer).__name__.lower())
    options = {}
    if kind in ("conv2d", "max_pool2d"):
        options = {key: getattr(layer.geometry, key) for key in ("kernel_size", "stride")}
    if kind == "conv2d":
        options |= {key: getattr(layer.geometry, key) for key in ("dilation", "groups")}
        options["padding"] = layer.geometry.pads(1, 1)
        options |= {key: getattr(layer, key) for key in ("in_channels", "out_channels", "bias")}
    if kind == "dense":
        options = {key: getattr(layer, key) for key in ("in_features", "out_features", "bias")}
    return reference.Layer(kind, getattr(layer, "name", ""), **options)


def exact_block(c: Case, name: str) -> np.ndarray:
    """Exact Fisher of one layer's block."""
    network = oracle(c.model)

    def outputs(block):
        return network.forward({**c.params, name: block}, c.x).reshape(len(c.x), -1)

    jacobian = reference.jacobian(outputs, c.params[name])
    hessian = reference.loss_hessian(c.likelihood, network.forward(c.params, c.x))
    return reference.gauss_newton(jacobian.reshape(*jacobian.shape[:2], -1), hessian)


def back_propagate(params, x, extra, *, model, likelihood, kind, xp):
    """Records for a kind of Fisher; `extra` holds its targets or its noise, by name."""
    outputs, tape = nn.forward(model, params, x, xp=xp)
    vectors = losses.fisher_vectors(kind, losses.get(likelihood), outputs, **extra, xp=xp)
    return nn.backward(model, params, tape, vectors, grads=False, xp=xp).records


def kronecker_factors(params, x, extra, *, names, sharing, xp, **rest):
    """A and G of the named layers."""
    records = back_propagate(params, x, extra, **rest, xp=xp)
    return {
        spec.name: factors.kronecker_factors(replace(spec, sharing=sharing), record, xp=xp)
        for spec, record in records.items()
        if spec.name in names
    }


def core_blocks(c: Case, sharing, kind="exact", backend=NUMPY, **extra):
    """G (x) A of the core by layer name, the groups of a convolution on the diagonal."""
    options = {"model": c.model, "likelihood": c.likelihood, "kind": kind}
    arrays = backend.tree((c.params, c.x, extra))
    pairs = backend.call(kronecker_factors, *arrays, names=c.names, sharing=sharing, **options)
    return {
        name: _on_diagonal(backend.numpy(kronecker_dense(G, A, xp=backend.xp)))
        for name, (A, G) in pairs.items()
    }


def _on_diagonal(block: np.ndarray) -> np.ndarray:
    if block.ndim == 2:
        return block
    groups, n, _ = block.shape
    matrix = np.zeros((groups, n, groups, n))
    matrix[np.arange(groups), :, np.arange(groups), :] = block
    return matrix.reshape(groups * n, groups * n)


def distance(got, want) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def examples(share=1.0):
    """Settings for laws that one library is enough for."""
    return settings(
        max_examples=max(2, round(share * EXAMPLES)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# shared positions: the table ----------------------------------------------------------------


def frozen(f, shape):
    """Linear map on arrays of a shape as layers: flatten, multiply with its matrix."""
    size = int(np.prod(shape))
    matrix = np.asarray(f(np.eye(size).reshape(size, *shape))).reshape(size, -1).T
    return [nn.Flatten(), nn.Dense("map", *matrix.shape[::-1], bias=False)], {"map": matrix}


def pooled(kind, channels, height, width):
    """Sum or mean over positions as layers, or none."""
    if kind is None:
        return [], {}
    if kind == "mean":
        return [nn.GlobalAvgPool2d()], {}
    return frozen(lambda z: z.sum(axis=(-2, -1)), (channels, height, width))


def circular(z, kernels):
    """3x3 convolution of a periodic image."""
    z = np.pad(z, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="wrap")
    return reference.conv2d(z, kernels, (3, 3), bias=False)


@st.composite
def last_convolutions(draw, groups=None, pool=None):
    """Anything nonlinear, then a convolution with every option, perhaps pooled."""
    r = rng(draw(seeds))
    groups = draw(st.integers(1, 2)) if groups is None else groups
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.integers(1, 2)) if max(kernel) < 3 else 1
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 1), st.integers(0, 1))] * 2))
    block = nn.Conv2d(
        "block",
        groups,
        groups * draw(st.integers(1, 2)),
        kernel,
        draw(st.tuples(st.integers(1, 2), st.just(1))),
        dilation,
        padding,
        groups,
        bias=draw(st.booleans()),
    )
    first = nn.Conv2d("first", 2, groups, 2, padding=1, bias=draw(st.booleans()))
    middle = draw(st.sampled_from([*CURVED, nn.MaxPool2d(2, 1)]))
    size = (4, 5) if isinstance(middle, nn.MaxPool2d) else (5, 6)
    tail, fixed = pooled(pool, block.out_channels, *block.geometry.output_size(*size))
    x = r.standard_normal((draw(st.integers(1, 3)), 2, 4, 5))
    return case(r, x, [first, middle, block, *tail], fixed)


@st.composite
def first_convolutions(draw, tail, pool=None, most=3):
    """A convolution, then a linear one or a curve, perhaps pooled."""
    r = rng(draw(seeds))
    inputs, hidden, outputs = (draw(st.integers(1, 2)) for _ in range(3))
    height, width = draw(st.tuples(st.integers(4, 5), st.integers(4, 5)))
    kernel, padding = draw(st.sampled_from([(1, 0), (2, 0), (3, 1), (2, ((1, 0), (0, 1)))]))
    block = nn.Conv2d("block", inputs, hidden, kernel, padding=padding, bias=draw(st.booleans()))
    hidden_size = block.geometry.output_size(height, width)
    geometry = {"1x1": (1, 0), "3x3 zero": (3, 1), "3x3 valid": (3, 0)}
    if tail in geometry:
        k, p = geometry[tail]
        after = nn.Conv2d("next", hidden, outputs, k, padding=p, bias=draw(st.booleans()))
        layers, fixed = pooled(pool, outputs, *after.geometry.output_size(*hidden_size))
        layers = [after, *layers]
    elif tail == "3x3 circular":
        kernels = r.standard_normal((outputs, hidden * 9))
        along = (-2, -1) if pool else ()
        layers, fixed = frozen(
            lambda z: circular(z, kernels).sum(axis=along), (hidden, *hidden_size)
        )
    else:
        layers, fixed = pooled(pool, hidden, *hidden_size)
        layers = [nn.Tanh(), *layers]
    x = r.standard_normal((draw(st.integers(1, most)), inputs, height, width))
    return case(r, x, [block, *layers], fixed)


@st.composite
def single_positions(draw):
    """A convolution with one output position: of one datum, or before linear layers."""
    r = rng(draw(seeds))
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    block = nn.Conv2d("block", 2, 3, size, bias=draw(st.booleans()))
    linear = draw(st.booleans())
    middle = [] if linear else [draw(st.sampled_from(CURVED))]
    layers = [block, *middle, nn.Flatten(), nn.Dense("head", 3, 2)]
    return case(r, r.standard_normal((3 if linear else 1, 2, *size)), layers)


TABLE = {
    "last convolution, loss everywhere": (last_convolutions(), "expand"),
    "1x1 after it, loss everywhere": (first_convolutions("1x1"), "expand"),
    "3x3 zero-padded after it, loss everywhere": (first_convolutions("3x3 zero"), ""),
    "3x3 circular after it, loss everywhere": (first_convolutions("3x3 circular"), ""),
    "last convolution, then sum": (last_convolutions(pool="sum"), "reduce"),
    "last convolution, then mean": (last_convolutions(pool="mean"), "reduce"),
    "1x1 after it, then mean": (first_convolutions("1x1", "mean"), "reduce"),
    "3x3 circular after it, then sum": (first_convolutions("3x3 circular", "sum"), "reduce"),
    "3x3 zero-padded after it, then sum": (first_convolutions("3x3 zero", "sum"), ""),
    "3x3 valid after it, then sum": (first_convolutions("3x3 valid", "sum"), ""),
    "one datum, tanh, loss everywhere": (first_convolutions("tanh", most=1), ""),
    "one datum, tanh, then sum": (first_convolutions("tanh", "sum", most=1), ""),
    "one position": (single_positions(), "expand reduce"),
}
"""What is drawn, and which of expand and reduce is exact there."""


@pytest.mark.parametrize("row", TABLE)
def test_shared_positions_are_exact_where_the_table_says_so_and_nowhere_else(row):
    cases, exact = TABLE[row]
    errors = {sharing: [] for sharing in SHARINGS if sharing not in exact}

    @examples()
    @given(cases)
    def check(c):
        want = exact_block(c, "block")
        for sharing in SHARINGS:
            got = core_blocks(c, sharing)["block"]
            if sharing in exact:
                assert_close(got, want, size=c.x.size)
            else:
                assert_far(got, want, least=1e-7)
                errors[sharing].append(np.linalg.norm(got - want) / np.linalg.norm(want))

    check()
    for found in errors.values():
        assert np.median(found) > 0.05


@law(seed=seeds, pool=st.sampled_from([None, "mean"]))
def test_linear_convolutions_are_exact_in_every_library(backend, seed, pool):
    """Every block: KFC with the loss everywhere, reduce with pooling and dense layers behind."""
    r = rng(seed)
    layers = [
        nn.Conv2d("a", 2, 2, (3, 2), (2, 1), padding=((1, 0), (0, 1)), groups=1 if pool else 2),
        nn.Conv2d("b", 2, 3, 1, bias=False),
    ]
    if pool:
        layers += [nn.GlobalAvgPool2d(), nn.Dense("c", 3, 2), nn.Dense("d", 2, 2, bias=False)]
    c = case(r, r.standard_normal((3, 2, 4, 4)), layers, names=tuple("abcd" if pool else "ab"))
    got = core_blocks(c, "reduce" if pool else "expand", backend=backend)
    for name in c.names:
        want = exact_block(c, name)
        if name == "a" and not pool:
            half = len(want) // 2
            assert_far(got[name], want, least=1e-7)
            want = _on_diagonal(np.stack([want[:half, :half], want[half:, half:]]))
        assert_close(got[name], want, size=c.x.size)


@examples()
@given(c=last_convolutions(groups=2), other=last_convolutions(groups=2, pool="sum"))
def test_each_group_of_a_last_convolution_has_its_diagonal_block(c, other):
    """With more than that: the exact Fisher has nothing between the groups."""
    for drawn, sharing in ((c, "expand"), (other, "reduce")):
        want = exact_block(drawn, "block")
        half = len(want) // 2
        assert np.all(want[:half, half:] == 0)
        got = core_blocks(drawn, sharing)["block"]
        for place in (slice(half), slice(half, None)):
            assert_close(got[place, place], want[place, place], size=drawn.x.size)


@examples()
@given(
    seed=seeds,
    n=st.integers(1, 4),
    size=st.sampled_from([(1, 1), (2, 3)]),
    sharing=st.sampled_from(SHARINGS),
    bias=st.booleans(),
    kind=st.sampled_from(["exact", "empirical"]),
)
def test_a_1x1_convolution_is_a_dense_layer_at_every_position(seed, n, size, sharing, bias, kind):
    r = rng(seed)
    dense = [nn.Dense("a", 3, 2, bias), nn.Tanh(), nn.Dense("b", 2, 2, bias)]
    conv = [nn.Conv2d("a", 3, 2, 1, bias=bias), nn.Tanh(), nn.Conv2d("b", 2, 2, 1, bias=bias)]
    x, y = r.standard_normal((n, 3, *size)), r.standard_normal((n, 2, *size))
    one = case(r, x, conv, names=("a", "b"))
    two = case(r, np.moveaxis(x, 1, -1), dense, one.params, names=("a", "b"))
    targets = ({}, {}) if kind == "exact" else ({"targets": y}, {"targets": np.moveaxis(y, 1, -1)})
    got, want = (
        core_blocks(c, sharing, kind, **extra) for c, extra in zip((one, two), targets, strict=True)
    )
    for name in one.names:
        assert_close(got[name], want[name], size=x.size)
    if size == (1, 1):
        two = two._replace(x=x[:, :, 0, 0])
        flat = core_blocks(two, sharing, kind, **{k: v[:, 0, 0] for k, v in targets[1].items()})
        for name in one.names:
            assert_close(got[name], flat[name], size=x.size)


# no shared positions, or linear networks: the cases T1 to T4 ----------------------------------


def targets_of(r, likelihood, outputs):
    """Random labels."""
    if likelihood == "categorical":
        return r.integers(0, outputs.shape[-1], outputs.shape[:-1])
    y = r.standard_normal(outputs.shape)
    return (y > 0).astype(float) if likelihood == "bernoulli" else y


def noise_of(r, likelihood, outputs, samples):
    """Noise for sampled targets."""
    known = losses.get(likelihood)
    shape = (samples, *known.noise_shape(outputs))
    return r.random(shape) if known.noise == "uniform" else r.standard_normal(shape)


def sampled(c: Case, noise):
    """The oracle's targets for each sample of the noise."""
    outputs = oracle(c.model).forward(c.params, c.x)
    return [reference.sample_targets(c.likelihood, outputs, one) for one in noise]


def mlp(r, x, widths, between=(), bias=True, tail=(), fixed=None, **rest):
    """Dense layers a, b, c, ... with something between them."""
    layers = []
    for name, (inputs, outputs) in zip("abcdef", pairwise(widths), strict=False):
        layers += [nn.Dense(name, inputs, outputs, bias), *between]
    names = tuple("abcdef"[: len(widths) - 1])
    return case(r, x, [*layers, *tail], fixed, names=names, **rest)


def assert_blocks(got, fisher, c: Case, names=None):
    want = reference.diagonal_blocks(fisher, oracle(c.model))
    for name in names or c.names:
        assert_close(got[name], want[name], size=c.x.size)


def assert_blocks_far(got, fisher, c: Case, names=None, least=1e-7):
    want = reference.diagonal_blocks(fisher, oracle(c.model))
    for name in names or c.names:
        assert_far(got[name], want[name], least=least)


@examples()
@given(
    seed=seeds,
    n=st.integers(1, 3),
    widths=st.sampled_from([(5, 4, 4, 2), (3, 2), (2, 3, 3)]),
    curve=st.sampled_from(CURVED),
    likelihood=st.sampled_from(LIKELIHOODS),
    bias=st.booleans(),
    sharing=st.sampled_from(SHARINGS),
)
def test_one_datum_is_exact_for_every_kind_of_fisher(
    seed, n, widths, curve, likelihood, bias, sharing
):
    """T1: copies of one datum, any activation after every layer, any loss, any labels."""
    r = rng(seed)
    x = np.repeat(r.standard_normal((1, widths[0])), n, axis=0)
    c = mlp(r, x, widths, [curve], bias, likelihood=likelihood)
    network, given_ = oracle(c.model), (c.params, c.x, likelihood)
    assert_blocks(core_blocks(c, sharing), reference.exact_fisher(network, *given_), c)
    outputs = network.forward(c.params, c.x)
    y, noise = targets_of(r, likelihood, outputs), noise_of(r, likelihood, outputs, 3)
    got = core_blocks(c, sharing, "empirical", targets=y)
    assert_blocks(got, reference.empirical_fisher(network, *given_, y), c)
    got = core_blocks(c, sharing, "mc", noise=noise)
    assert_blocks(got, reference.monte_carlo_fisher(network, *given_, sampled(c, noise)), c)


@examples()
@given(seed=seeds, n=st.integers(2, 4), bias=st.booleans(), sharing=st.sampled_from(SHARINGS))
def test_two_data_are_not_exact_behind_a_curve_or_a_curved_loss(seed, n, bias, sharing):
    r = rng(seed)
    x = r.standard_normal((n, 3))
    c = mlp(r, x, (3, 3, 2), [nn.Tanh()], bias)
    exact = reference.exact_fisher(oracle(c.model), c.params, c.x, "gaussian")
    assert_blocks_far(core_blocks(c, sharing), exact, c)
    for likelihood in ("categorical", "bernoulli"):
        c = mlp(r, x, (3, 3, 2), (), bias, likelihood=likelihood)
        exact = reference.exact_fisher(oracle(c.model), c.params, c.x, likelihood)
        assert_blocks_far(core_blocks(c, sharing), exact, c)


@examples()
@given(
    seed=seeds,
    n=st.integers(1, 6),
    positions=st.sampled_from([(), (1,), (5,), (2, 2)]),
    bias=st.booleans(),
)
def test_a_deep_linear_network_is_exact_but_not_for_the_empirical_fisher(seed, n, positions, bias):
    """T2: square loss at every position, any data."""
    r = rng(seed)
    c = mlp(r, r.standard_normal((n, *positions, 4)), (4, 3, 3, 2), (), bias)
    network, given_ = oracle(c.model), (c.params, c.x, "gaussian")
    exact, shared = reference.exact_fisher(network, *given_), np.prod(positions) > 1
    assert_blocks(core_blocks(c, "expand"), exact, c)
    (assert_blocks_far if shared else assert_blocks)(core_blocks(c, "reduce"), exact, c)
    if n > 1 or shared:
        y = targets_of(r, "gaussian", network.forward(c.params, c.x))
        empirical = reference.empirical_fisher(network, *given_, y)
        for sharing in SHARINGS if n > 1 else ("expand",):
            got = core_blocks(c, sharing, "empirical", targets=y)
            assert_blocks_far(got, empirical, c)


@examples()
@given(
    seed=seeds,
    n=st.integers(1, 4),
    widths=st.sampled_from([(3, 2), (4, 3, 3, 2)]),
    pool=st.sampled_from(["sum", "mean"]),
    bias=st.booleans(),
)
def test_reduce_is_exact_for_a_deep_linear_network_before_pooling(seed, n, widths, pool, bias):
    """T3: five positions, square loss of their sum or mean."""
    r = rng(seed)
    tail, fixed = frozen(lambda z: getattr(z, pool)(axis=1), (5, widths[-1]))
    c = mlp(r, r.standard_normal((n, 5, widths[0])), widths, (), bias, tail, fixed)
    for name in c.names:
        want = exact_block(c, name)
        assert_close(core_blocks(c, "reduce")[name], want, size=c.x.size)
        assert_far(core_blocks(c, "expand")[name], want, least=1e-7)


@examples()
@given(seed=seeds, n=st.integers(1, 4), bias=st.booleans())
def test_reduce_is_exact_on_both_sides_of_a_pooling(seed, n, bias):
    """T4: 7-3-3-3-2 with pooling after the second layer; behind it expand is exact too.

    Before it only A differs, but for the number of positions, which G holds once or twice.
    """
    r = rng(seed)
    pool, fixed = frozen(lambda z: z.sum(axis=1), (5, 3))
    layers = [
        *(nn.Dense("a", 7, 3, bias), nn.Dense("b", 3, 3, bias)),
        *pool,
        *(nn.Dense("c", 3, 3, bias), nn.Dense("d", 3, 2, bias)),
    ]
    c = case(r, r.standard_normal((n, 5, 7)), layers, fixed, names=tuple("abcd"))
    got = {sharing: core_blocks(c, sharing) for sharing in SHARINGS}
    for name in c.names:
        want = exact_block(c, name)
        assert_close(got["reduce"][name], want, size=c.x.size)
        if name in "cd":
            assert_close(got["expand"][name], want, size=c.x.size)
        else:
            assert_far(got["expand"][name], want, least=1e-7)
    options = {"model": c.model, "likelihood": c.likelihood, "kind": "exact", "names": ("a", "b")}
    expand, reduce = (
        NUMPY.call(kronecker_factors, c.params, c.x, {}, sharing=sharing, **options)
        for sharing in SHARINGS
    )
    for name in options["names"]:
        assert_close(reduce[name][1], 5 * expand[name][1], size=c.x.size)


# sampling -------------------------------------------------------------------------------------

SAMPLES = 4000


def standard_scores(c: Case, sharing, noise, exact: dict[str, np.ndarray]) -> np.ndarray:
    """Deviations of the sampled blocks from the exact ones in standard errors, entry by entry."""
    options = {"model": c.model, "likelihood": c.likelihood, "kind": "mc", "names": c.names}
    arrays = (c.params, c.x, {"noise": noise})
    pairs = NUMPY.call(kronecker_factors, *arrays, sharing=sharing, **options)
    del options["names"]
    records = {s.name: r for s, r in NUMPY.call(back_propagate, *arrays, **options).items()}
    scores = []
    for name, (A, G) in pairs.items():
        m, n, *_, outputs = records[name].g.shape
        g = records[name].g.reshape(m, n, -1, outputs)
        if sharing == "reduce":
            g = g.sum(axis=2, keepdims=True)
        each = m * np.einsum("mnto,mntp->mop", g, g) / n
        error = np.kron(np.std(each, axis=0) / m**0.5, np.abs(A))
        assert np.linalg.norm(error) < 0.2 * np.linalg.norm(exact[name])
        noticeable = error > 1e-9 * np.max(error)
        scores.append((np.kron(G, A) - exact[name])[noticeable] / error[noticeable])
    return np.concatenate(scores)


def sampling_cases(r):
    """Networks for which the expectation over samples is exact: T1, T2 and T3."""
    one, many = r.standard_normal((1, 3)), r.standard_normal((3, 5, 3))
    for likelihood in LIKELIHOODS:
        yield mlp(r, one, (3, 3, 2), [nn.Tanh()], likelihood=likelihood), "expand"
    yield mlp(r, many[:, 0], (3, 3, 2)), "reduce"
    yield mlp(r, many, (3, 3, 2)), "expand"
    tail, fixed = frozen(lambda z: z.sum(axis=1), (5, 2))
    yield mlp(r, many, (3, 3, 2), tail=tail, fixed=fixed), "reduce"


@pytest.mark.parametrize("seed", range(4))
def test_sampled_fishers_converge_to_the_exact_one(seed):
    """Within 6 standard errors, and outside of them if the noise has another distribution."""
    r = rng(seed)
    for c, sharing in sampling_cases(r):
        exact = {name: exact_block(c, name) for name in c.names}
        outputs = oracle(c.model).forward(c.params, c.x)
        noise = noise_of(r, c.likelihood, outputs, SAMPLES)
        assert np.max(np.abs(standard_scores(c, sharing, noise, exact))) < 6
        wrong = 1.2 * noise if c.likelihood == "gaussian" else noise**2
        assert np.max(np.abs(standard_scores(c, sharing, wrong, exact))) > 6


@examples()
@given(
    seed=seeds,
    likelihood=st.sampled_from(LIKELIHOODS),
    shape=st.sampled_from([(2, 3), (3, 2, 2), (2, 2, 1, 3)]),
)
def test_the_root_of_the_loss_hessian_is_one(seed, likelihood, shape):
    """T6: S S^T = H, with the softmax's root diag(sqrt(p)) - p sqrt(p)^T among them."""
    outputs = rng(seed).standard_normal(shape)
    vectors = losses.fisher_vectors("exact", losses.get(likelihood), outputs)
    flat = vectors.reshape(len(vectors), shape[0], -1)
    got = np.einsum("mni,mnj->nij", flat, flat)
    assert_close(got, reference.loss_hessian(likelihood, outputs), size=outputs.size)


# the dense method -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def small_network(seed, likelihood, bias=True, curve=None):
    """A convolution and a dense layer, or with a curve two convolutions, one of them grouped."""
    r = rng(seed)
    layers = [nn.Conv2d("a", 1, 2, 2, padding=((1, 0), (0, 1)), bias=bias), curve or nn.Tanh()]
    if curve:
        options = {"padding": ((1, 0), (0, 1)), "groups": 2, "bias": bias}
        layers += [nn.MaxPool2d(2, 1), nn.Conv2d("b", 2, 2, (2, 1), **options), curve]
    layers += [nn.Flatten(), nn.Dense("c", 12 if curve else 18, 2, bias=bias)]
    c = case(r, r.standard_normal((3, 1, 3, 3)), layers, likelihood=likelihood)
    outputs = oracle(c.model).forward(c.params, c.x)
    return c, targets_of(r, likelihood, outputs), noise_of(r, likelihood, outputs, 2)


@functools.lru_cache(maxsize=256)
def true_direction(kind, blockwise, damping, *drawn):
    """Natural gradient of the oracle."""
    c, targets, noise = small_network(*drawn)
    samples = sampled(c, noise) if kind == "mc" else None
    return reference.natural_gradient(
        oracle(c.model), c.params, c.x, targets, c.likelihood, damping, kind, samples, blockwise
    )


def natural_gradient(params, x, targets, extra, *, model, method, damping, xp, **rest):
    """Direction of a method after one batch, by layer name."""
    outputs, tape = nn.forward(model, params, x, xp=xp)
    loss = losses.get(rest["likelihood"])
    grads = nn.backward(model, params, tape, loss.gradient(outputs, targets, xp=xp), xp=xp).grads
    records = back_propagate(params, x, extra, model=model, **rest, xp=xp)
    hyper, specs = Hyper(damping=damping), tuple(records)
    state = method.accumulate(method.init(specs, x, xp=xp), records, hyper, xp=xp)
    state, _ = method.refresh(state, hyper, xp=xp)
    grads = {spec: grads[spec.name] for spec in specs}
    directions, _ = method.direction(state, grads, {}, hyper, xp=xp)
    return {spec.name: direction for spec, direction in directions.items()}


def assert_natural(backend, kind, blockwise, damping, dtype, *drawn):
    want = true_direction(kind, blockwise, damping, *drawn)
    c, targets, noise = small_network(*drawn)
    extra = {"exact": {}, "mc": {"noise": noise}, "empirical": {"targets": targets}}[kind]
    got = backend.call(
        natural_gradient,
        *backend.tree((c.params, c.x, targets, extra), dtype),
        model=c.model,
        method=DenseNGD(blocks="layer" if blockwise else "full"),
        damping=damping,
        likelihood=c.likelihood,
        kind=kind,
    )
    largest = max(float(np.max(np.abs(block))) for block in want.values())
    for name, direction in backend.numpy(got).items():
        assert_close(direction, want[name], dtype=dtype, size=50, kappa=1 / damping, scale=largest)


dense = {
    "seed": seeds,
    "likelihood": st.sampled_from(LIKELIHOODS),
    "kind": st.sampled_from(["exact", "mc", "empirical"]),
    "blockwise": st.booleans(),
    "damping": st.sampled_from([0.01, 0.1, 1.0]),
}


@law(**dense, dtype=dtypes)
def test_the_dense_method_is_the_natural_gradient(
    backend, seed, likelihood, kind, blockwise, damping, dtype
):
    assert_natural(backend, kind, blockwise, damping, dtype, seed, likelihood)


@examples()
@given(**dense, bias=st.booleans(), curve=st.sampled_from(CURVED))
def test_the_dense_method_is_the_natural_gradient_of_any_network(
    seed, likelihood, kind, blockwise, damping, bias, curve
):
    assert_natural(NUMPY, kind, blockwise, damping, "float64", seed, likelihood, bias, curve)
