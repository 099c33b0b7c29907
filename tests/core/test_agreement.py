"""How far directions are from the exact natural gradient, and what that says of methods."""

import numpy as np
import pytest
from core.analysis_cases import FC, PAIR, P, batch, blocks, cut, fisher, flat, gradients, slow
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    DenseNGD,
    Hyper,
    ProjectiveKFAC,
    TridiagonalKFAC,
    analysis,
    factors,
    losses,
    nn,
    reference,
)
from ngd_core.testing import assert_close, assert_far

dampings = st.sampled_from([0.1, 1e-3, 10.0])


def mean_gradients(records, specs=PAIR):
    """Sum over vectors, mean over examples: the batch's own gradient where M = 1."""
    return cut(gradients({s: records[s] for s in specs}).sum(axis=0).mean(axis=0), specs)


# the measure --------------------------------------------------------------------------------


@law(seed=seeds, vectors=st.sampled_from([2, None]), damping=dampings, dtype=dtypes)
def test_agreement_is_that_of_the_dense_solve(backend, seed, vectors, damping, dtype):
    """Cosine, relative error and decrease of any direction, over all layers and layer by layer."""
    layers = (FC,) if slow(backend) else PAIR
    records = batch(seed, vectors, 3, dtype, layers)
    u, g = blocks(seed, dtype, layers), blocks(seed + 1, dtype, layers)
    u = {s: x if np.sum(x * g[s]) > 0 else -x for s, x in u.items()}

    arrays = [backend.tree(x, dtype) for x in (u, g, records)]
    got = [(layers, backend.call(analysis.agreement, *arrays, damping))]
    if not slow(backend):
        by_layer = backend.call(analysis.layer_agreements, *arrays, damping)
        got += [((spec,), by_layer[spec]) for spec in layers]
    for specs, numbers in got:
        numbers = backend.numpy(numbers)
        F = fisher({s: records[s] for s in specs})
        wanted = reference.agreement(F, flat(u, specs), flat(g, specs), damping)
        kappa = 1 + np.linalg.eigvalsh(F)[-1] / damping if dtype == "float64" else 1.0
        for name in wanted._fields:
            x = getattr(numbers, name)
            assert str(x.dtype) == dtype
            scale = max(1.0, abs(getattr(wanted, name)))
            options = {"dtype": dtype, "size": P, "kappa": kappa, "scale": scale}
            assert_close(x, getattr(wanted, name), **options)


