"""Block-tridiagonal K-FAC by definition: joint Fisher formed, completed, then solved.

Source: Martens and Grosse (2015), section 4.3. Layers 1, ..., L in the order of the chain, each a
block ``[W b]`` flattened row-major. With moments over all pairs of layers,

``A_ij = (1/N) sum_n x_ni x_nj^T``  and  ``G_ij = (1/N) sum_{m,n} g_mni g_mnj^T``,

the joint Fisher is approximated by F~ with blocks ``G_ij (x) A_ij``, its diagonal blocks damped
factor by factor, its off-diagonal ones not. F^ agrees with F~ on the diagonal and next to it; its
other blocks are those of a Gaussian chain in which layer i and the layers behind i + 1 are
independent given layer i + 1:

``F^_ij = F~_{i,i+1} F~_{i+1,i+1}^-1 F^_{i+1,j}``  for ``j > i + 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.kronecker import damped, kron

__all__ = [
    "chain_factors",
    "chain_fisher",
    "tridiagonal_direction",
    "tridiagonal_fisher",
    "tridiagonal_inverse",
]


def chain_factors(
    inputs: Sequence[ArrayLike], gradients: Sequence[ArrayLike], biases: Sequence[bool]
) -> tuple[list[list[Array]], list[list[Array]]]:
    """Build the moments of all pairs of layers by loops.

    Parameters
    ----------
    inputs : sequence of array of shape (N, I_i)
        Inputs of each layer, no bias column.
    gradients : sequence of array of shape (M, N, O_i)
        Back-propagated vectors at each layer's outputs, not divided by N.
    biases : sequence of bool
        Whether a coordinate 1 is appended to a layer's inputs.

    Returns
    -------
    A : list of lists of array of shape (I_i + bias_i, I_j + bias_j), float64
        ``A[i][j] = (1/N) sum_n x_ni x_nj^T``.
    G : list of lists of array of shape (O_i, O_j), float64
        ``G[i][j] = (1/N) sum_{m,n} g_mni g_mnj^T``.

    Raises
    ------
    ValueError
        If the layers differ in their numbers of examples or of vectors.

    Examples
    --------
    >>> from ngd_core.reference import chain_factors
    >>> A, G = chain_factors([[[2.0]], [[3.0]]], [[[[1.0]]], [[[5.0]]]], [False, True])
    >>> A[0][1], G[1][0]
    (array([[6., 2.]]), array([[5.]]))
    """
    xs, gs = [double(x) for x in inputs], [double(g) for g in gradients]
    counts = {g.shape[:2] for g in gs}
    if len(counts) != 1 or {len(x) for x in xs} != {next(iter(counts))[1]}:
        shapes = [(x.shape, g.shape) for x, g in zip(xs, gs, strict=True)]
        msg = f"inputs and gradients have shapes {shapes}; expected (N, I) and (M, N, O) of one "
        msg += "N and M."
        raise ValueError(msg)
    ((n_vectors, n_examples),) = counts
    rows = [
        [np.append(x[n], 1.0) if bias else x[n] for n in range(n_examples)]
        for x, bias in zip(xs, biases, strict=True)
    ]
    A = [[np.zeros((len(p[0]), len(q[0]))) for q in rows] for p in rows]
    G = [[np.zeros((p.shape[2], q.shape[2])) for q in gs] for p in gs]
    for i in range(len(rows)):
        for j in range(len(rows)):
            for n in range(n_examples):
                A[i][j] += np.outer(rows[i][n], rows[j][n]) / n_examples
                for m in range(n_vectors):
                    G[i][j] += np.outer(gs[i][m, n], gs[j][m, n]) / n_examples
    return A, G


def chain_fisher(
    A: Sequence[Sequence[ArrayLike]], G: Sequence[Sequence[ArrayLike]], damping: float
) -> Array:
    """Form F~: a Kronecker product for every pair of layers, the diagonal ones damped.

    Parameters
    ----------
    A, G : nested sequences of array
        As `chain_factors` makes them.
    damping : float
        Added to the Fisher of the mean loss, factor by factor as in `damped` with "pi".

    Returns
    -------
    array of shape (P, P), float64
        Over the row-major blocks of all layers, P = sum of their sizes.

    Examples
    --------
    >>> from ngd_core.reference import chain_factors, chain_fisher
    >>> A, G = chain_factors([[[2.0]], [[3.0]]], [[[[1.0]]], [[[5.0]]]], [False, False])
    >>> chain_fisher(A, G, damping=0.0)
    array([[  4.,  30.],
           [ 30., 225.]])
    """
    layers = range(len(A))
    return np.block(
        [
            [
                damped(A[i][i], G[i][i], damping, "pi") if i == j else kron(G[i][j], A[i][j])
                for j in layers
            ]
            for i in layers
        ]
    )


def _places(fisher: Array, sizes: Sequence[int]) -> list[slice]:
    require_shape("fisher", fisher, (sum(sizes), sum(sizes)))
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def tridiagonal_fisher(fisher: ArrayLike, sizes: Sequence[int]) -> Array:
    """Form F^: equal to F~ on the block tridiagonal, completed along the chain elsewhere.

    Parameters
    ----------
    fisher : array of shape (P, P)
        F~, positive definite.
    sizes : sequence of int
        Entries of each layer's block.

    Returns
    -------
    array of shape (P, P), float64
        F^; its inverse is block-tridiagonal.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import tridiagonal_fisher
    >>> F = np.asarray([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    >>> tridiagonal_fisher(F, [1, 1, 1])
    array([[2. , 1. , 0.5],
           [1. , 2. , 1. ],
           [0.5, 1. , 2. ]])
    """
    F = double(fisher)
    places = _places(F, sizes)
    completed = F.copy()
    for i in range(len(sizes) - 3, -1, -1):
        here, following = places[i], places[i + 1]
        to_next = F[here, following] @ np.linalg.inv(F[following, following])
        for place in places[i + 2 :]:
            completed[here, place] = to_next @ completed[following, place]
            completed[place, here] = completed[here, place].T
    return completed


def tridiagonal_inverse(fisher: ArrayLike, sizes: Sequence[int]) -> Array:
    """Form ``Xi^T Lambda Xi``, the inverse of F^, from dense Psi and Sigma.

    ``Psi_i = F~_{i,i+1} F~_{i+1,i+1}^-1`` regresses layer i on layer i + 1,
    ``Sigma_i = F~_ii - Psi_i F~_{i+1,i+1} Psi_i^T`` is what that leaves; Xi has ``-Psi_i`` right
    of its unit diagonal, Lambda is the inverse of ``diag(Sigma_1, ..., Sigma_{L-1}, F~_LL)``.

    Parameters
    ----------
    fisher : array of shape (P, P)
        F~, positive definite.
    sizes : sequence of int
        Entries of each layer's block.

    Returns
    -------
    array of shape (P, P), float64
        Block-tridiagonal.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import tridiagonal_inverse
    >>> tridiagonal_inverse([[2.0, 2.0], [2.0, 4.0]], [1, 1])
    array([[ 1. , -0.5],
           [-0.5,  0.5]])
    """
    F = double(fisher)
    places = _places(F, sizes)
    Xi, Lambda = np.eye(len(F)), np.zeros_like(F)
    for here, following in pairwise(places):
        Psi = F[here, following] @ np.linalg.inv(F[following, following])
        Xi[here, following] = -Psi
        Sigma = F[here, here] - Psi @ F[following, following] @ Psi.T
        Lambda[here, here] = np.linalg.inv(Sigma)
    last = places[-1]
    Lambda[last, last] = np.linalg.inv(F[last, last])
    return Xi.T @ Lambda @ Xi


def tridiagonal_direction(
    A: Sequence[Sequence[ArrayLike]],
    G: Sequence[Sequence[ArrayLike]],
    gradients: Sequence[ArrayLike],
    damping: float,
) -> list[Array]:
    """Precondition the gradients of all layers by a dense solve with F^.

    Parameters
    ----------
    A, G : nested sequences of array
        As `chain_factors` makes them.
    gradients : sequence of array of shape (rows_i, columns_i)
        Blocks ``[W b]`` of the mean loss' gradient.
    damping : float
        Added to the Fisher of the mean loss.

    Returns
    -------
    list of array of shape (rows_i, columns_i), float64
        ``F^^-1 grad``, cut into blocks.

    Examples
    --------
    >>> from ngd_core.reference import chain_factors, tridiagonal_direction
    >>> A, G = chain_factors([[[2.0]]], [[[[1.0]]]], [False])
    >>> tridiagonal_direction(A, G, [[[8.0]]], damping=0.0)
    [array([[2.]])]
    """
    blocks = [double(gradient) for gradient in gradients]
    sizes = [block.size for block in blocks]
    F = tridiagonal_fisher(chain_fisher(A, G, damping), sizes)
    flat = np.linalg.solve(F, np.concatenate([block.reshape(-1) for block in blocks]))
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape(block.shape) for part, block in zip(parts, blocks, strict=True)]
