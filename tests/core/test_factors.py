"""Factors and gradients of a record equal the oracle's loops, on every array library."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, factors, reference
from ngd_core.factors.patches import patches
from ngd_core.testing import assert_close

sizes = st.integers(1, 4)
sharings = st.sampled_from(["expand", "reduce"])


def dense_case(seed, n, t, inputs, outputs, m, bias, sharing):
    """A dense layer with t positions on two axes, and m back-propagated vectors (0: no axis)."""
    r = rng(seed)
    spec = LayerSpec("fc", "dense", inputs, outputs, bias=bias, sharing=sharing)
    lead = () if m == 0 else (m,)
    a = r.standard_normal((n, t, 2, inputs))
    g = r.standard_normal((*lead, n, t, 2, outputs))
    oracle = (a.reshape(n, -1, inputs), g.reshape(max(m, 1), n, -1, outputs))
    return spec, LayerRecord(a, g), [oracle]


@st.composite
def geometries(draw):
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = draw(
        st.one_of(
            st.sampled_from(["same", "valid"]),
            st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
        )
    )
    return Conv2dGeometry(
        draw(pairs),
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=padding,
        groups=draw(st.integers(1, 2)),
    )


def conv_case(seed, n, geometry, m, bias, sharing):
    r = rng(seed)
    groups = geometry.groups
    spec = LayerSpec("conv", "conv2d", 2 * groups, 3 * groups, bias, sharing, geometry)
    height, width = 6, 5
    out = geometry.output_size(height, width)
    lead = () if m == 0 else (m,)
    a = r.standard_normal((n, 2 * groups, height, width))
    g = r.standard_normal((*lead, n, 3 * groups, *out))
    x = reference.conv_patches(
        a,
        geometry.kernel_size,
        geometry.stride,
        geometry.dilation,
        geometry.pads(height, width),
        groups,
    )
    x = x[None] if groups == 1 else x
    y = g.reshape(max(m, 1), n, groups, 3, -1)
    oracle = [(x[k], np.swapaxes(y[:, :, k], -1, -2)) for k in range(groups)]
    return spec, LayerRecord(a, g), oracle


@st.composite
def cases(draw):
    """Any layer, with the canonical (x, y) of each of its groups for the oracle."""
    common = {"m": draw(st.integers(0, 2)), "bias": draw(st.booleans()), "sharing": draw(sharings)}
    seed, n = draw(seeds), draw(sizes)
    if draw(st.booleans()):
        shape = {"t": draw(st.integers(1, 3)), "inputs": draw(sizes), "outputs": draw(sizes)}
        return dense_case(seed, n, **shape, **common)
    return conv_case(seed, n, draw(geometries()), **common)


def stacked(spec, blocks):
    return np.stack(blocks) if spec.stack else blocks[0]


@law(case=cases(), dtype=dtypes)
def test_kronecker_factors_equal_the_loops(backend, case, dtype):
    spec, record, oracle = case
    expected = [
        reference.kronecker_factors(x, y, bias=spec.bias, sharing=spec.sharing) for x, y in oracle
    ]
    got = backend.call(
        lambda r, *, xp: factors.kronecker_factors(spec, r, xp=xp), backend.tree(record, dtype)
    )
    for k, factor in enumerate(got):
        assert str(factor.dtype).endswith(dtype)
        size = record.a.size // spec.in_features
        assert_close(
            backend.numpy(factor), stacked(spec, [e[k] for e in expected]), dtype=dtype, size=size
        )


@law(case=cases(), dtype=dtypes)
def test_samples_have_the_factors_as_second_moments(backend, case, dtype):
    """X^T X = A and Y^T Y = G, a row for each position of an example or for each example."""
    spec, record, oracle = case

    def samples(record, *, xp):
        canonical, sharing = factors.rows(spec, record, xp=xp), {"sharing": spec.sharing, "xp": xp}
        return (
            factors.input_samples(canonical, bias=spec.bias, **sharing),
            factors.output_samples(canonical, **sharing),
        )

    got = backend.numpy(backend.call(samples, backend.tree(record, dtype)))
    expected = [
        reference.kronecker_factors(x, y, bias=spec.bias, sharing=spec.sharing) for x, y in oracle
    ]
    n, t = oracle[0][0].shape[:2]
    rows = n * t if spec.sharing == "expand" else n
    assert got[0].shape[-2] == rows
    assert got[1].shape[-2] == rows * oracle[0][1].shape[0]
    for k, x in enumerate(got):
        moment = np.swapaxes(x, -1, -2) @ x
        assert_close(moment, stacked(spec, [e[k] for e in expected]), dtype=dtype, size=x.shape[-2])


@law(case=cases(), dtype=dtypes)
def test_factors_are_symmetric_and_positive_semidefinite(backend, case, dtype):
    spec, record, _ = case
    got = backend.call(
        lambda r, *, xp: factors.kronecker_factors(spec, r, xp=xp), backend.tree(record, dtype)
    )
    for factor in backend.numpy(got):
        factor = factor.astype(np.float64)
        assert_close(factor, np.swapaxes(factor, -1, -2), dtype=dtype)
        values = np.linalg.eigvalsh(factor)
        assert np.all(values >= -50 * np.finfo(dtype).eps * values.max(axis=-1, keepdims=True))


@law(case=cases(), dtype=dtypes)
def test_per_example_gradients_equal_the_loops(backend, case, dtype):
    """u_mn = sum_t g_mnt [x_nt; 1]^T, and its mean formed without them."""
    spec, record, oracle = case
    expected = []
    for x, y in oracle:
        m, n, t, _ = y.shape
        u = np.zeros((m, n, y.shape[-1], x.shape[-1] + spec.bias))
        for i in range(m):
            for j in range(n):
                for k in range(t):
                    row = np.append(x[j, k], 1.0) if spec.bias else x[j, k]
                    u[i, j] += np.outer(y[i, j, k], row)
        expected.append(u)
    u = np.stack(expected, axis=2) if spec.stack else expected[0]
    arrays = backend.tree(record, dtype)
    got = backend.call(lambda r, *, xp: factors.per_example_gradients(spec, r, xp=xp), arrays)
    assert_close(backend.numpy(got), u, dtype=dtype, size=u[0, 0].size)
    mean = backend.call(lambda r, *, xp: factors.mean_gradient(spec, r, xp=xp), arrays)
    assert_close(
        backend.numpy(mean),
        u.sum(axis=0).mean(axis=0),
        dtype=dtype,
        size=u[0, 0].size,
        scale=float(np.abs(u).max()),
    )


@law(seed=seeds, geometry=geometries(), bias=st.booleans())
def test_join_and_split_are_inverse_and_fit_the_patches(backend, seed, geometry, bias):
    """patches @ split(block) is the oracle's convolution, and join undoes split."""
    r = rng(seed)
    groups = geometry.groups
    spec = LayerSpec("conv", "conv2d", 2 * groups, 3 * groups, bias, geometry=geometry)
    x, block = r.standard_normal((2, 2 * groups, 6, 5)), r.standard_normal(spec.block_shape)
    weight, offset = backend.call(
        lambda b, *, xp: factors.split(spec, b, xp=xp)[: 1 + bias], backend.array(block)
    ) + (() if bias else (None,))
    joined = factors.join(spec, weight, offset, xp=backend.xp)
    assert_close(backend.numpy(joined), block)
    rows = backend.numpy(patches(backend.array(x), geometry, xp=backend.xp))
    rows = rows if spec.stack else rows[None]
    kernel = backend.numpy(weight).reshape(groups, 3, -1)
    out = np.concatenate([p @ k.T for p, k in zip(rows, kernel, strict=True)], axis=-1)
    if bias:
        out = out + backend.numpy(offset)
    expected = reference.conv2d(
        x,
        block,
        geometry.kernel_size,
        geometry.stride,
        geometry.dilation,
        geometry.pads(6, 5),
        groups,
        bias,
    )
    assert_close(np.moveaxis(out, -1, 1).reshape(expected.shape), expected, size=20)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pads"),
    [(2, 1, 1, (0, 1)), (3, 1, 1, (1, 1)), (3, 1, 2, (2, 2)), (2, 2, 1, (0, 1)), (1, 2, 1, (0, 0))],
)
def test_the_odd_zero_of_same_padding_comes_after(kernel, stride, dilation, pads):
    """As in XLA's "SAME", for an input of 5 rows."""
    geometry = Conv2dGeometry(kernel, stride, dilation, "same")
    assert geometry.pads(5, 5) == (pads, pads)
    assert geometry.output_size(5, 5) == (-(-5 // stride),) * 2


@law(seed=seeds, counts=st.lists(st.integers(1, 5), min_size=1, max_size=5), dtype=dtypes)
def test_average_is_the_bias_corrected_ema_over_examples(backend, seed, counts, dtype):
    r, decay = rng(seed), 0.9
    batches = [r.standard_normal((2, 2)) for _ in counts]
    mean, weight = backend.array(np.zeros((2, 2)), dtype), backend.array(np.zeros(()), dtype)
    for batch, count in zip(batches, counts, strict=True):
        mean, weight = backend.call(
            lambda *arrays, xp, count=count: factors.average(
                *arrays, count=count, decay=decay, xp=xp
            ),
            mean,
            weight,
            backend.array(batch, dtype),
        )
    weights = np.asarray(counts) * decay ** np.arange(len(counts))[::-1]
    expected = np.tensordot(weights, np.stack(batches), axes=1) / weights.sum()
    assert_close(backend.numpy(mean), expected, dtype=dtype, size=8)
    assert_close(backend.numpy(weight), weights.sum(), dtype=dtype)


@law(seed=seeds, dtype=dtypes, larger=st.sampled_from([1e4, 1e12, 1e30]))
def test_average_that_forgets_is_the_batch(backend, seed, dtype, larger):
    """Decay 0 after a batch of another size: nothing of it is left, not even its rounding."""
    r = rng(seed)
    first, second = larger * r.standard_normal((2, 2)), r.standard_normal((2, 2))
    mean, weight = backend.numpy(
        backend.call(
            lambda *arrays, xp: factors.average(*arrays, count=3, decay=0.0, xp=xp),
            backend.array(first, dtype),
            backend.array(np.asarray(5.0), dtype),
            backend.array(second, dtype),
        )
    )
    assert np.array_equal(mean, second.astype(dtype))
    assert float(weight) == 3.0


@law(
    seed=seeds,
    rows=st.sampled_from([1, 300, 5000, 20_000]),
    columns=st.sampled_from([2, 3, 40]),
    kind=st.sampled_from(["alike", "background", "one line"]),
    bias=st.booleans(),
)
def test_moment_of_many_rows_is_semidefinite_to_rounding(backend, seed, rows, columns, kind, bias):
    """In float32, to a fraction of the least damping that is ever used (10 eps tr)."""
    r = rng(seed)
    x = np.broadcast_to(r.random(columns) + 0.5, (rows, columns))
    if kind == "background":
        x = np.where(r.random((rows, 1)) < 0.7, x, r.random(columns))
    elif kind == "one line":
        x = r.random((rows, 1)) * x
    x = x.astype(np.float32)
    moment = backend.numpy(
        backend.call(
            lambda x, *, xp: factors.second_moment(x, rows, bias=bias, xp=xp), backend.array(x)
        )
    ).astype(np.float64)
    y = np.concatenate([x, np.ones((rows, int(bias)))], axis=1).astype(np.float64)
    assert_close(moment, y.T @ y / rows, dtype="float32")
    least = np.linalg.eigvalsh(moment)[0] / np.trace(moment)
    assert least > -5 * np.finfo(np.float32).eps


def test_half_precision_records_give_float32_factors():
    spec = LayerSpec("fc", "dense", 3, 2)
    a, g = rng(0).standard_normal((4, 3)), rng(1).standard_normal((4, 2))
    A, G = factors.kronecker_factors(spec, LayerRecord(a.astype(np.float16), g.astype(np.float16)))
    assert A.dtype == G.dtype == np.float32
    assert_close(A, reference.kronecker_factors(a[:, None], g[None, :, None])[0], dtype="float16")


FC = LayerSpec("fc", "dense", 3, 2)
CONV = LayerSpec("conv", "conv2d", 3, 2, geometry=Conv2dGeometry(3))


@pytest.mark.parametrize(
    ("spec", "a", "g", "error", "sentence"),
    [
        (FC, np.ones((4, 3)), [[1.0, 2.0]], TypeError, "g is a builtins list; expected an array"),
        (FC, np.ones((4, 3), np.int64), np.ones((4, 2)), TypeError, "a has dtype int64"),
        (FC, np.ones(3), np.ones((4, 2)), ValueError, r"a has shape \(3,\); expected at least 2"),
        (FC, np.ones((4, 5)), np.ones((4, 2)), ValueError, "with 5 features; expected 3"),
        (FC, np.ones((4, 3)), np.ones((5, 2)), ValueError, r"g has shape \(5, 2\); expected"),
        (FC, np.ones((0, 3)), np.ones((0, 2)), ValueError, "batch is empty"),
        (FC, np.ones((4, 0, 3)), np.ones((4, 0, 2)), ValueError, "batch is empty"),
        (FC, np.ones((4, 3)), np.ones((0, 4, 2)), ValueError, r"batch is empty.* g \(0, 4, 2\)"),
        (CONV, np.ones((4, 3)), np.ones((4, 2)), ValueError, "expected 4 axes"),
        (CONV, np.ones((4, 3, 2, 2)), np.ones((4, 2, 1, 1)), ValueError, "smaller than the kernel"),
        (
            CONV,
            np.ones((4, 3, 5, 5)),
            np.ones((4, 2, 5, 5)),
            ValueError,
            r"expected \(4, 2, 3, 3\)",
        ),
    ],
)
def test_wrong_records_get_one_clear_sentence(spec, a, g, error, sentence):
    with pytest.raises(error, match=sentence):
        factors.kronecker_factors(spec, LayerRecord(a, g))


def test_mixed_libraries_get_one_clear_sentence():
    import torch

    record = LayerRecord(np.ones((4, 3)), torch.ones((4, 2)))
    with pytest.raises(TypeError, match="a is a numpy ndarray, g is a torch Tensor; convert them"):
        factors.kronecker_factors(FC, record)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: LayerSpec("fc", "lstm", 1, 1),
            "kind is 'lstm'; expected one of 'dense', 'conv2d'",
        ),
        (lambda: LayerSpec("fc", "dense", 1, 1, sharing="sum"), "sharing is 'sum'"),
        (lambda: LayerSpec("c", "conv2d", 1, 1), "a convolution needs one"),
        (
            lambda: LayerSpec("c", "conv2d", 3, 2, geometry=Conv2dGeometry(1, groups=2)),
            "the groups must divide both",
        ),
        (lambda: Conv2dGeometry(0), "kernel_size is 0; expected an integer >= 1"),
        (lambda: Conv2dGeometry(1, groups=0), "groups is 0; expected an integer >= 1"),
        (
            lambda: patches(np.ones((1, 3, 2, 2)), Conv2dGeometry(1, groups=2), xp=np),
            "3 channels .* which 2 groups do not divide",
        ),
        (lambda: Conv2dGeometry(3.0), "kernel_size is 3.0; expected an integer >= 1"),
        (lambda: Conv2dGeometry(3, stride=(1, 2, 3)), r"stride is \(1, 2, 3\); expected"),
        (lambda: LayerSpec("fc", "dense", 0, 1), "Layer 'fc' has 0 inputs; expected an integer"),
        (lambda: LayerSpec("fc", "dense", 1, 2.0), "Layer 'fc' has 2.0 outputs"),
        (lambda: Conv2dGeometry(3, padding="full"), "padding is 'full'"),
        (lambda: Conv2dGeometry(3, padding=-1), "padding is -1"),
        (lambda: factors.join(FC, np.ones((2, 3))), "has bias=True, but bias is NoneType"),
        (
            lambda: factors.split(FC, np.ones((2, 3))),
            r"block has shape \(2, 3\); expected \(2, 4\)",
        ),
        (
            lambda: factors.average(np.ones(1), np.ones(()), np.ones(1), 1, 1.5),
            "decay is 1.5; expected a number between 0 and 1",
        ),
    ],
)
def test_wrong_arguments_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
