"""Inverses by matrix products alone: the coupled Newton-Schulz iteration.

With ``M_k = m X_k``, ``X <- X (2 I - M)`` and ``M <- M (2 I - M)``, so that
``I - M_{k+1} = (I - M_k)^2`` (Schulz 1933). From ``X_0 = I / |m|_F`` an eigenvalue w of m leaves
``(1 - w / |m|_F)^(2^k)``: with ``kappa = |m|_F / w_min``, at most ``sqrt(n)`` times the condition
number, ``log2(kappa) + 4`` steps suffice. M is carried along, not formed anew from X: where it is,
rounding grows with the square of the condition number (measured: float32 at 1e5 fails). At the end
one step from the true residual, ``X + X (I - m X)``, makes up for what M has drifted.

Measured for matrices of order 60 with eigenvalues evenly spread over the decades: largest relative
Frobenius error of 20 inverses, and steps after which it does not get better. Cholesky inverses in
the same dtype have the same errors to within a third.

=======  =========  ===========  =====
dtype    condition  error        steps
=======  =========  ===========  =====
float32  1e2        7.5e-7       11
float32  1e4        4.2e-5       17
float32  1e5        3.7e-4       20
float32  1e6        not usable
float64  1e4        1.4e-13      19
float64  1e8        9.4e-10      31
float64  1e12       9.4e-6       43
=======  =========  ===========  =====

A step is two products, ``4 n^3`` operations, where a Cholesky inverse takes about ``2 n^3`` in all:
this pays only where nothing but products is fast or to be had, or from a start that is nearly
right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.inversion.ops import PURE, Ops

__all__ = ["NewtonSchulz", "frobenius_norm", "newton_schulz_inverse", "newton_schulz_ops"]

STEPS = 30
WARM_STEPS = 6
WARM = 0.5
"""Largest ``|I - m X|_F`` of a start X that is used: 6 steps leave 1e-19 of it."""

RESIDUAL = 0.1
"""Largest usable ``|I - m X|_F`` before the last product, which squares it."""


def frobenius_norm(x: Array, *, xp: Namespace) -> Array:
    """Square root of the sum of squares of a matrix.

    Parameters
    ----------
    x : array, shape (..., n, m)
        Matrices.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (..., 1, 1)
        Norms.

    Examples
    --------
    >>> import numpy as np
    >>> frobenius_norm(np.asarray([[3.0, 4.0]]), xp=np)
    array([[5.]])
    """
    return xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True))


def newton_schulz_inverse(
    m: Array, *, steps: int = STEPS, start: Array | None = None, xp: Namespace | None = None
) -> Array:
    """Inverse of symmetric positive definite matrices by products alone.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Symmetric positive definite matrices.
    steps : int
        Steps of two products each; ``2^(steps - 4)`` bounds ``|m|_F`` over the least eigenvalue.
    start : array, shape (..., n, n), optional
        Guess of the inverse, for example that of a similar matrix; not used where
        ``|I - m start|_F`` is not below 0.5.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    array, shape (..., n, n)
        Symmetric inverses in the dtype of `m`; NaN where the iteration has not converged, because
        of too few steps for the condition number, or since a matrix is not positive definite.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If `m` is not square, `steps` is below 1, or `start` is of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> newton_schulz_inverse(np.diag([4.0, 10.0])).round(6)
    array([[0.25, 0.  ],
           [0.  , 0.1 ]])
    """
    _check_steps(steps=steps)
    xp = _checks.common_namespace(xp, m=m, **({} if start is None else {"start": start}))
    _checks.floating(xp, m=m)
    _checks.square(m=m)
    m, finite = _sane(m, xp=xp)
    x, product, _ = _begin(m, start, xp=xp)
    x, _ = _iterate(x, product, steps, xp=xp)
    return _finish(m, finite, x, xp=xp)


def newton_schulz_ops(steps: int = STEPS, warm_steps: int = WARM_STEPS, *, ops: Ops = PURE) -> Ops:
    """Table of operations in which nothing is factorised, for methods with Cholesky inverses.

    Parameters
    ----------
    steps : int
        As in `newton_schulz_inverse`.
    warm_steps : int
        Steps where the last inverse is a good start for all matrices of a stack; 6 suffice.
    ops : Ops
        The other operations. With a ``cond`` that computes one branch only (`EAGER`, or the native
        one of JAX) a good start saves time; with `PURE` both are computed.

    Returns
    -------
    Ops
        For the option ``ops`` of a method. What does not converge goes down the chain of
        `ngd_core.inversion.damped_inverse`.

    Raises
    ------
    ValueError
        If a number of steps is below 1.

    Notes
    -----
    The start is good where a refresh follows soon. Measured with K-FAC on the sigmoid MLP of
    ``ngd compare`` (digits, batches of 256, decay 0.95, dampings 1e-3 to 1e-1, steps 31 to 60): at
    93 to 100 of 100 refreshes every step, at 0 to 33 of 100 every five steps.

    Examples
    --------
    >>> from ngd_core import KFAC
    >>> KFAC(ops=newton_schulz_ops(steps=20)).ops.spd_inverse.steps
    20
    """
    inverse = NewtonSchulz(steps, warm_steps, ops.cond)
    return replace(ops, spd_inverse=inverse, warm=True)


@dataclass(frozen=True)
class NewtonSchulz:
    """Entry ``spd_inverse`` of a table of operations, which starts from the last inverse.

    Parameters
    ----------
    steps, warm_steps : int
        As in `newton_schulz_ops`.
    cond : callable
        As in `ngd_core.inversion.Ops`.

    Raises
    ------
    ValueError
        If a number of steps is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> NewtonSchulz()(np.diag([4.0, 10.0]), start=np.diag([0.2, 0.1]), xp=np).round(6)
    array([[0.25, 0.  ],
           [0.  , 0.1 ]])
    """

    steps: int = STEPS
    warm_steps: int = WARM_STEPS
    cond: Callable[..., Any] = PURE.cond

    def __post_init__(self) -> None:
        _check_steps(steps=self.steps, warm_steps=self.warm_steps)

    def __call__(self, m: Array, *, start: Array | None = None, xp: Namespace) -> Array:
        """Inverse as of `newton_schulz_inverse`."""
        m, finite = _sane(m, xp=xp)
        x, product, warm = _begin(m, start, xp=xp)
        if start is None:
            x, product = _iterate(x, product, self.steps, xp=xp)
        else:
            x, product = self.cond(
                xp.all(warm),
                lambda: _iterate(x, product, self.warm_steps, xp=xp),
                lambda: _iterate(x, product, self.steps, xp=xp),
                xp=xp,
            )
        return _finish(m, finite, x, xp=xp)


def _check_steps(**numbers: int) -> None:
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            msg = f"{name} is {value!r}; expected an integer >= 1."
            raise ValueError(msg)


def _sane(m: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Matrices, identities in place of those that are not finite, and which were."""
    finite = xp.all(xp.isfinite(m), axis=(-2, -1))[..., None, None]
    return xp.where(finite, m, _xp.eye(m.shape[-1], like=m, xp=xp)), finite


