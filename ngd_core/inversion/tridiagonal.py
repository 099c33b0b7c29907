"""Inverse of a joint Fisher whose inverse is block-tridiagonal along a chain of layers.

Source: Martens and Grosse (2015), section 4.3 and appendix B. The blocks of the joint Fisher are
``G_ij (x) A_ij`` (row-major; ``A_ij (x) G_ij`` in the paper's column stacking), and only those on
the diagonal, damped, and next to it enter. With

``Psi_i = (G_{i,i+1} G_{i+1}^-1) (x) (A_{i,i+1} A_{i+1}^-1)``,
``Sigma_i = G_i (x) A_i - (Psi^G G_{i+1} Psi^G^T) (x) (Psi^A A_{i+1} Psi^A^T)``,

the inverse is ``Xi^T Lambda Xi``: Xi has ``-Psi_i`` right of its unit diagonal, and Lambda is the
inverse of ``diag(Sigma_1, ..., Sigma_{L-1}, G_L (x) A_L)``.

Why every Sigma is positive definite (derived here). If the moments of neighbours are those of the
same rows, ``A_{i,i+1} = A_i^(1/2) Q A_{i+1}^(1/2)`` with ``|Q| <= 1``. So the whitened
``N = (A_i + e I)^(-1/2) A_{i,i+1} (A_{i+1} + e' I)^(-1/2)``, whose singular values are damped
canonical correlations of the two layers' inputs, has ``|N|^2 <= (1 - q) (1 - q')`` with
``q = e / (tr A_i + e)``, and likewise for G. The eigenvalues of the whitened Sigma are
``1 - s_G s_A`` with the squared singular values s. Whatever rounding does, no s is used that is
above its bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar
from ngd_core.inversion.damped_kronecker import (
    ExactInverse,
    PiInverse,
    apply_inverse,
    identity_inverse,
    refresh_inverse,
)
from ngd_core.inversion.damping import factored_damping, mean_diagonal
from ngd_core.inversion.ops import PURE, Ops
from ngd_core.inversion.spd import fallback_code, mild_code, scaled, solve_dtype

__all__ = [
    "ChainInverse",
    "Link",
    "apply_chain",
    "identity_chain",
    "kronecker_difference_solve",
    "refresh_chain",
]

SLACK = 1e-2
"""Part of the smallest possible eigenvalue of a whitened Sigma that may be cut off unreported."""


class Link(NamedTuple):
    """How a layer depends on the next one, and what the next one leaves open.

    Parameters
    ----------
    psi_a : array, shape (d, d_next)
        ``A_{i,i+1} A_{i+1}^-1``, zero before the first refresh.
    psi_g : array, shape (o, o_next)
        ``G_{i,i+1} G_{i+1}^-1``, likewise.
    k_a : array, shape (d, d)
        K with ``K^T A_i K = I`` and ``K^T A_{i,i+1} A_{i+1}^-1 A_{i+1,i} K = diag(1 - rest_a)``.
    k_g : array, shape (o, o)
        The same for G.
    rest_a : array, shape (d,)
        One minus the squared damped canonical correlations.
    rest_g : array, shape (o,)
        The same for G.
    good : array of bool, shape ()
        Whether they were once computed.
    """

    psi_a: Array
    psi_g: Array
    k_a: Array
    k_g: Array
    rest_a: Array
    rest_g: Array
    good: Array


class ChainInverse(NamedTuple):
    """Inverse of the joint Fisher of a chain of L layers.

    Parameters
    ----------
    links : tuple of Link
        Of the layers 1 to L - 1.
    last : PiInverse
        Inverse of the last layer's own block.
    """

    links: tuple[Link, ...]
    last: PiInverse | ExactInverse


class _Whitened(NamedTuple):
    """Basis W with ``W^T (m + e I) W = I``, and the share ``e / (tr m + e)`` of the damping."""

    basis: Array
    share: Array
    ok: Array
    raised: Array


def identity_chain(
    shapes: Sequence[tuple[int, int]], *, like: Array, xp: Namespace
) -> ChainInverse:
    """Inverse that leaves blocks as they are, marked as not good.

    Parameters
    ----------
    shapes : sequence of (rows, columns)
        Of the layers' blocks, in the order of the chain.
    like : array
        Template of dtype and device.
    xp : namespace
        Array namespace.

    Returns
    -------
    ChainInverse
        No two of its arrays share memory.

    Examples
    --------
    >>> import numpy as np
    >>> identity_chain([(2, 3), (1, 2)], like=np.zeros(()), xp=np).links[0].psi_a.shape
    (3, 2)
    """
    links = tuple(
        Link(
            _xp.zeros((d, d_next), like=like, xp=xp),
            _xp.zeros((o, o_next), like=like, xp=xp),
            _xp.eye(d, like=like, xp=xp),
            _xp.eye(o, like=like, xp=xp),
            _xp.ones((d,), like=like, xp=xp),
            _xp.ones((o,), like=like, xp=xp),
            _xp.zeros((), like=like, dtype=xp.bool, xp=xp),
        )
        for (o, d), (o_next, d_next) in pairwise(shapes)
    )
    o, d = shapes[-1]
    last = identity_inverse("pi", (), d, o, like=like, xp=xp)
    return ChainInverse(links, last)


def refresh_chain(
    old: ChainInverse,
    A: Sequence[Array],
    G: Sequence[Array],
    A_next: Sequence[Array],
    G_next: Sequence[Array],
    damping: Scalar,
    *,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[ChainInverse, list[Array]]:
    """Invert new factors.

    The factors on the diagonal are damped, each by its share of ``sqrt(lambda)`` (see
    `ngd_core.inversion.factored_damping`), at least by the floor of
    `ngd_core.inversion.damped_inverse`; those beside it are not.

    Parameters
    ----------
    old : ChainInverse
        Its parts stay where new ones cannot be used.
    A : sequence of L arrays, shapes (d_i, d_i)
        Input factors ``A_i``.
    G : sequence of L arrays, shapes (o_i, o_i)
        Output-gradient factors ``G_i``.
    A_next : sequence of L - 1 arrays, shapes (d_i, d_{i+1})
        Moments ``A_{i,i+1}`` of the same rows.
    G_next : sequence of L - 1 arrays, shapes (o_i, o_{i+1})
        Moments ``G_{i,i+1}`` of the same rows.
    damping : float or array of shape ()
        ``lambda``, in the units of the diagonal blocks ``G_i (x) A_i``.
    dtype : "float32", "float64" or None
        Dtype of factorisations; None means float64 where there is one.
    ops : Ops
        Replaceable operations, of which the last layer's inverse uses ``spd_inverse``.
    xp : namespace, optional
        Array namespace; found from the factors if not given.

    Returns
    -------
    inverse : ChainInverse
        In the dtype of the factors.
    codes : list of L arrays of int32, shape ()
        As in `ngd_core.types.CODE_MEANING`; 1 also where a correlation above its bound was cut
        down to it. A layer's part is usable only if the next layer's factors are.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If a Python `damping` is negative, or a factor is not square.

    Examples
    --------
    >>> import numpy as np
    >>> one, half = np.ones((1, 1)), np.full((1, 1), 0.5)
    >>> old = identity_chain([(1, 1), (1, 1)], like=np.zeros(()), xp=np)
    >>> new, codes = refresh_chain(old, [one, one], [one, one], [half], [one], 0.0)
    >>> blocks, _ = apply_chain(new, [one, one])
    >>> [round(float(block[0, 0]), 4) for block in blocks]
    [0.6667, 0.6667]
    """
    factors = {f"A[{i}]": m for i, m in enumerate(A)} | {f"G[{i}]": m for i, m in enumerate(G)}
    xp = _checks.common_namespace(xp, **factors)
    last, last_code = refresh_inverse(old.last, A[-1], G[-1], damping, dtype=dtype, ops=ops, xp=xp)
    if not old.links:
        return ChainInverse((), last), [last_code]
    work = solve_dtype(dtype, like=A[0], xp=xp)
    present, sides = [], []
    for a, g in zip(A, G, strict=True):
        for_a, for_g = factored_damping(a, g, damping, xp=xp)
        # one zero factor makes the product zero, whatever the other
        both = (mean_diagonal(a, xp=xp) > 0) & (mean_diagonal(g, xp=xp) > 0)
        present.append(_xp.astype(both, a.dtype, xp=xp))
        sides.append(
            (
                _whiten(a * present[-1], for_a, work, xp=xp),
                _whiten(g * present[-1], for_g, work, xp=xp),
            )
        )
    links, codes = [], []
    for i, link in enumerate(old.links):
        seen = present[i] * present[i + 1]
        new, code = _refresh_link(
            link, sides[i], sides[i + 1], A_next[i] * seen, G_next[i] * seen, xp=xp
        )
        links.append(new)
        codes.append(code)
    return ChainInverse(tuple(links), last), [*codes, last_code]


def _whiten(m: Array, damping: Array, work: DType, *, xp: Namespace) -> _Whitened:
    part = scaled(m, damping, work, xp=xp)
    values, vectors = xp.linalg.eigh(part.matrix)
    values = xp.maximum(values, _xp.zeros((), like=values, xp=xp)) + part.shift
    basis = vectors / xp.sqrt(values * part.scale)[None, :]
    share = part.shift / (xp.sum(xp.linalg.diagonal(part.matrix)) + part.shift)
    return _Whitened(basis, share, part.usable & xp.all(xp.isfinite(basis)), part.raised)


def _refresh_link(
    old: Link,
    here: tuple[_Whitened, _Whitened],
    following: tuple[_Whitened, _Whitened],
    A_next: Array,
    G_next: Array,
    *,
    xp: Namespace,
) -> tuple[Link, Array]:
    psi_a, k_a, rest_a, least_a, over_a = _side(here[0], following[0], A_next, xp=xp)
    psi_g, k_g, rest_g, least_g, over_g = _side(here[1], following[1], G_next, xp=xp)
    # the smallest of 1 - s_G s_A, and by how much rounding would have gone below it
    raised = over_a + over_g > SLACK * (least_a + least_g - least_a * least_g)
    raised = raised | here[0].raised | here[1].raised
    ok = here[0].ok & here[1].ok & following[0].ok & following[1].ok
    for x in (psi_a, psi_g, k_a, k_g, rest_a, rest_g):
        ok = ok & xp.all(_xp.fits(x, A_next.dtype, xp=xp))

    def kept(new: Array, before: Array) -> Array:
        return xp.where(ok, _xp.astype(new, before.dtype, xp=xp), before)

    link = Link(
        kept(psi_a, old.psi_a),
        kept(psi_g, old.psi_g),
        kept(k_a, old.k_a),
        kept(k_g, old.k_g),
        kept(rest_a, old.rest_a),
        kept(rest_g, old.rest_g),
        old.good | ok,
    )
    return link, fallback_code(ok, old.good, mild_code(raised, xp=xp), xp=xp)


def _side(
    here: _Whitened, following: _Whitened, moment: Array, *, xp: Namespace
) -> tuple[Array, ...]:
    """One factor's Psi, K and rests, the least of these that can be, and what was below it."""
    moment = _xp.astype(moment, here.basis.dtype, xp=xp)
    right = moment @ following.basis
    n = here.basis.mT @ right
    s = n @ n.mT
    finite = xp.all(xp.isfinite(s))
    zero, one = _xp.zeros((), like=s, xp=xp), _xp.ones((), like=s, xp=xp)
    values, vectors = xp.linalg.eigh(xp.where(finite, 0.5 * (s + s.mT), zero))
    least = here.share + following.share - here.share * following.share
    rest = 1 - values
    over = xp.maximum(least - xp.min(rest), zero)
    rest = xp.minimum(xp.maximum(rest, least), one)
    psi = xp.where(finite, right @ following.basis.mT, _xp.full((), float("nan"), like=s, xp=xp))
    return psi, here.basis @ vectors, rest, least, over


