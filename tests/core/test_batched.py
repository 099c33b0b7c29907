"""Layers of equal shapes, factorised as one stack: nothing changes but the number of calls."""

import warnings

import numpy as np
import pytest
from harness import BACKENDS, dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import EKFAC, KFAC, SNGD, Conv2dGeometry, Hyper, LayerRecord, LayerSpec
from ngd_core.inversion import EAGER, PURE, Ops
from ngd_core.methods import _batched, ekfac
from ngd_core.methods._batched import batched
from ngd_core.testing import assert_close

N = 4
GROUPED = Conv2dGeometry(1, groups=2)
KINDS = {
    "dense": lambda name: LayerSpec(name, "dense", 3, 2),
    "groups": lambda name: LayerSpec(name, "conv2d", 4, 6, geometry=GROUPED),
    "embedding": lambda name: LayerSpec(name, "embedding", 5, 3, bias=False),
    "scale": lambda name: LayerSpec(name, "scale", 3, 3),
}
BAD = {
    "nan": lambda layer: layer._replace(a=layer.a * np.nan),
    "inf": lambda layer: layer._replace(g=layer.g + np.inf),
    "zero": lambda layer: layer._replace(a=layer.a * 0),
    "singular": lambda layer: layer._replace(a=layer.a * 0 + 1, g=layer.g * 0 + 1),
    "indefinite": lambda layer: layer._replace(a=-layer.a, g=-layer.g),
    "huge": lambda layer: layer._replace(a=layer.a * 1e30),
    "nothing seen": lambda layer: layer._replace(weight=layer.weight * 0),
    "none": lambda layer: layer,
}
METHODS = {
    "pi": KFAC(),
    "exact": KFAC("exact"),
    "pi in float32": KFAC(solve_dtype="float32"),
    "pi, eager": KFAC(solve_dtype="float32", ops=EAGER),
}


def record_of(spec, r):
    if spec.kind == "conv2d":
        return LayerRecord(r.standard_normal((N, 4, 2, 2)), r.standard_normal((N, 6, 2, 2)))
    if spec.kind == "embedding":
        return LayerRecord(r.integers(0, 5, (N, 2)), r.standard_normal((N, 2, 3)))
    a, g = spec.in_features, spec.out_features
    return LayerRecord(r.standard_normal((N, a)), r.standard_normal((N, g)))


def leaves(tree):
    if isinstance(tree, tuple):
        return [x for part in tree for x in leaves(part)]
    return [tree]


def three(method, kind, r, bad, old, *, backend, dtype):
    """State of three equal layers, the middle one spoilt; with an older good inverse if `old`."""
    specs = [KINDS[kind](name) for name in ("first", "bad", "last")]
    state = method.init(specs, np.zeros((), dtype))
    for _ in range(2):
        state = method.accumulate(
            state, {spec: cast(record_of(spec, r), dtype) for spec in specs}, Hyper()
        )
        if old:
            state, _ = method.refresh(state, Hyper(0.5))
            old = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        state.layers[specs[1]] = BAD[bad](state.layers[specs[1]])
    return specs, backend.tree(state, dtype)


def cast(record, dtype):
    return LayerRecord(
        *(x if x.dtype.kind == "i" else x.astype(dtype) for x in (record.a, record.g))
    )


