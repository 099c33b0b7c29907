"""Likelihoods against the oracle: value, gradient, samples, Hessian root, and which Fisher."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import losses, reference
from ngd_core.testing import assert_close

names = st.sampled_from(["categorical", "bernoulli", "gaussian"])
shapes = st.sampled_from([(1, 1), (3, 2), (2, 5), (3, 2, 4), (2, 1, 2, 3)])
spreads = st.sampled_from([0.1, 1.0, 30.0])


def data(r, name, shape, spread):
    """Logits or means, and targets that fit them."""
    outputs = spread * r.standard_normal(shape)
    if name == "categorical":
        return outputs, r.integers(0, shape[-1], shape[:-1])
    if name == "bernoulli":
        return outputs, r.integers(0, 2, shape).astype(float)
    return outputs, r.standard_normal(shape)


def noise_for(r, likelihood, outputs, samples):
    draw = r.random if likelihood.noise == "uniform" else r.standard_normal
    return draw((samples, *likelihood.noise_shape(outputs)))


@law(seed=seeds, name=names, shape=shapes, spread=spreads, dtype=dtypes)
def test_value_and_gradient_equal_the_oracle(backend, seed, name, shape, spread, dtype):
    outputs, targets = data(rng(seed), name, shape, spread)
    likelihood = losses.get(name)
    arrays = backend.array(outputs, dtype), backend.array(targets, dtype)
    outputs = outputs.astype(dtype).astype(np.float64)
    if name == "gaussian":
        targets = targets.astype(dtype).astype(np.float64)
    value = backend.numpy(backend.call(likelihood.value, *arrays))
    expected = reference.loss_value(name, outputs, targets)
    scale = float(np.abs(expected).max() + spread)
    assert_close(value, expected, dtype=dtype, size=8, scale=scale)
    gradient = backend.numpy(backend.call(likelihood.gradient, *arrays))
    expected = reference.loss_gradient(name, outputs, targets)
    assert_close(gradient, expected, dtype=dtype, size=8, scale=max(1.0, np.abs(expected).max()))


@law(seed=seeds, name=names, shape=shapes, spread=spreads, dtype=dtypes)
def test_root_times_itself_is_the_hessian(backend, seed, name, shape, spread, dtype):
    """T6: sum_m S_m S_m^T is the Hessian, blocks of different positions zero."""
    outputs, _ = data(rng(seed), name, shape, spread)
    root = backend.numpy(backend.call(losses.get(name).hessian_root, backend.array(outputs, dtype)))
    flat = root.reshape(root.shape[0], shape[0], -1).astype(np.float64)
    hessian = np.einsum("mni,mnj->nij", flat, flat)
    expected = reference.loss_hessian(name, outputs.astype(dtype).astype(np.float64))
    assert_close(hessian, expected, dtype=dtype, size=10, scale=1.0)


@law(seed=seeds, name=names, shape=shapes, samples=st.integers(1, 3))
def test_samples_equal_the_oracle(backend, seed, name, shape, samples):
    r, likelihood = rng(seed), losses.get(name)
    outputs, _ = data(r, name, shape, 1.0)
    noise = noise_for(r, likelihood, outputs, samples)
    got = backend.numpy(
        backend.call(
            lambda f, u, *, xp: likelihood.sample(f[None, ...], u, xp=xp),
            backend.array(outputs),
            backend.array(noise),
        )
    )
    for k in range(samples):
        assert_close(got[k], reference.sample_targets(name, outputs, noise[k]))


@law(classes=st.integers(2, 40), seed=seeds, dtype=dtypes)
def test_the_largest_noise_draws_no_label_beyond_the_last(backend, classes, seed, dtype):
    """Even where rounding leaves the sum of the probabilities below 1."""
    outputs = backend.array(rng(seed).standard_normal((64, classes)), dtype)
    edge = np.nextafter(np.ones((), dtype), np.zeros((), dtype))
    noise = backend.array(np.full(64, edge), dtype)
    label = backend.numpy(backend.call(losses.categorical.sample, outputs, noise))
    assert label.max() < classes


@law(dtype=dtypes)
def test_noise_at_a_probability_is_above_it(backend, dtype):
    """P(noise < 1/2) = 1/2 for noise in [0, 1): at 1/2 the second class, and no success."""
    half = np.full((1,), 0.5)
    logits = backend.array(np.zeros((1, 2)), dtype)
    label = backend.call(losses.categorical.sample, logits, backend.array(half, dtype))
    assert backend.numpy(label).tolist() == [1]
    success = backend.call(
        losses.bernoulli.sample, logits, backend.array(np.full((1, 2), 0.5), dtype)
    )
    assert backend.numpy(success).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_samples_follow_the_model(name):
    """Frequencies within five standard errors of the model's probabilities."""
    r, likelihood, samples = rng(1), losses.get(name), 20_000
    outputs = np.asarray([[0.0, 1.0, -2.0]])
    drawn = likelihood.sample(outputs[None], noise_for(r, likelihood, outputs, samples))
    if name == "categorical":
        p = np.exp(outputs[0]) / np.exp(outputs[0]).sum()
        frequency = np.mean(drawn == np.arange(3), axis=0)
    elif name == "bernoulli":
        p, frequency = 1 / (1 + np.exp(-outputs[0])), drawn.mean(axis=0)[0]
    else:
        assert np.abs(drawn.mean(axis=0) - outputs).max() < 5 / samples**0.5
        assert np.abs(drawn.var(axis=0) - 1).max() < 5 * (2 / samples) ** 0.5
        return
    assert np.all(np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / samples))


