"""What a step must not depend on: parametrisation, batching, scale of the loss, array library."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness import BACKENDS, EXAMPLES, dtypes, law, rng, seeds
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ngd_core import (
    EKFAC,
    KFAC,
    SNGD,
    DenseNGD,
    Hyper,
    LayerRecord,
    LayerSpec,
    ProjectiveKFAC,
    TridiagonalKFAC,
    factors,
    losses,
    nn,
)
from ngd_core.testing.assertions import assert_close, assert_far

NUMPY = BACKENDS[0]
METHODS = {
    "pi": KFAC(),
    "exact": KFAC(damping_split="exact"),
    "full": DenseNGD(),
    "layer": DenseNGD(blocks="layer"),
}
KINDS = ("exact", "mc", "empirical")
RATE = 0.1
WORST = 1e7


def examples(share=1.0):
    """Settings for laws that one library is enough for."""
    return settings(
        max_examples=max(2, round(share * EXAMPLES)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Batch(NamedTuple):
    """Inputs, labels, and noise for sampled labels."""

    x: Any
    targets: Any
    noise: Any


def batch_of(r, x, shape, likelihood, samples=1) -> Batch:
    """Labels and noise for outputs of a shape."""
    if likelihood == "categorical":
        return Batch(x, r.integers(0, shape[-1], shape[:-1]), r.random((samples, *shape[:-1])))
    if likelihood == "bernoulli":
        return Batch(x, r.integers(0, 2, shape).astype(float), r.random((samples, *shape)))
    return Batch(x, r.standard_normal(shape), r.standard_normal((samples, *shape)))


def measure(params, batch, *, model, likelihood, kind, scale=1.0, undo=True, xp):
    """Gradients of the mean loss, and records for a kind of Fisher.

    The loss is scaled before the backward pass, and after it the scale is undone: always in the
    gradients, in the records if `undo`.
    """
    loss = losses.get(likelihood)
    outputs, tape = nn.forward(model, params, batch.x, xp=xp)
    g = scale * loss.gradient(outputs, batch.targets, xp=xp)
    grads = nn.backward(model, params, tape, g, xp=xp).grads
    extra = {"exact": {}, "mc": {"noise": batch.noise}, "empirical": {"targets": batch.targets}}
    vectors = scale * losses.fisher_vectors(kind, loss, outputs, **extra[kind], xp=xp)
    records = nn.backward(model, params, tape, vectors, grads=False, xp=xp).records
    return (
        {name: grad / scale for name, grad in grads.items()},
        {spec: LayerRecord(r.a, r.g / scale if undo else r.g) for spec, r in records.items()},
    )


def curvatures(state) -> list:
    """Averaged factors of each block: two for K-FAC, one for the dense method."""
    if hasattr(state, "layers"):
        return [(layer.a, layer.g) for layer in state.layers.values()]
    return [(block.fisher,) for block in state.blocks.values()]


def condition(found, damping=0.0) -> float:
    """Largest condition number of a damped block, from its factors' eigenvalues."""
    largest = 1.0
    for block in found:
        spectra = [np.linalg.eigvalsh(np.asarray(factor, np.float64)) for factor in block]
        high = np.prod([np.max(w, axis=-1) for w in spectra], axis=0)
        low = np.prod([np.min(w, axis=-1) for w in spectra], axis=0)
        largest = max(largest, float(np.max((high + damping) / np.maximum(low + damping, 1e-99))))
    return largest


# parametrisation: theorem 1 of K-FAC, theorem 3 of KFC ----------------------------------------


class Pair(NamedTuple):
    """Two parametrisations of one function; `names` are the layers that learn."""

    models: tuple[nn.Sequential, nn.Sequential]
    params: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    inputs: tuple[np.ndarray, np.ndarray]
    probes: tuple[np.ndarray, np.ndarray]
    names: tuple[str, ...]


def affine(r, n, shift) -> tuple[np.ndarray, np.ndarray]:
    """Invertible matrix near the identity, and a shift or none."""
    matrix = np.eye(n) + 0.3 * r.standard_normal((n, n)) / n**0.5
    return matrix, 0.5 * r.standard_normal(n) if shift else np.zeros(n)


