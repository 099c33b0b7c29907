"""The joint Fisher along directions, against the dense matrix of the oracle."""

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from core.networks import oracle_layers
from harness import Backend, dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import LayerRecord, LayerSpec, factors, losses, nn, reference
from ngd_core.testing import assert_close, assert_far

N = 3
NUMPY = Backend("numpy")
MODELS = {
    "dense": ((4,), (nn.Dense("first", 4, 3), nn.Tanh(), nn.Dense("head", 3, 2, bias=False))),
    "positions": (
        (2, 3),
        (nn.Dense("first", 3, 2), nn.Tanh(), nn.Dense("head", 2, 3)),
    ),
    "groups": (
        (4, 4, 3),
        (
            nn.Conv2d("first", 4, 4, (3, 2), stride=(2, 1), padding=1, groups=2),
            nn.Sigmoid(),
            nn.Conv2d("second", 4, 2, 2, bias=False),
            nn.Flatten(),
            nn.Dense("head", 6, 2),
        ),
    ),
}
LIKELIHOODS = ("categorical", "gaussian", "bernoulli")


class Case(NamedTuple):
    """A network with its data, and two directions."""

    model: nn.Sequential
    params: dict
    x: np.ndarray
    targets: np.ndarray
    likelihood: str
    blocks: tuple

    @property
    def network(self):
        inputs = {spec: record.a.shape for spec, record in records(self, "empirical").items()}
        return reference.Network(oracle_layers(self.model, inputs))

    def flat(self, blocks):
        """Blocks by layer as one vector, in the oracle's order; absent ones are zero."""
        named = {spec.name: np.asarray(block, np.float64) for spec, block in blocks.items()}
        shapes = nn.shapes(self.model)
        return self.network.flatten(
            {name: named.get(name, np.zeros(shape)) for name, shape in shapes.items()}
        )


@st.composite
def cases(draw, names=tuple(MODELS)):
    shape, layers = MODELS[draw(st.sampled_from(names))]
    r, model = rng(draw(seeds)), nn.Sequential(*layers)

    def normal(*shape):
        """Exact in float32, so that both dtypes see the same case."""
        return r.standard_normal(shape).astype(np.float32).astype(np.float64)

    params = {name: normal(*s) / s[-1] ** 0.5 for name, s in nn.shapes(model).items()}
    params = {name: p.astype(np.float32).astype(np.float64) for name, p in params.items()}
    x, likelihood = normal(N, *shape), draw(st.sampled_from(LIKELIHOODS))
    outputs = nn.predict(model, params, x)
    targets = r.integers(0, 2, outputs.shape).astype(np.float64)
    if likelihood == "categorical":
        targets = r.integers(0, outputs.shape[-1], outputs.shape[:-1])
    blocks = tuple({spec: normal(*spec.block_shape) for spec in nn.specs(model)} for _ in range(2))
    return Case(model, params, x, targets, likelihood, blocks)


def back_propagate(params, x, targets, *, model, likelihood, kind, xp):
    outputs, tape = nn.forward(model, params, x, xp=xp)
    extra = {"targets": targets} if kind == "empirical" else {}
    vectors = losses.fisher_vectors(kind, losses.get(likelihood), outputs, **extra, xp=xp)
    return nn.backward(model, params, tape, vectors, grads=False, xp=xp).records


def records(case, kind, backend=NUMPY, dtype="float64"):
    options = {"model": case.model, "likelihood": case.likelihood, "kind": kind}
    arrays = backend.tree((case.params, case.x, case.targets), dtype)
    return back_propagate(*arrays, **options, xp=backend.xp)


def dense_fisher(case, kind):
    args = case.network, case.params, case.x, case.likelihood
    if kind == "exact":
        return reference.exact_fisher(*args)
    return reference.empirical_fisher(*args, case.targets)


def everything(r, blocks, *, xp):
    first, second = blocks
    return (
        factors.directional_derivatives(r, first, xp=xp),
        factors.fisher_inner(r, [first, second], xp=xp),
        factors.fisher_product(r, first, xp=xp),
    )