def apply_chain(
    inverse: ChainInverse, V: Sequence[Array], *, xp: Namespace | None = None
) -> tuple[list[Array], list[Array]]:
    """Apply ``Xi^T Lambda Xi`` to the blocks of a chain.

    Parameters
    ----------
    inverse : ChainInverse
        From `refresh_chain` or `identity_chain`.
    V : sequence of L arrays, shapes (o_i, d_i)
        Blocks, in the dtype of the inverse.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    U : list of L arrays, shapes (o_i, d_i)
        Preconditioned blocks. ``sum_i <U_i, V_i>`` is not negative, whichever of the inverse's
        parts are old or the identity.
    good : list of L arrays of bool, shape ()
        Whether a layer's part of the inverse is more than the identity.

    Examples
    --------
    >>> import numpy as np
    >>> inverse = identity_chain([(1, 1)], like=np.zeros(()), xp=np)
    >>> apply_chain(inverse, [np.ones((1, 1))])[0]
    [array([[1.]])]
    """
    blocks = {f"V[{i}]": v for i, v in enumerate(V)}
    xp = _checks.common_namespace(xp, **blocks)
    links = inverse.links
    rest = [
        v - (link.psi_g @ after) @ link.psi_a.mT
        for link, v, after in zip(links, V[:-1], V[1:], strict=True)
    ]
    U = [
        kronecker_difference_solve((link.k_g, link.rest_g), (link.k_a, link.rest_a), v, xp=xp)
        for link, v in zip(links, rest, strict=True)
    ]
    last, last_good = apply_inverse(inverse.last, V[-1], xp=xp)
    before = [None, *zip(links, U, strict=True)]
    U = [
        u if pair is None else u - (pair[0].psi_g.mT @ pair[1]) @ pair[0].psi_a
        for pair, u in zip(before, [*U, last], strict=True)
    ]
    return U, [*(link.good for link in links), last_good]