def transformed(block, inner, outer, bias):
    """Block of a layer that reads ``V a + d`` and is followed by ``Phi s + c``.

    Its kernel taps, or the positions of a flattened image, all see the same V and d.
    """
    (Phi, c), (V, d) = inner, outer
    rows, channels = len(Phi), len(V)
    weight = block[:, :-1] if bias else block
    taps = weight.reshape(rows, channels, -1)
    taps = np.einsum("pr,rck,cd->pdk", np.linalg.inv(Phi), taps, np.linalg.inv(V))
    if not bias:
        return taps.reshape(weight.shape)
    offset = np.linalg.solve(Phi, block[:, -1] - c) - np.sum(taps, axis=2) @ d
    return np.concatenate([taps.reshape(weight.shape), offset[:, None]], axis=1)


def step_of(params, batch, probe, *, model, names, method, damping, rate, xp, **rest):
    """Outputs before and after one step of the named layers, and the curvature used."""
    grads, records = measure(params, batch, model=model, xp=xp, **rest)
    records = {spec: record for spec, record in records.items() if spec.name in names}
    hyper = Hyper(damping=damping)
    state = method.init(tuple(records), batch.x, xp=xp)
    state, _ = method.refresh(method.accumulate(state, records, hyper, xp=xp), hyper, xp=xp)
    own = {spec: grads[spec.name] for spec in records}
    directions, _ = method.direction(state, own, {}, hyper, xp=xp)
    moved = {spec.name: params[spec.name] - rate * u for spec, u in directions.items()}
    before = nn.predict(model, params, probe, xp=xp)
    after = nn.predict(model, {**params, **moved}, probe, xp=xp)
    return before, after, curvatures(state)


class Steps(NamedTuple):
    """Outputs before a step and their changes, in both parametrisations.

    `kappa` is the worst condition number of a block, `size` its number of parameters: what stands
    for no damping is a damping of ``10 eps tr(F)``.
    """

    before: tuple[np.ndarray, np.ndarray]
    change: tuple[np.ndarray, np.ndarray]
    kappa: float
    size: int


def steps(pair: Pair, targets, noise, method, damping=0.0, backend=NUMPY, **rest) -> Steps:
    found = []
    for model, params, x, probe in zip(*pair[:4], strict=True):
        options = {"model": model, "names": pair.names, "method": METHODS[method], **rest}
        arrays = backend.tree((params, Batch(x, targets, noise), probe))
        before, after, used = backend.numpy(
            backend.call(step_of, *arrays, damping=damping, rate=RATE, **options)
        )
        found.append((before, after - before, condition(used, damping)))
    before, change, kappas = zip(*found, strict=True)
    sizes = [pair.params[0][name].size for name in pair.names]
    return Steps(before, change, max(kappas), sum(sizes) if method == "full" else max(sizes))


def assert_same(found: Steps):
    """Equal outputs before the step, and equal changes of them."""
    assert found.kappa < WORST
    assert_close(found.before[1], found.before[0], size=found.size)
    assert_close(found.change[1], found.change[0], size=found.size, kappa=found.kappa)


def assert_other(found: Steps, least):
    assert_far(found.change[1], found.change[0], least=least)