@law(seed=seeds, name=names, shape=shapes, kind=st.sampled_from(["exact", "mc", "empirical"]))
def test_fisher_vectors_equal_the_oracle(backend, seed, name, shape, kind):
    r, likelihood = rng(seed), losses.get(name)
    outputs, targets = data(r, name, shape, 1.0)
    noise = noise_for(r, likelihood, outputs, 3)
    options = {"mc": {"noise": noise}, "empirical": {"targets": targets}, "exact": {}}[kind]
    keys = tuple(options)
    vectors = backend.numpy(
        backend.call(
            lambda f, *values, xp: losses.fisher_vectors(
                kind, likelihood, f, **dict(zip(keys, values, strict=True)), xp=xp
            ),
            backend.array(outputs),
            *(backend.array(value) for value in options.values()),
        )
    )
    sampled = [reference.sample_targets(name, outputs, u) for u in noise]
    wanted = reference.backpropagated_vectors(
        name, outputs, kind, targets={"mc": sampled, "empirical": targets, "exact": None}[kind]
    )

    def moment(v):
        v = v.reshape(v.shape[0], shape[0], -1)
        return np.einsum("mni,mnj->nij", v, v)

    assert_close(moment(vectors), moment(wanted), size=10)


@law(logit=st.integers(5, 60), dtype=dtypes)
def test_tails_keep_their_relative_accuracy(backend, logit, dtype):
    """Where a sigmoid is almost 0 or 1 the gradient and the root still have all their digits."""
    logits = backend.array(np.asarray([[-float(logit), float(logit)]]), dtype)
    targets = backend.array(np.asarray([[0.0, 0.0]]), dtype)
    tail = np.exp(-float(logit)) / (1 + np.exp(-float(logit)))
    gradient = backend.numpy(backend.call(losses.bernoulli.gradient, logits, targets))
    assert_close(gradient[0, :1], [tail], dtype=dtype, size=logit)
    assert_close(gradient[0, 1:], [1 - tail], dtype=dtype)
    root = backend.numpy(backend.call(losses.bernoulli.hessian_root, logits))
    sd = np.sqrt(tail * (1 - tail))
    assert_close(root[:, 0, :], np.diag([sd, sd]), dtype=dtype, size=logit)


@law(dtype=dtypes)
def test_targets_take_the_dtype_of_the_outputs(backend, dtype):
    """Whole numbers for targets, and noise of another precision, change no dtype."""
    outputs = backend.array(np.asarray([[0.5, -1.0]]), dtype)
    whole = backend.array(np.asarray([[1, 0]]))
    noise = backend.array(np.asarray([[0.25, 0.75]]))
    for likelihood in (losses.gaussian, losses.bernoulli):
        for function in (likelihood.value, likelihood.gradient):
            got = backend.numpy(backend.call(function, outputs, whole))
            wanted = backend.call(function, outputs, backend.array([[1.0, 0.0]], dtype))
            assert str(got.dtype) == dtype
            assert np.array_equal(got, backend.numpy(wanted))
        sample = backend.numpy(backend.call(likelihood.sample, outputs, noise))
        assert str(sample.dtype) == dtype