@law(case=cases(), kind=st.sampled_from(["exact", "empirical"]), dtype=dtypes)
def test_derivatives_and_products_are_the_dense_joint_fishers(backend, case, kind, dtype):
    """<u, v>, v^T F w and F v with F of all layers, their cross blocks included."""
    F = dense_fisher(case, kind)
    V = np.stack([case.flat(blocks) for blocks in case.blocks])
    arrays = records(case, kind, backend, dtype), backend.tree(case.blocks, dtype)
    along, inner, product = backend.numpy(backend.call(everything, *arrays))
    size = {"dtype": dtype, "size": F.shape[0]}
    assert {str(x.dtype) for x in (along, inner, *product.values())} == {dtype}
    assert_close(inner, V @ F @ V.T, **size)
    assert_close(case.flat(product), F @ V[0], **size, scale=np.abs(F).sum(1).max())
    assert_close(np.sum(along**2) / N, V[0] @ F @ V[0], **size)
    if kind == "empirical":
        args = case.network, case.params, case.x, case.likelihood, case.targets
        u = reference.loss_gradients(*args)
        scale = np.max(np.linalg.norm(u, axis=1) * np.linalg.norm(V[0]))
        assert_close(along, (u @ V[0])[None], **size, scale=scale)
    else:
        places = case.network.slices.values()
        blockwise = sum(V[0, place] @ F[place, place] @ V[1, place] for place in places)
        assert_far(blockwise, V[0] @ F @ V[1], least=1e-6)


@law(case=cases(), dtype=dtypes)
def test_derivatives_are_those_of_the_gradients_formed(backend, case, dtype):
    """Several vectors in order: sum over entries of the explicit gradient times the direction."""

    def both(r, direction, *, xp):
        explicit = 0
        for spec, record in r.items():
            u = factors.per_example_gradients(spec, record, xp=xp)
            part = xp.reshape(u * direction[spec], (*u.shape[:2], -1))
            explicit = explicit + xp.sum(part, axis=-1)
        return factors.directional_derivatives(r, direction, xp=xp), explicit

    arrays = records(case, "exact", backend, dtype), backend.tree(case.blocks[0], dtype)
    got, wanted = backend.numpy(backend.call(both, *arrays))
    assert got.shape[1] == N
    assert got.shape[0] > 1
    assert_close(got, wanted, dtype=dtype, size=len(case.flat(case.blocks[0])))


@law(case=cases(), factor=st.sampled_from([-2.0, 0.5]))
def test_all_three_are_linear_and_agree(backend, case, factor):
    """L(s v + w) = s L(v) + L(w); K is symmetric, PSD and v^T (F w)."""
    v, w = case.blocks
    mixed = {spec: factor * v[spec] + w[spec] for spec in v}
    r = backend.tree(records(case, "exact"))
    first, second, third = (
        backend.numpy(everything(r, backend.tree(pair), xp=backend.xp))
        for pair in ((v, w), (w, v), (mixed, v))
    )
    size = len(case.flat(v))
    scale = np.max(np.abs([first[0], second[0]])) * 4
    assert_close(third[0], factor * first[0] + second[0], size=size, scale=scale)
    for spec in v:
        wanted = factor * first[2][spec] + second[2][spec]
        scale = 4 * max(np.max(np.abs(x[2][spec])) for x in (first, second))
        assert_close(third[2][spec], wanted, size=size, scale=scale)
    K = first[1]
    assert np.array_equal(K, K.T)
    assert np.linalg.eigvalsh(K)[0] >= -1e-12 * K.max()
    assert_close(case.flat(second[2]) @ case.flat(v), K[0, 1], size=size, scale=K.max())


@law(case=cases(names=("groups",)))
def test_a_layer_left_out_of_a_direction_is_zero(backend, case):
    """A missing block counts as zero; the product has a block for every layer all the same."""
    first, *_ = case.blocks[0]
    part = {first: case.blocks[0][first]}
    F, v = dense_fisher(case, "exact"), case.flat(part)
    arrays = backend.tree((records(case, "exact"), (part, case.blocks[1])))
    along, inner, product = backend.numpy(everything(*arrays, xp=backend.xp))
    assert list(product) == list(nn.specs(case.model))
    assert_close(case.flat(product), F @ v, size=len(v), scale=np.abs(F @ v).max())
    assert_close(inner[0, 0], v @ F @ v, size=len(v))
    assert_close(np.sum(along**2) / N, v @ F @ v, size=len(v))