def reparametrised(r, layers, x, probe, shift=True, filled=False, maps=affine) -> Pair:
    """Random parameters, and the same function with an affine map around every curve.

    Layers read ``V a + d`` with d = 0 unless `shift`, pointwise in images. Where they pad, they
    pad with 0, or with d if `filled`: by a map that pads its own input and so gives its bias.
    """
    learned = [layer for layer in layers if hasattr(layer, "spec")]
    shapes = {layer.name: layer.block_shape for layer in learned}
    params = {name: r.standard_normal(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    others: dict[str, np.ndarray] = {}
    chain: list[Any] = []

    def put(matrix, offset, images, padding=0):
        name, n = f"map {len(chain)}", len(matrix)
        chain.append(nn.Conv2d(name, n, n, 1, padding=padding) if images else nn.Dense(name, n, n))
        others[name] = np.concatenate([matrix, offset[:, None]], axis=1)

    images, channels = x.ndim == 4, x.shape[1]
    outer, waiting = maps(r, channels, shift), True
    for layer in layers:
        flattens = isinstance(layer, (nn.Flatten, nn.GlobalAvgPool2d))
        padding = layer.padding if filled and isinstance(layer, nn.Conv2d) else 0
        if waiting and (flattens or layer in learned):
            put(*outer, images, padding)
            waiting = False
        if flattens:
            chain.append(layer)
            images = False
        elif layer in learned:
            channels = layer.block_shape[-2]
            last = layer is learned[-1]
            inner = (np.eye(channels), np.zeros(channels))
            if not last:
                inner = maps(r, channels, layer.bias)
            others[layer.name] = transformed(params[layer.name], inner, outer, layer.bias)
            chain.append(replace(layer, padding="valid") if padding else layer)
            if not last:
                put(*inner, images)
        else:
            chain.append(layer)
            outer, waiting = maps(r, channels, shift), True
    first = chain.pop(0)
    return Pair(
        (nn.Sequential(*layers), nn.Sequential(*chain)),
        (params, {name: others[name] for name in nn.shapes(nn.Sequential(*chain))}),
        (x, nn.predict(first, others, x)),
        (probe, nn.predict(first, others, probe)),
        tuple(params),
    )


def perceptron(widths, bias=True, curve=None):
    """Dense layers a, b, c with a curve between them."""
    layers = []
    for name, (inputs, outputs) in zip("abc", pairwise(widths), strict=False):
        layers += [nn.Dense(name, inputs, outputs, bias), curve or nn.Tanh()]
    return layers[:-1]


def fisher(r, kind, likelihood, outputs):
    """Options that say which Fisher, with labels and noise for outputs of a shape."""
    _, targets, noise = batch_of(r, None, outputs, likelihood)
    return {"kind": kind, "likelihood": likelihood, "targets": targets, "noise": noise}


REGULAR = st.sampled_from(["gaussian", "bernoulli"])  # the softmax has a singular last factor
kinds = st.sampled_from(KINDS)


@examples()
@given(
    seed=seeds,
    method=st.sampled_from(sorted(METHODS)),
    kind=kinds,
    likelihood=REGULAR,
    widths=st.sampled_from([(3, 2), (3, 3, 2), (2, 2, 3, 2)]),
    bias=st.booleans(),
)
def test_a_step_does_not_depend_on_affine_maps_around_the_curves(
    seed, method, kind, likelihood, widths, bias
):
    """Theorem 1 of Martens and Grosse (2015): undamped; with damping it is not so."""
    r = rng(seed)
    x, probe = (2 * r.standard_normal((n, widths[0])) for n in (60, 5))
    pair = reparametrised(r, perceptron(widths, bias), x, probe, shift=bias)
    options = {"method": method, **fisher(r, kind, likelihood, (60, widths[-1]))}
    found = steps(pair, **options)
    assume(found.kappa < WORST)
    assert_same(found)
    assert_other(steps(pair, **options, damping=1.0), least=1e-4)


NONE = (np.eye(3), np.zeros(3))


def stated(r, curves, others, input_map=NONE) -> Pair:
    """Networks 3-3-2 with these curves, the second one with `others` made of the first's blocks."""
    models = tuple(nn.Sequential(*perceptron((3, 3, 2), curve=curve)) for curve in curves)
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(models[0]).items()}
    V, d = input_map
    x, probe = (2 * r.standard_normal((n, 3)) for n in (60, 5))
    blocks = {name: transformed(params[name], *maps, bias=True) for name, maps in others.items()}
    return Pair(models, (params, blocks), (x, x @ V.T + d), (probe, probe @ V.T + d), ("a", "b"))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_of_sigmoids_steps_as_one_of_hyperbolic_tangents(method):
    """tanh(s / 2) = 2 sigmoid(s) - 1."""
    r = rng(0)
    one = (np.eye(2), np.zeros(2))
    half, double = (2 * np.eye(3), np.zeros(3)), (2 * np.eye(3), -np.ones(3))
    pair = stated(r, (nn.Sigmoid(), nn.Tanh()), {"a": (half, NONE), "b": (one, double)})
    assert_same(steps(pair, method=method, **fisher(r, "exact", "gaussian", (60, 2))))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_depend_on_affine_preprocessing_of_the_inputs(method):
    """Other units and another origin change nothing; a step of steepest descent they do change."""
    r = rng(1)
    maps = np.asarray([[0.1, 0, 0], [1, 3, 0], [0, 0, -1]]), np.asarray([2, -1, 0.5])
    one = (np.eye(2), np.zeros(2))
    pair = stated(r, (nn.Tanh(), nn.Tanh()), {"a": (NONE, maps), "b": (one, NONE)}, maps)
    options = {"method": method, **fisher(r, "exact", "gaussian", (60, 2))}
    assert_same(steps(pair, **options))
    assert_other(steps(pair, **options, damping=1e9), least=0.1)


def test_kfac_is_steepest_descent_in_the_whitened_network():
    """Corollary 3: where inputs are centred and white, and output gradients white."""
    x, probe = (2 * rng(2).standard_normal((n, 3)) for n in (60, 5))
    options = fisher(rng(3), "exact", "gaussian", (60, 2))
    loss = {key: options[key] for key in ("kind", "likelihood")}
    layers = perceptron((3, 3, 2))

    def moments(pair, k):
        batch = Batch(pair.inputs[k], options["targets"], None)
        _, records = measure(pair.params[k], batch, model=pair.models[k], **loss, xp=np)
        return {spec.name: factors.kronecker_factors(spec, r) for spec, r in records.items()}

    plain = moments(reparametrised(rng(4), layers, x, probe), 0)
    (A, G), (B, _) = plain["a"], plain["b"]
    maps = iter([whitening(A), (np.linalg.inv(np.linalg.cholesky(G)).T, np.zeros(3)), whitening(B)])
    pair = reparametrised(rng(4), layers, x, probe, maps=lambda *_: next(maps))
    white = moments(pair, 1)
    kappa = float(max(np.linalg.cond(factor) for factor in (A, G, B)))
    for name in pair.names:
        for factor in white[name]:
            assert_close(factor, np.eye(len(factor)), size=60, kappa=kappa)
    change, _ = steps(pair, method="exact", **options).change
    model, params = pair.models[1], pair.params[1]
    batch = Batch(pair.inputs[1], options["targets"], None)
    grads, _ = measure(params, batch, model=model, **loss, xp=np)
    moved = {name: params[name] - RATE * grads[name] for name in pair.names}
    after = nn.predict(model, {**params, **moved}, pair.probes[1])
    other = after - nn.predict(model, params, pair.probes[1])
    assert_close(other, change, size=60, kappa=kappa**2)


def whitening(A):
    """V and d for which V a + d has mean 0 and covariance I, from the second moments of [a; 1]."""
    mean = A[-1, :-1]
    V = np.linalg.inv(np.linalg.cholesky(A[:-1, :-1] - np.outer(mean, mean)))
    return V, -V @ mean


CONVOLUTIONS = {
    "seed": seeds,
    "method": st.sampled_from(["pi", "exact"]),
    "kind": kinds,
    "likelihood": REGULAR,
    "sharing": st.sampled_from(["expand", "reduce"]),
    "head": st.sampled_from(["everywhere", "flat", "pooled"]),
}


def convolutions(head, sharing, padding, kernel, stride, size):
    """Two convolutions, the loss at each position, or behind a dense layer."""
    options = {"padding": padding, "sharing": sharing}
    a = nn.Conv2d("a", 2, 2, kernel, **options)
    b = nn.Conv2d("b", 2, 2, kernel, stride, **options)
    if head == "everywhere":
        return [a, nn.Tanh(), b]
    if head == "pooled":
        return [a, nn.Tanh(), b, nn.Tanh(), nn.GlobalAvgPool2d(), nn.Dense("c", 2, 2)]
    height, width = b.geometry.output_size(*a.geometry.output_size(*size))
    flat = nn.Dense("c", 2 * height * width, 2)
    return [a, nn.Tanh(), b, nn.Tanh(), nn.Flatten(), flat]


def image_steps(
    seed,
    method,
    kind,
    likelihood,
    sharing,
    head,
    padding,
    kernel,
    stride,
    size,
    backend=NUMPY,
    **reparametrisation,
):
    r = rng(seed)
    layers = convolutions(head, sharing, padding, kernel, stride, size)
    x, probe = (2 * r.standard_normal((n, 2, *size)) for n in (60, 3))
    pair = reparametrised(r, layers, x, probe, **reparametrisation)
    outputs = nn.predict(pair.models[0], pair.params[0], x).shape
    return steps(pair, method=method, backend=backend, **fisher(r, kind, likelihood, outputs))


@examples()
@given(
    **CONVOLUTIONS,
    kernel=st.sampled_from([(2, 2), (3, 2)]),
    stride=st.sampled_from([1, (2, 1)]),
)
def test_kfc_steps_do_not_depend_on_pointwise_affine_maps_without_padding(kernel, stride, **drawn):
    """Theorem 3 of Grosse and Martens (2016), for convolutions that read nothing but the image."""
    geometry = {"padding": 0, "kernel": kernel, "stride": stride, "size": (6, 5)}
    found = image_steps(**drawn, **geometry)
    assume(found.kappa < WORST)
    assert_same(found)


PADDED = {"padding": 1, "kernel": 3, "stride": 1, "size": (3, 3)}


@examples()
@given(**CONVOLUTIONS)
def test_kfc_steps_with_zero_padding_do_not_depend_on_pointwise_linear_maps(**drawn):
    found = image_steps(**drawn, **PADDED, shift=False)
    assume(found.kappa < WORST)
    assert_same(found)


@law(seed=st.integers(0, 3), method=st.sampled_from(["pi", "exact"]))
def test_theorem_3_and_its_qualifier_hold_in_every_library(backend, seed, method):
    """Without padding invariant, with zero padding and a shift not."""
    one = {"kind": "exact", "likelihood": "gaussian", "sharing": "expand", "head": "flat"}
    drawn = {"seed": seed, "method": method, "backend": backend, **one}
    found = image_steps(**drawn, padding=0, kernel=(2, 2), stride=1, size=(3, 3))
    assume(found.kappa < WORST)
    assert_same(found)
    assert_other(image_steps(**drawn, **PADDED), least=1e-4)


@examples()
@given(**CONVOLUTIONS)
def test_kfc_steps_with_zero_padding_do_depend_on_shifts(**drawn):
    """The padding stays 0 where the map takes 0 to d: not even the functions are equal."""
    found = image_steps(**drawn, **PADDED)
    assert_far(found.before[1], found.before[0], least=1e-4)
    assert_other(found, least=1e-4)


@examples()
@given(**CONVOLUTIONS)
def test_kfc_steps_do_not_depend_on_shifts_if_the_padding_is_shifted_too(**drawn):
    found = image_steps(**drawn, **PADDED, filled=True)
    assume(found.kappa < WORST)
    assert_same(found)


# batching, reduction, library: the scale contract ---------------------------------------------


def descend(params, plan, *, model, method, scales, damping, decay, later=1.0, xp, **rest):
    """Parameters, last directions and curvature after the steps of a plan.

    A step is a list of micro-batches: all but the first are folded in with the decay `later`,
    their gradients are averaged by their numbers of examples.
    """
    specs = nn.specs(model)
    state = method.init(specs, plan[0][0].x, xp=xp)
    for step, scale in zip(plan, scales, strict=True):
        total = sum(batch.x.shape[0] for batch in step)
        grads = dict.fromkeys(params, 0.0)
        for k, batch in enumerate(step):
            found, records = measure(params, batch, model=model, scale=scale, xp=xp, **rest)
            hyper = Hyper(damping=damping, decay=later if k else decay)
            state = method.accumulate(state, records, hyper, xp=xp)
            share = batch.x.shape[0] / total
            grads = {name: grads[name] + share * found[name] for name in params}
        state, _ = method.refresh(state, hyper, xp=xp)
        own = {spec: grads[spec.name] for spec in specs}
        directions, _ = method.direction(state, own, {}, hyper, xp=xp)
        moved = {spec.name: directions[spec] for spec in specs}
        params = {name: params[name] - RATE * moved[name] for name in params}
    return params, moved, curvatures(state)


def take(batch: Batch, index) -> Batch:
    return Batch(batch.x[index], batch.targets[index], batch.noise[:, index])


def planned(r, batches, how):
    """The same steps in another way: their micro-batches, and the scale of each one's loss."""
    plan, scales = [], []
    for batch in batches:
        n = len(batch.x)
        order = r.permutation(n) if how in ("permuted", "micro-batches") else np.arange(n)
        if how == "duplicated":
            order = np.tile(order, 3)
        parts = [order]
        if how == "micro-batches":
            parts = [order[:2], order[2:-1], order[-1:]]
        plan.append([take(batch, part) for part in parts])
        scales.append({"sum": float(n), "mean": 1 / n}.get(how, 1.0))
    return plan, tuple(scales)


PLANS = ("alike", "permuted", "duplicated", "micro-batches", "sum", "mean")


@functools.lru_cache(maxsize=256)
def journey(seed, method, kind, likelihood, how, model, size, counts, damping=0.1):
    """Arguments of `descend` for steps of `counts` examples, done in one way."""
    r = rng(seed)
    params = {n: r.standard_normal(s) / s[-1] ** 0.5 for n, s in nn.shapes(model).items()}
    batches = []
    for n in counts:
        x = r.standard_normal((n, *size))
        outputs = nn.predict(model, params, x).shape
        batches.append(batch_of(r, x, outputs, likelihood, samples=2))
    plan, scales = planned(r, batches, how)
    options = {"model": model, "method": METHODS[method], "kind": kind, "likelihood": likelihood}
    return (params, plan), {**options, "scales": scales, "damping": damping, "decay": 0.7}


SMALL = nn.Sequential(
    nn.Conv2d("a", 1, 2, 2, padding=((1, 0), (0, 0))), nn.Tanh(), nn.Flatten(), nn.Dense("b", 6, 2)
)


@law(
    seed=seeds,
    method=st.sampled_from(["pi", "exact"]),
    kind=kinds,
    likelihood=st.sampled_from(["gaussian", "categorical"]),
    how=st.sampled_from(PLANS),
    dtype=dtypes,
)
def test_steps_are_those_of_numpy_however_the_batch_comes(
    backend, seed, method, kind, likelihood, how, dtype
):
    """Duplicated, permuted, in micro-batches, loss as sum or mean, in every library."""
    drawn = (seed, method, kind, likelihood)
    where = (SMALL, (1, 3, 2), (4, 4))
    arrays, options = journey(*drawn, "alike", *where)
    want, directions, used = descend(*arrays, **options, xp=np)
    arrays, options = journey(*drawn, how, *where)
    got, moved, _ = backend.numpy(backend.call(descend, *backend.tree(arrays, dtype), **options))
    bounds = {"dtype": dtype, "size": 20, "kappa": condition(used, options["damping"])}
    for name in want:
        assert_close(moved[name], directions[name], **bounds)
        assert_close(got[name], want[name], **bounds)


LARGE = nn.Sequential(
    nn.Conv2d("a", 2, 4, (3, 2), (2, 1), padding=1, groups=2),
    nn.ReLU(),
    nn.Conv2d("b", 4, 2, 1, bias=False, sharing="reduce"),
    nn.GELU(),
    nn.GlobalAvgPool2d(),
    nn.Dense("c", 2, 3),
)


@examples(4)
@given(
    seed=seeds,
    method=st.sampled_from(sorted(METHODS)),
    kind=kinds,
    likelihood=st.sampled_from(["gaussian", "categorical", "bernoulli"]),
    how=st.sampled_from(PLANS),
    counts=st.lists(st.integers(4, 9), min_size=1, max_size=4).map(tuple),
)
def test_steps_do_not_depend_on_how_the_batch_comes(seed, method, kind, likelihood, how, counts):
    """The same with every kind of layer, more steps, and batches of several sizes."""
    drawn = (seed, method, kind, likelihood)
    where = (LARGE, (2, 4, 3), counts)
    arrays, options = journey(*drawn, "alike", *where)
    want, directions, used = descend(*arrays, **options, xp=np)
    arrays, options = journey(*drawn, how, *where)
    got, moved, _ = descend(*arrays, **options, xp=np)
    for name in want:
        bounds = {"size": 50, "kappa": condition(used, options["damping"])}
        assert_close(moved[name], directions[name], **bounds)
        assert_close(got[name], want[name], **bounds)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("how", "fault"),
    [("micro-batches", {"later": 0.7}), ("mean", {"undo": False}), ("sum", {"undo": False})],
)
def test_what_breaks_the_scale_contract_is_seen(method, how, fault):
    """A decay at every micro-batch; records of a mean or a sum as if they were per example."""
    drawn, where = (0, method, "exact", "gaussian"), (LARGE, (2, 4, 3), (6, 8))
    arrays, options = journey(*drawn, "alike", *where)
    _, want, _ = descend(*arrays, **options, xp=np)
    arrays, options = journey(*drawn, how, *where)
    _, right, _ = descend(*arrays, **options, xp=np)
    _, wrong, _ = descend(*arrays, **options, **fault, xp=np)
    for name in want:
        assert_close(right[name], want[name], size=50, kappa=1e3)
        assert_far(wrong[name], want[name], least=1e-3)