@law(name=names, dtype=dtypes, scale=st.sampled_from([1e3, 1e4]))
def test_extreme_logits_stay_finite(backend, name, dtype, scale):
    outputs = scale * np.asarray([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]])
    likelihood = losses.get(name)
    targets = np.asarray([1, 0]) if name == "categorical" else np.ones((2, 3))
    f, y = backend.array(outputs, dtype), backend.array(targets, dtype)
    value = backend.numpy(backend.call(likelihood.value, f, y))
    if name == "categorical":
        assert_close(value, [2 * scale, 2 * scale + np.log(2)], dtype=dtype)
    for x in (
        value,
        backend.numpy(backend.call(likelihood.gradient, f, y)),
        backend.numpy(backend.call(likelihood.hessian_root, f)),
    ):
        assert np.isfinite(x).all()


LOGITS = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: losses.get("poisson"), ValueError, "likelihood is 'poisson'; expected one of"),
        (
            lambda: losses.categorical.value(LOGITS, np.zeros(4)),
            TypeError,
            "targets have dtype float64; categorical targets are integer class labels",
        ),
        (
            lambda: losses.categorical.value(LOGITS, np.zeros((4, 3), int)),
            ValueError,
            r"targets have shape \(4, 3\) for outputs of shape \(4, 3\)",
        ),
        (
            lambda: losses.categorical.value(LOGITS, np.zeros(5, int)),
            ValueError,
            r"targets have shape \(5,\) for outputs of shape \(4, 3\)",
        ),
        (
            lambda: losses.gaussian.value(LOGITS, np.zeros((1, 3))),
            ValueError,
            r"targets have shape \(1, 3\); expected that of the outputs, \(4, 3\)",
        ),
        (
            lambda: losses.gaussian.value(LOGITS[:1], np.zeros((5, 3))),
            ValueError,
            r"targets have shape \(5, 3\); expected that of the outputs, \(1, 3\)",
        ),
        (
            lambda: losses.categorical.value(LOGITS[:1], np.zeros(5, int)),
            ValueError,
            r"targets have shape \(5,\) for outputs of shape \(1, 3\)",
        ),
        (
            lambda: losses.gaussian.gradient(LOGITS, np.zeros((4, 2))),
            ValueError,
            r"targets have shape \(4, 2\); expected",
        ),
        (
            lambda: losses.gaussian.value(np.zeros((4, 3), int), LOGITS),
            TypeError,
            "outputs has dtype int64",
        ),
        (lambda: losses.gaussian.value(np.zeros(3), np.zeros(3)), ValueError, "at least 2 axes"),
        (
            lambda: losses.fisher_vectors("type-2", losses.gaussian, LOGITS),
            ValueError,
            "kind is 'type-2'; expected one of 'exact', 'mc', 'empirical'",
        ),
        (
            lambda: losses.fisher_vectors("mc", losses.gaussian, LOGITS),
            ValueError,
            "noise is needed for the Fisher of kind 'mc'",
        ),
        (
            lambda: losses.fisher_vectors("exact", losses.gaussian, LOGITS, targets=LOGITS),
            ValueError,
            "targets is not used for the Fisher of kind 'exact'",
        ),
        (
            lambda: losses.fisher_vectors("mc", losses.gaussian, LOGITS, noise=LOGITS),
            ValueError,
            r"noise has shape \(4, 3\); expected",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("wrong", [[[0, 1]], "torch"])
def test_foreign_targets_and_noise_get_one_clear_sentence(name, wrong):
    import torch

    likelihood = losses.get(name)
    wrong = torch.zeros((4, 3)) if wrong == "torch" else wrong
    for function in (likelihood.value, likelihood.gradient, likelihood.sample):
        with pytest.raises(TypeError, match=r"(targets|noise) is a .*; (expected|convert)"):
            function(LOGITS, wrong)