def kronecker_difference_solve(
    G: tuple[Array, Array], A: tuple[Array, Array], V: Array, *, xp: Namespace | None = None
) -> Array:
    """Solution U of ``G U A - H U C = V`` from the pairs' common bases.

    With ``K^T G K = I`` and ``K^T H K = diag(s)`` for the pair (G, H), and likewise for (A, C),
    ``U = K_G [(K_G^T V K_A) / (1 - s_G s_A^T)] K_A^T`` (Martens and Grosse 2015, appendix B).

    Parameters
    ----------
    G : tuple of arrays, shapes (..., o, o) and (..., o)
        ``K_G``, and ``1 - s_G``.
    A : tuple of arrays, shapes (..., d, d) and (..., d)
        ``K_A``, and ``1 - s_A``.
    V : array, shape (..., o, d)
        Right-hand side.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., o, d)
        Solution.

    Notes
    -----
    ``1 - s_G s_A = r_G + r_A - r_G r_A`` with ``r = 1 - s``, which keeps its digits where s is
    close to 1.

    Examples
    --------
    >>> import numpy as np
    >>> pair = (np.ones((1, 1)), np.full(1, 0.5))
    >>> kronecker_difference_solve(pair, pair, np.ones((1, 1)))
    array([[1.33333333]])
    """
    (k_g, rest_g), (k_a, rest_a) = G, A
    _checks.common_namespace(xp, k_g=k_g, k_a=k_a, V=V)
    g, a = rest_g[..., :, None], rest_a[..., None, :]
    return k_g @ (((k_g.mT @ V) @ k_a) / (g + a - g * a)) @ k_a.mT