# scale of the loss ----------------------------------------------------------------------------


def scaled_direction(params, batch, *, model, method, factor, damping, xp, **rest):
    """Direction and curvature if the loss, and so its Fisher, is multiplied by a factor."""
    grads, records = measure(params, batch, model=model, xp=xp, **rest)
    records = {s: LayerRecord(r.a, factor**0.5 * r.g) for s, r in records.items()}
    hyper = Hyper(damping=damping)
    state = method.accumulate(method.init(records, batch.x, xp=xp), records, hyper, xp=xp)
    state, infos = method.refresh(state, hyper, xp=xp)
    own = {spec: factor * grads[spec.name] for spec in records}
    directions, _ = method.direction(state, own, {}, hyper, xp=xp)
    assert all(int(info.code) == 0 for info in infos.values())
    return {spec.name: u for spec, u in directions.items()}, curvatures(state)


@examples(4)
@given(
    seed=seeds,
    method=st.sampled_from(sorted(METHODS)),
    kind=st.sampled_from(["exact", "mc"]),
    likelihood=st.sampled_from(["gaussian", "categorical", "bernoulli"]),
    power=st.integers(-12, 12).filter(bool),
)
def test_a_scaled_loss_with_scaled_damping_gives_the_same_direction(
    seed, method, kind, likelihood, power
):
    """F to kF, gradient to kg, damping to k times itself; not so if the damping stays."""
    drawn, where, factor = (seed, method, kind, likelihood), (LARGE, (2, 4, 3), (6,)), 7.0**power
    (params, plan), options = journey(*drawn, "alike", *where)
    options = {key: options[key] for key in ("model", "method", "kind", "likelihood")}
    want, used = scaled_direction(params, plan[0][0], factor=1.0, damping=0.1, **options, xp=np)
    options |= {"factor": factor, "xp": np}
    got, _ = scaled_direction(params, plan[0][0], damping=0.1 * factor, **options)
    other, _ = scaled_direction(params, plan[0][0], damping=0.1, **options)
    for name in want:
        assert_close(got[name], want[name], size=50, kappa=condition(used, 0.1))
        assert_far(other[name], want[name], least=1e-3)