@law(
    seed=seeds,
    name=st.sampled_from(sorted(METHODS)),
    kind=st.sampled_from(sorted(KINDS)),
    bad=st.sampled_from(sorted(BAD)),
    old=st.booleans(),
    damping=st.sampled_from([0.0, 0.1]),
    dtype=dtypes,
)
def test_together_is_one_by_one(backend, seed, name, kind, bad, old, damping, dtype):
    """Each layer's inverse and code are those of the layer alone, whatever its neighbours are."""
    if backend.variant in ("jit", "compile"):
        name = name.removesuffix(", eager")  # which looks at values
    method = METHODS[name]
    specs, state = three(method, kind, rng(seed), bad, old, backend=backend, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        together, info = backend.call(method.refresh, state, Hyper(damping))
        for spec in specs:
            alone, alone_info = backend.call(
                method.refresh, state._replace(layers={spec: state.layers[spec]}), Hyper(damping)
            )
            assert int(info[spec].code) == int(alone_info[spec].code)
            got = leaves(backend.numpy(together.layers[spec].inverse))
            wanted = leaves(backend.numpy(alone.layers[spec].inverse))
            for x, y in zip(got, wanted, strict=True):
                assert x.shape == y.shape
                assert x.dtype == y.dtype
                if x.dtype == bool or backend.library == "numpy":
                    assert np.array_equal(x, y)
                else:
                    assert_close(x, y, dtype=dtype, size=6, kappa=1e4)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("bad", sorted(BAD))
@pytest.mark.parametrize("kind", ["dense", "groups", "scale"])
def test_bases_together_are_those_one_by_one(kind, bad, old):
    """EKFAC's whole state, to the last bit, whatever a neighbour is."""
    method, hyper = EKFAC(), Hyper(0.1)
    specs, state = three(method, kind, rng(0), bad, old, backend=BACKENDS[0], dtype="float64")
    together, info = method.refresh(state, hyper)
    for spec in specs:
        alone, alone_info = method.refresh(state._replace(layers={spec: state.layers[spec]}), hyper)
        assert int(info[spec].code) == int(alone_info[spec].code)
        pairs = zip(leaves(together.layers[spec]), leaves(alone.layers[spec]), strict=True)
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)
    assert int(info[specs[0]].code) == 0
    unusable = bad in ("nan", "inf", "nothing seen")
    assert int(info[specs[1]].code) == ((3 if old else 4) if unusable else 0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_three_equal_layers_take_the_calls_of_one(kind):
    counts = []

    def count(m, *, xp):
        counts.append(m.shape)
        return PURE.spd_inverse(m, xp=xp)

    method = KFAC(solve_dtype="float64", ops=Ops(spd_inverse=count))
    seen = []
    for names in (["one"], ["one", "two", "three"]):
        specs = [KINDS[kind](name) for name in names]
        state = method.init(specs, np.zeros(()))
        state = method.accumulate(state, {s: record_of(s, rng(0)) for s in specs}, Hyper())
        counts.clear()
        method.refresh(state, Hyper())
        seen.append(list(counts))
    assert len(seen[0]) == len(seen[1]) == {"embedding": 1, "scale": 0}.get(kind, 2)
    for alone, together in zip(*seen, strict=True):
        assert together == (3, *alone)


def test_equal_layers_take_one_decomposition_a_side(monkeypatch):
    shapes = []

    def count(m, **options):
        shapes.append(m.shape)
        return original(m, **options)

    original = ekfac.safe_eigh
    monkeypatch.setattr(ekfac, "safe_eigh", count)
    specs = [KINDS["groups"](name) for name in ("one", "two", "three")]
    EKFAC().refresh(EKFAC().init(specs, np.zeros(())), Hyper())
    assert shapes == [(3, 2, 3, 3), (3, 2, 3, 3)]


def test_layers_of_other_shapes_are_left_alone_and_the_order_stays():
    r, method = rng(0), KFAC()
    specs = [KINDS[k](f"{k} {i}") for i in range(2) for k in sorted(KINDS)]
    specs.insert(3, LayerSpec("other", "dense", 2, 3))
    state = method.init(specs, np.zeros(()))
    state = method.accumulate(state, {s: record_of(s, r) for s in specs}, Hyper())
    together, info = method.refresh(state, Hyper(0.1))
    assert list(together.layers) == list(info) == specs
    for spec in specs:
        alone, _ = method.refresh(state._replace(layers={spec: state.layers[spec]}), Hyper(0.1))
        pairs = zip(leaves(together.layers[spec]), leaves(alone.layers[spec]), strict=True)
        assert all(np.array_equal(x, y) for x, y in pairs)


def test_stacks_are_bounded(monkeypatch):
    """Seven matrices of 9 numbers with a bound of 30: stacks of 3, 3, and one that is none."""
    shapes = []

    def f(x, pair):
        shapes.append((x.shape, pair[1].shape))
        return x + 1, (pair[0],)

    monkeypatch.setattr(_batched, "LIMIT", 30)
    arguments = {k: (np.full((3, 3), k), (np.full((), -k), np.ones(2))) for k in range(7)}
    results = batched(f, arguments, xp=np)
    assert shapes == [((3, 3, 3), (3, 2)), ((3, 3, 3), (3, 2)), ((3, 3), (2,))]
    for k, (x, (y,)) in results.items():
        assert np.array_equal(x, np.full((3, 3), k + 1))
        assert y == -k
    shapes.clear()
    monkeypatch.setattr(_batched, "LIMIT", 1)
    batched(f, arguments, xp=np)
    assert {x for x, _ in shapes} == {(3, 3)}


@pytest.mark.parametrize(
    "method",
    [SNGD(), SNGD(mode="literal"), SNGD(root="newton-schulz"), SNGD(metric="relu")],
    ids=["direct", "literal", "iterated", "relu"],
)
def test_local_fishers_together_are_one_by_one(method):
    r = rng(0)
    specs = [LayerSpec(name, "dense", 3, 2) for name in ("first", "dead", "last")]
    state = method.init(specs, np.zeros(()))
    records = {s: record_of(s, r)._replace(z=r.standard_normal((N, 2))) for s in specs}
    records[specs[1]] = records[specs[1]]._replace(a=np.zeros((N, 3)))
    state = method.accumulate(state, records, Hyper())
    state.layers[specs[1]] = state.layers[specs[1]]._replace(
        fisher=state.layers[specs[1]].fisher * np.nan
    )
    together, info = method.refresh(state, Hyper(0.01))
    assert int(info[specs[1]].code) == 4
    for spec in specs:
        alone, own = method.refresh(state._replace(layers={spec: state.layers[spec]}), Hyper(0.01))
        assert int(info[spec].code) == int(own[spec].code)
        got, wanted = (leaves(x.layers[spec].inverse) for x in (together, alone))
        for x, y in zip(got, wanted, strict=True):
            assert np.array_equal(x, y)