def _begin(m: Array, start: Array | None, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """First X, ``M = m X``, and where X is the guess."""
    identity = _xp.eye(m.shape[-1], like=m, xp=xp)
    norm = frobenius_norm(m, xp=xp)
    if start is None:
        return identity / norm, m / norm, _xp.zeros((), like=m, dtype=xp.bool, xp=xp)
    _checks.shape("start", start, tuple(m.shape), "that of m")
    # NaN and what would overflow; no inverse of a matrix with entries of order 1 is that large
    sane = xp.abs(start) < _xp.eps(start.dtype, xp=xp) ** -2
    start = xp.where(sane, start, _xp.zeros((), like=start, xp=xp))
    product = m @ start
    warm = frobenius_norm(identity - product, xp=xp) < WARM
    x = xp.where(warm, start, identity / norm)
    return x, xp.where(warm, product, m / norm), warm


def _iterate(x: Array, product: Array, steps: int, *, xp: Namespace) -> tuple[Array, Array]:
    n = x.shape[-1]
    identity = _xp.eye(n, like=x, xp=xp)
    for _ in range(steps):
        rest = identity - product
        # of a positive definite matrix it is never above sqrt(n): what grows stays where it is
        safe = frobenius_norm(rest, xp=xp) <= 2 * math.sqrt(n)
        change = identity + xp.where(safe, rest, _xp.zeros((), like=x, xp=xp))
        x, product = x @ change, product @ change
    return x, product


def _finish(m: Array, finite: Array, x: Array, *, xp: Namespace) -> Array:
    """One step from the true residual; NaN where that is too large for it."""
    rest = _xp.eye(m.shape[-1], like=m, xp=xp) - m @ x
    ok = finite & (frobenius_norm(rest, xp=xp) < RESIDUAL)
    x = x + x @ rest
    return xp.where(ok, 0.5 * (x + x.mT), _xp.full((), float("nan"), like=x, xp=xp))