@pytest.mark.parametrize(
    "method",
    [KFAC(), EKFAC(), SNGD(), DenseNGD(), TridiagonalKFAC(), ProjectiveKFAC(rank=1.0)],
    ids=lambda method: type(method).__name__,
)
def test_parts_of_the_vectors_weigh_parts_of_the_examples(method):
    """A share 1/K and g times sqrt(K): averages and directions of all K vectors at once."""
    r, n = rng(0), 7
    specs = LayerSpec("one", "dense", 3, 4), LayerSpec("two", "dense", 4, 2)
    grads = {spec: r.standard_normal(spec.block_shape) for spec in specs}
    whole = state = method.init(specs, like=np.zeros(()))
    for decay, vectors in ((0.9, 4), (0.8, 2)):  # as many each time, and no share would be seen
        inputs = {s: r.standard_normal((n, s.in_features)) for s in specs}
        records = {
            s: LayerRecord(inputs[s], r.standard_normal((vectors, n, s.out_features)))
            for s in specs
        }
        whole = method.accumulate(whole, records, Hyper(decay=decay))
        for k in range(vectors):
            part = {
                s: LayerRecord(record.a, vectors**0.5 * record.g[k : k + 1])
                for s, record in records.items()
            }
            hyper = Hyper(decay=1.0 if k else decay, share=np.asarray(1 / vectors))
            state = method.accumulate(state, part, hyper)
        whole, _ = method.refresh(whole, Hyper(damping=0.1))
        state, _ = method.refresh(state, Hyper(damping=0.1))
    for spec in specs:
        got, want = (
            method.direction(x, grads, {}, Hyper(damping=0.1))[0][spec] for x in (state, whole)
        )
        assert_close(got, want, size=n, kappa=100)