def test_duplicating_the_batch_changes_only_the_derivatives():
    """The Fisher is that of the mean loss: K and F v stay, <u, v> comes twice."""
    fc = LayerSpec("fc", "dense", 3, 2)
    r = rng(0)
    record = LayerRecord(r.standard_normal((4, 3)), r.standard_normal((5, 4, 2)))
    twice = LayerRecord(np.concatenate([record.a] * 2), np.concatenate([record.g] * 2, axis=1))
    pair = tuple({fc: r.standard_normal(fc.block_shape)} for _ in range(2))
    one, two = (everything({fc: x}, pair, xp=NUMPY.xp) for x in (record, twice))
    assert_close(two[0], np.concatenate([one[0]] * 2, axis=1), size=8)
    assert_close(two[1], one[1], size=40)
    assert_close(two[2][fc], one[2][fc], size=40)


def test_no_gradient_of_an_example_is_formed(monkeypatch):
    """Nothing as large as a batch of blocks is ever made: 200 examples of a 60 x 81 block."""
    fc = LayerSpec("fc", "dense", 80, 60)
    record = LayerRecord(np.ones((200, 80), np.float32), np.ones((200, 60), np.float32))
    pair = ({fc: np.ones(fc.block_shape, np.float32)},) * 2
    tracemalloc.start()
    everything({fc: record}, pair, xp=NUMPY.xp)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 60 * 81 * 4 / 4


@pytest.mark.parametrize("backend", [NUMPY, Backend("torch")], ids=str)
def test_half_precision_is_computed_in_float32(backend):
    fc = LayerSpec("fc", "dense", 3, 2)
    r = rng(0)
    arrays = [r.standard_normal(shape).astype(np.float16) for shape in ((4, 3), (4, 2), (2, 4))]
    a, g, v = backend.tree(arrays)
    low = everything({fc: LayerRecord(a, g)}, ({fc: v}, {fc: v}), xp=backend.xp)
    a, g, v = (x.astype(np.float64) for x in arrays)
    high = everything({fc: LayerRecord(a, g)}, ({fc: v}, {fc: v}), xp=NUMPY.xp)
    for x, y in zip((*low[:2], low[2][fc]), (*high[:2], high[2][fc]), strict=True):
        got = backend.numpy(x)
        assert got.dtype == np.float32
        assert_close(got, y, dtype="float32", size=12)


FC, OTHER = LayerSpec("fc", "dense", 2, 1), LayerSpec("other", "dense", 2, 1)
RECORD = LayerRecord(np.ones((3, 2)), np.ones((3, 1)))
BLOCK = np.ones((1, 3))


@pytest.mark.parametrize(
    ("records", "direction", "error", "sentence"),
    [
        ({}, {FC: BLOCK}, ValueError, "records is empty; expected the record of"),
        ({FC: RECORD}, {OTHER: BLOCK}, ValueError, "'other', which has no record; .* among 'fc'"),
        ({FC: RECORD}, {FC: BLOCK[:, :2]}, ValueError, r"direction of 'fc' has shape \(1, 2\)"),
        ({FC: RECORD}, {FC: BLOCK.astype(int)}, TypeError, "direction 0 of 'fc' has dtype int"),
        ({FC: RECORD}, {FC: [[1.0]]}, TypeError, "direction 0 of 'fc' is a builtins list"),
        (
            {FC: RECORD, OTHER: RECORD._replace(g=np.ones((2, 3, 1)))},
            {FC: BLOCK},
            ValueError,
            r"\(M, N\): \{'fc': \(1, 3\), 'other': \(2, 3\)\}; pass those of one backward pass",
        ),
        (
            {FC: RECORD, OTHER: RECORD._replace(g=np.ones((4, 1)))},
            {FC: BLOCK},
            ValueError,
            r"record of layer 'other': g has shape \(4, 1\)",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(records, direction, error, sentence):
    for f in (factors.directional_derivatives, factors.fisher_product):
        with pytest.raises(error, match=sentence):
            f(records, direction)
    with pytest.raises(error, match=sentence):
        factors.fisher_inner(records, [direction])


def test_no_direction_is_a_mistake():
    with pytest.raises(ValueError, match="directions is empty"):
        factors.fisher_inner({FC: RECORD}, [])
