"""Level "methods": every method against its dense definition, and what a step must not depend on.

Each check is a function of a `BackendUnderTest` and plain values; its docstring states the law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ngd_core import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    DenseNGD,
    Hyper,
    LayerSpec,
    ProjectiveKFAC,
    TridiagonalKFAC,
    factors,
    reference,
)
from ngd_core.inversion import Ops
from ngd_core.testing.assertions import assert_close
from ngd_core.testing.problems import LAYERS, blocks, layer_oracle, records
from ngd_core.testing.protocol import BackendUnderTest, tree_map

__all__ = ["CHECKS", "METHODS", "step"]

_FNGD: dict[str, Any] = {"damping_mode": "absolute", "gain": "natural"}

METHODS: dict[str, tuple[Callable[[Ops, int], Any], tuple[str, ...]]] = {
    "kfac": (lambda ops, n: KFAC(ops=ops), ("fc", "seq", "conv")),
    "kfac exact": (lambda ops, n: KFAC("exact", ops=ops), ("fc", "seq", "conv")),
    "ekfac": (lambda ops, n: EKFAC(), ("fc", "conv")),
    "sngd": (lambda ops, n: SNGD(damping_mode="absolute", ops=ops), ("fc", "conv")),
    "fngd": (lambda ops, n: FNGD(batch_size=n, ops=ops, **_FNGD), ("fc", "conv")),
    "sofim": (lambda ops, n: SOFIM(None, None), ("fc", "conv")),
    "projective": (lambda ops, n: ProjectiveKFAC(1.0, recursive=False, ops=ops), ("fc",)),
    "dense": (lambda ops, n: DenseNGD(ops=ops), ("fc", "conv")),
    "tridiagonal": (lambda ops, n: TridiagonalKFAC(ops=ops), ("fc",)),
}
"""How each is made with a table of operations and for a batch size, and the `LAYERS` it is on."""

AVERAGING = ("kfac", "kfac exact", "dense")
"""Methods whose step does not depend on micro-batches, for any damping."""


def step(
    method: Any, state: Any, batches: Sequence[Any], grads: Any, hyper: Hyper, *, xp: Any
) -> tuple[Any, Any, Any, Any]:
    """Fold batches in, refresh, and take the direction.

    Parameters
    ----------
    method : Method
        Of `ngd_core`.
    state : NamedTuple
        From its ``init``.
    batches : sequence of mapping of LayerSpec to LayerRecord
        Micro-batches of the step; all but the first come with a decay of 1.
    grads : mapping of LayerSpec to array
        Gradients of the mean loss.
    hyper : Hyper
        Damping and decay.
    xp : namespace
        Of the arrays.

    Returns
    -------
    state, directions, refreshed, info
        The new state, the directions, and what `refresh` and `direction` tell.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import KFAC, Hyper
    >>> from ngd_core.testing.checks_methods import step
    >>> from ngd_core.testing.problems import blocks, records
    >>> batch, grads = records(("fc",), 3, seed=0), blocks(("fc",), seed=0)
    >>> state = KFAC().init(list(batch), np.zeros(()))
    >>> [u] = step(KFAC(), state, [batch], grads, Hyper(0.1), xp=np)[1].values()
    >>> u.shape
    (2, 4)
    """
    first = True
    for batch in batches:
        state = method.accumulate(
            state, batch, hyper if first else hyper._replace(decay=1.0), xp=xp
        )
        first = False
    state, refreshed = method.refresh(state, hyper, xp=xp)
    directions, info = method.direction(state, grads, batches[-1], hyper, xp=xp)
    return state, directions, refreshed, info


def _made(backend: BackendUnderTest, name: str, examples: int) -> tuple[Any, tuple[str, ...]]:
    make, names = METHODS[name]
    return make(backend.table, examples), names


def _stepped(
    backend: BackendUnderTest, method: Any, batches: Any, grads: Any, damping: float, dtype: str
) -> tuple[Any, dict[LayerSpec, Any]]:
    state = method.init(list(grads), backend.array(0.0, dtype), xp=backend.xp)
    arrays = [backend.array(batch, dtype) for batch in batches]
    out = step(
        method, state, arrays, backend.array(grads, dtype), Hyper(damping, 0.9), xp=backend.xp
    )
    return out, backend.numpy(out[1])


def _mean(batch: Any) -> dict[LayerSpec, Any]:
    """Gradients that belong to the records, as SOFIM and FNGD read them off."""
    return {spec: factors.mean_gradient(spec, record) for spec, record in batch.items()}


def _kappa(batch: Any, damping: float) -> float:
    largest = [
        float(np.linalg.eigvalsh(A)[-1] * np.linalg.eigvalsh(G)[-1])
        for spec, record in batch.items()
        for A, G, _ in layer_oracle(spec, record)
    ]
    return 1 + 4 * max(largest) / damping


def kfac_is_the_dense_damped_solve(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, split: str, seed: int
) -> None:
    """``(G (x) A damped)^-1 vec(grad)`` with the product formed, for both splits of the damping."""
    names = ("fc", "seq", "conv")
    batch, grads = records(names, examples, seed), blocks(names, seed)
    method = KFAC(split, ops=backend.table)  # type: ignore[arg-type]
    (_, _, refreshed, info), found = _stepped(backend, method, [batch], grads, damping, dtype)
    for spec, got in found.items():
        groups, grad = layer_oracle(spec, batch[spec]), grads[spec]
        parts = zip(groups, grad.reshape(len(groups), spec.rows, spec.columns), strict=True)
        want = [reference.direction(g, A, G, damping, split) for (A, G, _), g in parts]  # type: ignore[arg-type]
        kappa = max(
            np.linalg.cond(reference.damped(A, G, damping, split))  # type: ignore[arg-type]
            for A, G, _ in groups
        )
        assert str(got.dtype) == dtype, f"a direction has dtype {got.dtype}, not {dtype}"
        assert_close(
            got, np.stack(want).reshape(got.shape), dtype=dtype, size=spec.columns, kappa=kappa
        )
        assert int(backend.numpy(refreshed[spec].code)) == 0
        assert int(backend.numpy(info[spec].code)) == 0


def ekfac_is_the_dense_solve_in_its_basis(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """``(Q diag(S) Q^T + damping I)^-1 vec(grad)``, S the Fisher's diagonal in the basis Q."""
    spec = LAYERS["fc"]
    batch, grads = records(("fc",), examples, seed), blocks(("fc",), seed)
    method, xp = EKFAC(), backend.xp
    arrays, hyper = backend.array(batch, dtype), Hyper(damping, 0.0)
    state = method.init([spec], backend.array(0.0, dtype), xp=xp)
    state, _ = method.refresh(method.accumulate(state, arrays, hyper, xp=xp), hyper, xp=xp)
    state = method.accumulate(state, arrays, hyper, xp=xp)
    directions, _ = method.direction(state, backend.array(grads, dtype), {}, hyper, xp=xp)
    [(A, G, U)] = layer_oracle(spec, batch[spec])
    layer = backend.numpy(state.layers[spec])
    Q_A, Q_G = layer.a_basis.astype(np.float64), layer.g_basis.astype(np.float64)
    for Q, factor in ((Q_A, A), (Q_G, G)):
        rotated = Q.T @ factor @ Q
        diagonal = np.diag(np.diag(rotated))
        assert_close(rotated, diagonal, dtype=dtype, size=4 * examples)
    F = U.T @ U / examples
    S = np.diag(reference.kron(Q_G, Q_A).T @ F @ reference.kron(Q_G, Q_A)).reshape(2, 4)
    want = reference.ekfac_direction(grads[spec], S, Q_A, Q_G, damping)
    kappa = 1 + float(S.max()) / damping
    assert_close(backend.numpy(directions)[spec], want, dtype=dtype, size=8 * examples, kappa=kappa)