@law(seed=seeds, damping=dampings, scale=st.sampled_from([1e-3, 7.0, 1e3]))
def test_decrease_is_a_squared_cosine_and_knows_no_length(backend, seed, damping, scale):
    """In [0, 1]; cos^2 in the metric of F + lambda I; only the relative error sees the length."""
    records, g, u = batch(seed, 2, 3), blocks(seed, "float64"), blocks(seed + 1, "float64")
    xp = backend.xp
    arrays = [backend.tree(x) for x in (u, g, records)]
    one = analysis.agreement(*arrays, damping, xp=xp)
    longer = [{s: scale * x for s, x in arrays[0].items()}, *arrays[1:]]
    other = analysis.agreement(*longer, damping, xp=xp)
    one, other = backend.numpy((one, other))
    assert_close(other.cosine, one.cosine, size=P, scale=1.0)
    assert_close(other.decrease, one.decrease, size=P, scale=1.0)
    assert 0 <= one.decrease <= 1
    assert -1 <= one.cosine <= 1
    H = fisher(records) + damping * np.eye(P)
    exact = np.linalg.solve(H, flat(g))
    cosine = flat(u) @ H @ exact / np.sqrt((flat(u) @ H @ flat(u)) * (exact @ H @ exact))
    kappa = np.linalg.cond(H)
    length = np.linalg.norm(flat(u)) / np.linalg.norm(exact)
    for got, r in ((one, length), (other, scale * length)):
        error = np.sqrt(1 - 2 * r * one.cosine + r**2)
        assert_close(got.relative_error, error, size=P, kappa=kappa)
    assert_close(one.decrease, max(0.0, cosine) ** 2, size=P, kappa=kappa, scale=1.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damping", [0.1, 10.0])
def test_the_plain_gradient_obeys_kantorovich(seed, damping):
    """4 kappa / (1 + kappa)^2 <= decrease <= 1, and the lower bound is reached."""
    records, g = batch(seed, 2, 3), blocks(seed)
    values, vectors = np.linalg.eigh(fisher(records) + damping * np.eye(P))
    kappa = values[-1] / values[0]
    bound = 4 * kappa / (1 + kappa) ** 2
    got = analysis.agreement(g, g, records, damping)
    assert bound <= float(got.decrease) <= 1
    worst = cut(vectors[:, 0] + vectors[:, -1])
    got = analysis.agreement(worst, worst, records, damping)
    assert_close(got.decrease, bound, size=P, kappa=kappa)


def test_directions_that_do_not_descend():
    records, g = batch(0, 2, 3), blocks(0)
    exact = analysis.natural_gradient(records, g, 0.1)
    up = analysis.agreement({s: -x for s, x in exact.items()}, g, records, 0.1)
    assert_close(np.asarray(up), [-1.0, 2.0, 0.0], size=P, kappa=1e3)
    zero = {s: 0 * x for s, x in g.items()}
    assert np.asarray(analysis.agreement(zero, g, records, 0.1)).tolist() == [0.0, 1.0, 0.0]
    assert np.asarray(analysis.agreement(zero, zero, records, 0.1)).tolist() == [1.0, 0.0, 1.0]
    got = np.asarray(analysis.agreement(g, zero, records, 0.1)).tolist()
    assert got == [0.0, float("inf"), 0.0]


# what it says of methods --------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_the_dense_method_agrees(backend, seed, dtype):
    """A fresh DenseNGD on the batch is the exact one, whatever the batch."""
    specs = (FC,) if slow(backend) else PAIR
    records = batch(seed, 2, 3, dtype, specs)
    grads = mean_gradients(records, specs)

    arrays = backend.tree(records, dtype), backend.tree(grads, dtype)
    got = analysis.method_agreement(DenseNGD(), *arrays, Hyper(0.1), xp=backend.xp)
    kappa = 1 + np.linalg.eigvalsh(fisher(records))[-1] / 0.1
    assert_close(backend.numpy(got), [1.0, 0.0, 1.0], dtype=dtype, size=P, kappa=kappa)


def network(seed, curve=None, n=4, likelihood="gaussian"):
    """Records of the exact Fisher and of one sample, and gradients, of a network of two layers."""
    r = rng(seed)
    middle = () if curve is None else (curve,)
    model = nn.Sequential(nn.Dense("first", 3, 4), *middle, nn.Dense("last", 4, 2))
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    x = r.standard_normal((n, 3))
    labels = r.integers(0, 2, n) if likelihood == "categorical" else r.standard_normal((n, 2))
    loss = losses.get(likelihood)
    outputs, tape = nn.forward(model, params, x)
    noise = r.random((1, *loss.noise_shape(outputs)))
    records = [
        nn.backward(model, params, tape, vectors, grads=False).records
        for vectors in (
            losses.fisher_vectors("exact", loss, outputs),
            losses.fisher_vectors("mc", loss, outputs, noise=noise),
        )
    ]
    back = nn.backward(model, params, tape, loss.gradient(outputs, labels))
    grads = {spec: back.grads[spec.name] for spec in back.records}
    return *records, grads


def by_layer(method, records, grads, damping):
    """What the method scores when each layer is all there is."""
    hyper = Hyper(damping)
    return {
        s.name: analysis.method_agreement(method, {s: records[s]}, {s: grads[s]}, hyper)
        for s in records
    }


EXACT_KFAC = KFAC(damping_split="exact")
CURVE = nn.Tanh()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [{"n": 1, "curve": CURVE}, {"n": 6}])
def test_kfac_agrees_layer_by_layer_where_theory_says_so(seed, case):
    """1.12 T1 and T2: one datum with a curve, or a deep linear network with square loss."""
    records, _, grads = network(seed, **case)
    for got in by_layer(EXACT_KFAC, records, grads, 0.1).values():
        assert_close(np.asarray(got), [1.0, 0.0, 1.0], size=20, kappa=1e3)
    joint = analysis.method_agreement(EXACT_KFAC, records, grads, Hyper(0.1))
    assert float(joint.cosine) < 0.99  # the blocks between layers
    directions = {
        s: analysis.natural_gradient({s: records[s]}, {s: grads[s]}, 0.1)[s] for s in records
    }
    same = analysis.agreement(directions, grads, records, 0.1)
    assert_close(np.asarray(joint), np.asarray(same), size=20, kappa=1e3)


@pytest.mark.parametrize("seed", range(3))
def test_kfac_does_not_agree_elsewhere(seed):
    """Two and more data behind a curve and a curved loss; or factored damping, or one sample."""
    records, sampled, grads = network(seed, CURVE, 6, "categorical")
    first = by_layer(EXACT_KFAC, records, grads, 0.01)["first"]
    assert float(first.decrease) < 0.999
    assert float(first.relative_error) > 0.02
    records, sampled, grads = network(seed)
    pi = by_layer(KFAC(damping_split="pi"), records, grads, 0.1)
    assert max(float(got.relative_error) for got in pi.values()) > 0.02
    hyper = Hyper(0.1)
    honest = analysis.method_agreement(EXACT_KFAC, sampled, grads, hyper, exact_records=records)
    itself = analysis.method_agreement(EXACT_KFAC, sampled, grads, hyper)
    state = EXACT_KFAC.init(list(records), np.zeros(()))
    state, _ = EXACT_KFAC.refresh(EXACT_KFAC.accumulate(state, sampled, hyper), hyper)
    directions, _ = EXACT_KFAC.direction(state, grads, sampled, hyper)
    wanted = analysis.agreement(directions, grads, records, 0.1)
    assert_close(np.asarray(honest), np.asarray(wanted), size=100)
    assert_far(np.asarray(honest), np.asarray(itself), least=1e-3)


def test_a_state_is_taken_as_it_is():
    """A state that never saw the batch gives the identity: the plain gradient's numbers."""
    records, g = batch(1, 2, 3), blocks(1)
    method, hyper = DenseNGD(), Hyper(0.1)
    state = method.init(PAIR, np.zeros(()))
    got = analysis.method_agreement(method, records, g, hyper, state=state)
    plain = analysis.agreement(g, g, records, 0.1)
    assert np.asarray(got).tolist() == np.asarray(plain).tolist()
    state, _ = method.refresh(method.accumulate(state, batch(2, 2, 3), hyper), hyper)
    stale = analysis.method_agreement(method, records, g, hyper, state=state)
    assert float(stale.decrease) < 0.99
    other = analysis.method_agreement(method, records, g, Hyper(0.1), damping=10.0)
    u = cut(reference.solve(fisher(records), flat(g), 0.1))
    wanted = reference.agreement(fisher(records), flat(u), flat(g), 10.0)
    assert_close(np.asarray(other), wanted, size=P, kappa=1e3)


@pytest.mark.parametrize(
    "method",
    [
        DenseNGD("layer"),
        EKFAC(),
        FNGD(batch_size=5),
        KFAC(),
        ProjectiveKFAC(0.5),
        SNGD(),
        SOFIM(rho=0.1),
        TridiagonalKFAC(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_every_method_can_be_asked(method):
    """All of them descend on a batch of their own; numbers are in range."""
    model = nn.Sequential(nn.Dense("first", 3, 4), CURVE, nn.Dense("last", 4, 2))
    r = rng(0)
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    outputs, tape = nn.forward(model, params, r.standard_normal((5, 3)))
    back = nn.backward(model, params, tape, losses.gaussian.gradient(outputs, 0 * outputs))
    grads = {s: back.grads[s.name] for s in back.records}
    got = analysis.method_agreement(method, back.records, grads, Hyper(0.1))
    assert 0 < float(got.decrease) <= 1
    assert 0 < float(got.cosine) <= 1


def test_a_fresh_state_knows_the_batch_as_well_as_it_can():
    """Whatever the decay; EKFAC's scales are those of its basis from the second round on."""
    records, _, grads = network(0, CURVE, 6, "categorical")
    for method in (KFAC(), EXACT_KFAC, EKFAC(), DenseNGD("layer")):
        got = [
            np.asarray(analysis.method_agreement(method, records, grads, Hyper(0.1, d), rounds=k))
            for k, d in ((1, 0.95), (2, 0.95), (3, 0.5))
        ]
        assert_close(got[2], got[1], size=100)
        if isinstance(method, EKFAC):
            assert_far(got[0], got[1], least=1e-3)
        else:
            assert_close(got[0], got[1], size=100)
    default = analysis.method_agreement(EKFAC(), records, grads, Hyper(0.1))
    diagonal = {}
    for spec, record in records.items():  # Q diag(Q^T F Q) Q^T, by dense matrices
        A, G = factors.kronecker_factors(spec, record)
        Q = reference.kron(np.linalg.eigh(G)[1], np.linalg.eigh(A)[1])
        scales = np.diag(Q.T @ fisher({spec: record}) @ Q)
        u = Q @ ((Q.T @ grads[spec].reshape(-1)) / (scales + 0.1))
        diagonal[spec] = u.reshape(spec.block_shape)
    wanted = analysis.agreement(diagonal, grads, records, 0.1)
    assert_close(np.asarray(default), np.asarray(wanted), size=100, kappa=100)


# mistakes -----------------------------------------------------------------------------------

G = blocks(0)
RECORDS = batch(0, 2, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: analysis.agreement(G, G, RECORDS, 0.0), r"damping is 0\.0; expected .* > 0"),
        (lambda: analysis.agreement(G, G, {}, 0.1), "records is empty; expected"),
        (
            lambda: analysis.agreement({FC: G[FC]}, G, RECORDS, 0.1),
            "records holds the layer 'conv'",
        ),
        (
            lambda: analysis.agreement(G, {FC: G[FC]}, RECORDS, 0.1),
            "records holds the layer 'conv'",
        ),
        (lambda: analysis.agreement(G, G, {FC: RECORDS[FC]}, 0.1), "directions holds the layer"),
        (lambda: analysis.layer_agreements(G, {FC: G[FC]}, RECORDS, 0.1), "holds the layer 'conv'"),
        (lambda: analysis.agreement({**G, FC: G[FC].T}, G, RECORDS, 0.1), r"shape \(4, 2\)"),
        (lambda: analysis.agreement(G, G, RECORDS, 0.1, limit=5), r"6 rows, above the limit of 5"),
        (lambda: analysis.agreement(G, G, RECORDS, 0.1, dtype="half"), "dtype is 'half'"),
        (
            lambda: analysis.method_agreement(KFAC(), RECORDS, G, Hyper(0.1), rounds=0),
            "rounds is 0; expected an integer >= 1",
        ),
        (
            lambda: analysis.trace({**RECORDS, FC: batch(0, 3, 3)[FC]}),
            r"differ in their numbers .* \{'fc': \(3, 3\), 'conv': \(2, 3\)\}",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