def sngd_is_the_dense_local_solve(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """``(I (x) E[a a^T] + damping I)^-1 vec(grad)``: the local Fisher is of the inputs alone."""
    batch, grads = records(("fc", "conv"), examples, seed), blocks(("fc", "conv"), seed)
    method, _ = _made(backend, "sngd", examples)
    batch = {s: r._replace(z=r.g) for s, r in batch.items()}
    _, found = _stepped(backend, method, [batch], grads, damping, dtype)
    for spec, got in found.items():
        groups = layer_oracle(spec, batch[spec])
        parts = grads[spec].reshape(len(groups), spec.rows, spec.columns)
        want, kappa = [], 1.0
        for (A, _, _), grad in zip(groups, parts, strict=True):
            want.append(reference.local_direction(grad, A, damping, "absolute"))
            kappa = max(kappa, 1 + float(np.linalg.eigvalsh(A)[-1]) / damping)
        expected = np.stack(want).reshape(got.shape)
        assert_close(got, expected, dtype=dtype, size=8 * examples, kappa=kappa)


def fngd_is_the_dense_damped_solve(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """``(U^T U / N + damping I)^-1 grad`` of each layer's own per-example gradients."""
    batch = records(("fc", "conv"), examples, seed)
    method, _ = _made(backend, "fngd", examples)
    _, found = _stepped(backend, method, [batch], _mean(batch), damping, dtype)
    for spec, got in found.items():
        U = np.concatenate([U for _, _, U in layer_oracle(spec, batch[spec])], axis=1)
        want = reference.fngd_direction(U.T, damping)
        kappa = 1 + float(np.linalg.eigvalsh(U @ U.T)[-1]) / (examples * damping)
        scale = float(np.max(np.abs(U))) / damping
        assert_close(
            got.reshape(-1), want, dtype=dtype, size=8 * examples, kappa=kappa, scale=scale
        )


def sofim_is_the_dense_rank_one_solve(
    backend: BackendUnderTest, dtype: str, damping: float, scale: float, seed: int
) -> None:
    """``(M M^T + rho I)^-1 M`` M the bias-corrected average of the gradients, by the matrix."""
    batches = [records(("fc", "conv"), 2, seed + k, scale) for k in range(3)]
    grads = [_mean(batch) for batch in batches]
    rho, xp = damping * scale**2, backend.xp
    method = SOFIM(rho, 0.8)
    state = method.init(list(grads[0]), backend.array(0.0, dtype), xp=xp)
    for batch in batches:
        state = method.accumulate(state, backend.array(batch, dtype), Hyper(), xp=xp)
    last = backend.array(grads[-1], dtype)
    directions, _ = method.direction(state, last, {}, Hyper(), xp=xp)
    flat = [np.concatenate([g[s].reshape(-1) for s in grads[0]]) for g in grads]
    want = reference.sofim_direction(reference.sofim_moment(flat, 0.8), rho)
    found = backend.numpy(directions)
    got = np.concatenate([found[s].reshape(-1) for s in grads[0]])
    largest = float(np.abs(flat).max()) / rho
    assert_close(got, want, dtype=dtype, size=len(want), scale=largest)


def dense_is_the_natural_gradient(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """``(F + damping I)^-1 grad`` with the joint Fisher of all layers formed."""
    names = ("fc", "conv")
    batch, grads = records(names, examples, seed), blocks(names, seed)
    method, _ = _made(backend, "dense", examples)
    _, found = _stepped(backend, method, [batch], grads, damping, dtype)
    specs = list(grads)
    U = np.concatenate([U for s in specs for _, _, U in layer_oracle(s, batch[s])], axis=1)
    F = U.T @ U / examples
    want = reference.solve(F, np.concatenate([grads[s].reshape(-1) for s in specs]), damping)
    got = np.concatenate([found[s].reshape(-1) for s in specs])
    kappa = 1 + float(np.linalg.eigvalsh(F)[-1]) / damping
    assert_close(got, want, dtype=dtype, size=len(want) * examples, kappa=kappa)


def projective_with_full_rank_is_kfac(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """Inverses projected on a basis of full rank are the inverses: the step is that of K-FAC."""
    batch, grads = records(("fc",), examples, seed), blocks(("fc",), seed)
    both = [
        _stepped(backend, _made(backend, name, examples)[0], [batch], grads, damping, dtype)[1]
        for name in ("projective", "kfac")
    ]
    for spec, got in both[0].items():
        kappa = _kappa(batch, damping)
        assert_close(got, both[1][spec], dtype=dtype, size=4 * examples, kappa=kappa)


def tridiagonal_is_the_dense_chain_solve(
    backend: BackendUnderTest, dtype: str, examples: int, damping: float, seed: int
) -> None:
    """``F^^-1 grad`` of two layers, F^ formed from the Kronecker products of all pairs."""
    r = np.random.default_rng(seed)
    specs = LayerSpec("one", "dense", 2, 3), LayerSpec("two", "dense", 3, 2, bias=False)
    batch, grads = {}, {}
    for spec in specs:
        shapes = (examples, spec.in_features), (examples, spec.out_features)
        fc = records(("fc",), 1, 0)[LAYERS["fc"]]
        batch[spec] = fc._replace(a=r.standard_normal(shapes[0]), g=r.standard_normal(shapes[1]))
        grads[spec] = r.standard_normal(spec.block_shape)
    method, _ = _made(backend, "tridiagonal", examples)
    _, found = _stepped(backend, method, [batch], grads, damping, dtype)
    A, G = reference.chain_factors(
        [batch[s].a for s in specs], [batch[s].g[None] for s in specs], [s.bias for s in specs]
    )
    want = reference.tridiagonal_direction(A, G, [grads[s] for s in specs], damping)
    largest = float(np.linalg.eigvalsh(reference.chain_fisher(A, G, damping))[-1])
    kappa = max(1.0, largest) / damping
    for spec, u in zip(specs, want, strict=True):
        assert_close(found[spec], u, dtype=dtype, size=8 * examples, kappa=kappa)


def steps_forget_duplicates_and_order(
    backend: BackendUnderTest,
    dtype: str,
    method: str,
    examples: int,
    copies: int,
    damping: float,
    seed: int,
) -> None:
    """A batch in another order, or each example several times, gives the same direction."""
    _, names = METHODS[method]
    batch = records(names, examples, seed)
    index = np.random.default_rng(seed).permutation(np.repeat(np.arange(examples), copies))
    more = {s: r._replace(a=r.a[index], g=r.g[index]) for s, r in batch.items()}
    grads = _mean(batch)
    one, other = (
        _stepped(backend, _made(backend, method, n)[0], [b], grads, damping, dtype)[1]
        for b, n in ((batch, examples), (more, copies * examples))
    )
    kappa = _kappa(batch, damping)
    scale = max(float(np.abs(g).max()) for g in grads.values()) / damping
    for spec, want in one.items():
        size = 8 * examples * copies
        assert_close(other[spec], want, dtype=dtype, size=size, kappa=kappa, scale=scale)


def steps_forget_micro_batches(
    backend: BackendUnderTest,
    dtype: str,
    averaging: str,
    examples: int,
    damping: float,
    seed: int,
) -> None:
    """A batch folded in part by part, the parts of any size, gives the whole batch's direction."""
    made, names = _made(backend, averaging, examples)
    batch, grads = records(names, examples + 1, seed), blocks(names, seed)
    parts = [
        {s: r._replace(a=r.a[part], g=r.g[part]) for s, r in batch.items()}
        for part in (slice(0, 1), slice(1, None))
    ]
    one, other = (_stepped(backend, made, b, grads, damping, dtype)[1] for b in ([batch], parts))
    for spec, want in one.items():
        kappa = _kappa(batch, damping)
        assert_close(other[spec], want, dtype=dtype, size=16 * examples, kappa=kappa)


def steps_scale_with_the_loss(
    backend: BackendUnderTest,
    dtype: str,
    averaging: str,
    examples: int,
    damping: float,
    scale: float,
    seed: int,
) -> None:
    """A loss times k with a damping times ``k^2`` has 1/k times the direction."""
    made, names = _made(backend, averaging, examples)
    one, more = (
        _stepped(
            backend,
            made,
            [records(names, examples, seed, k)],
            blocks(names, seed, k),
            k**2 * damping,
            dtype,
        )[1]
        for k in (1.0, scale)
    )
    kappa = _kappa(records(names, examples, seed), damping)
    for spec, want in one.items():
        got = scale * more[spec].astype(np.float64)
        assert_close(got, want, dtype=dtype, size=8 * examples, kappa=kappa)


def states_keep_their_structure(
    backend: BackendUnderTest, dtype: str, method: str, seed: int
) -> None:
    """Over steps a state keeps its keys, shapes, dtypes and device; no argument is written to."""
    made, names = _made(backend, method, 3)
    batch = records(names, 3, seed)
    grads = backend.array(_mean(batch), dtype)
    arrays, hyper = backend.array(batch, dtype), Hyper(0.1, 0.9)
    before = backend.numpy((arrays, grads))
    before = tree_map(np.array, before)
    state = made.init(list(grads), backend.array(0.0, dtype), xp=backend.xp)
    shapes = tree_map(_described, state)
    for _ in range(2):
        state, directions, _, _ = step(made, state, [arrays], grads, hyper, xp=backend.xp)
        after = tree_map(_described, state)
        assert after == shapes, f"the state changed from {shapes} to {after}"
    backend.numpy(state)
    for spec, u in directions.items():
        assert u.dtype == grads[spec].dtype
        assert tuple(u.shape) == spec.block_shape
    same = _leaves(backend.numpy((arrays, grads))), _leaves(before)
    for got, want in zip(*same, strict=True):
        assert np.array_equal(got, want), "an argument was written to"


def _described(x: Any) -> tuple[tuple[int, ...], str]:
    return tuple(int(n) for n in x.shape), str(x.dtype)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(found.append, tree)
    return found


def bad_batches_are_refused(
    backend: BackendUnderTest, dtype: str, averaging: str, seed: int
) -> None:
    """A batch that is not finite is counted and leaves the statistics; a direction stays finite."""
    made, names = _made(backend, averaging, 3)
    batch, grads = records(names, 3, seed), blocks(names, seed)
    bad = {s: r._replace(g=np.full_like(r.g, np.nan)) for s, r in batch.items()}
    one = _stepped(backend, made, [batch], grads, 0.1, dtype)[1]
    other = _stepped(backend, made, [batch, bad], grads, 0.1, dtype)[1]
    for spec, want in one.items():
        assert_close(other[spec], want, dtype=dtype, size=10, kappa=_kappa(batch, 0.1))
    spoiled = {s: np.full_like(g, np.inf) for s, g in grads.items()}
    (_, _, _, info), found = _stepped(backend, made, [batch], spoiled, 0.1, dtype)
    for spec, u in found.items():
        assert_close(u, np.zeros(u.shape))
        code = int(backend.numpy(info[spec].code))
        assert code == 5, f"the code of a gradient that is not finite is {code}, not 5"


def degenerate_batches_give_finite_directions(
    backend: BackendUnderTest, dtype: str, method: str, seed: int
) -> None:
    """Zero inputs, zero gradients or one example without damping: directions stay finite."""
    made, names = _made(backend, method, 1)
    batch = records(names, 1, seed)
    zeros = [
        {s: r._replace(**{part: 0 * getattr(r, part)}) for s, r in batch.items()}
        for part in ("a", "g")
    ]
    for one in (batch, *zeros):
        damping = 1e-6 if method == "sofim" else 0.0
        _, found = _stepped(backend, made, [one], blocks(names, seed), damping, dtype)
        for u in found.values():
            assert np.all(np.isfinite(u)), f"a direction is not finite: {u}"


CHECKS = (
    kfac_is_the_dense_damped_solve,
    ekfac_is_the_dense_solve_in_its_basis,
    sngd_is_the_dense_local_solve,
    fngd_is_the_dense_damped_solve,
    sofim_is_the_dense_rank_one_solve,
    dense_is_the_natural_gradient,
    projective_with_full_rank_is_kfac,
    tridiagonal_is_the_dense_chain_solve,
    steps_forget_duplicates_and_order,
    steps_forget_micro_batches,
    steps_scale_with_the_loss,
    states_keep_their_structure,
    bad_batches_are_refused,
    degenerate_batches_give_finite_directions,
)
"""The checks of this level for an array library."""
