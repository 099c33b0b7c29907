"""EKFAC by definition: the Fisher's diagonal in K-FAC's eigenbasis, every matrix formed.

Scale: F is the Fisher of the mean loss, over row-major flattened blocks ``[W b]``, so the basis of
a block is ``Q = Q_G (x) Q_A``, the eigenvectors of K-FAC's factors G and A in their columns. Where
a factor has equal eigenvalues these are not unique, and neither is EKFAC: then compare in the basis
that your own code took, not in another one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import derivatives
from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.kfac import Sharing, canonical_record, kronecker_factors
from ngd_core.reference.kronecker import kron
from ngd_core.reference.network import Network

__all__ = [
    "basis_diagonal",
    "block_fisher",
    "ekfac_direction",
    "ekfac_factors",
    "ekfac_fisher",
]


def block_fisher(a: ArrayLike, g: ArrayLike, bias: bool = True) -> Array:
    """Fisher block of one layer, ``(1/N) sum_{m,n} vec(u_mn) vec(u_mn)^T``.

    ``u_mn = sum_t g_mnt [x_nt; 1]^T``: positions are summed within an example, before the square.

    Parameters
    ----------
    a : array of shape (N, T, I)
        Inputs (for a convolution its patches) of N examples at T positions, no bias column.
    g : array of shape (M, N, T, O)
        M back-propagated vectors per example at the layer's outputs, not divided by N. They are
        summed over M.
    bias : bool
        Whether a coordinate 1 is appended to the inputs.

    Returns
    -------
    array of shape (O * (I + bias), O * (I + bias)), float64
        The exact block.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import block_fisher
    >>> block_fisher([[[1.0], [2.0]]], [[[[3.0], [4.0]]]])
    array([[121.,  77.],
           [ 77.,  49.]])
    """
    a, g = double(a), double(g)
    if a.ndim != 3 or g.ndim != 4 or g.shape[1:3] != a.shape[:2]:
        msg = f"a has shape {a.shape} and g {g.shape}; expected (N, T, I) and (M, N, T, O)."
        raise ValueError(msg)
    n_vectors, n_examples, positions, outputs = g.shape
    size = outputs * (a.shape[2] + bias)
    F = np.zeros((size, size))
    for m in range(n_vectors):
        for n in range(n_examples):
            u = np.zeros((outputs, a.shape[2] + bias))
            for t in range(positions):
                x = np.append(a[n, t], 1.0) if bias else a[n, t]
                u += np.outer(g[m, n, t], x)
            F += np.outer(u.reshape(-1), u.reshape(-1)) / n_examples
    return F


def basis_diagonal(F: ArrayLike, Q_A: ArrayLike, Q_G: ArrayLike) -> Array:
    """Diagonal of ``Q^T F Q`` with ``Q = Q_G (x) Q_A``: EKFAC's scales ``s*`` for a Fisher block F.

    Parameters
    ----------
    F : array of shape (rows * columns, rows * columns)
        A matrix over a flattened block.
    Q_A : array of shape (columns, columns)
        Orthonormal columns.
    Q_G : array of shape (rows, rows)
        Orthonormal columns.

    Returns
    -------
    array of shape (rows, columns), float64
        ``S_ij = (q_i (x) q_j)^T F (q_i (x) q_j)``.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import basis_diagonal
    >>> Q_A = np.array([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    >>> basis_diagonal([[2.0, 1.0], [1.0, 2.0]], Q_A, [[1.0]]).round(6)
    array([[3., 1.]])
    """
    F, Q_A, Q_G = double(F), double(Q_A), double(Q_G)
    rows, columns = len(Q_G), len(Q_A)
    require_shape("F", F, (rows * columns, rows * columns))
    S = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            q = np.outer(Q_G[:, i], Q_A[:, j]).reshape(-1)
            S[i, j] = q @ F @ q
    return S


def ekfac_fisher(S: ArrayLike, Q_A: ArrayLike, Q_G: ArrayLike) -> Array:
    """Approximation of a Fisher block, ``Q diag(S) Q^T`` with ``Q = Q_G (x) Q_A``.

    Parameters
    ----------
    S : array of shape (rows, columns)
        Scales.
    Q_A : array of shape (columns, columns)
        Eigenvectors of A in the columns.
    Q_G : array of shape (rows, rows)
        Eigenvectors of G in the columns.

    Returns
    -------
    array of shape (rows * columns, rows * columns), float64
        Acting on row-major flattened blocks.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import ekfac_fisher
    >>> ekfac_fisher([[3.0, 1.0]], np.eye(2), np.eye(1))
    array([[3., 0.],
           [0., 1.]])
    """
    S, Q_A, Q_G = double(S), double(Q_A), double(Q_G)
    require_shape("S", S, (len(Q_G), len(Q_A)))
    Q = kron(Q_G, Q_A)
    F: Array = Q @ np.diag(S.reshape(-1)) @ Q.T
    return F


def ekfac_direction(
    block_gradient: ArrayLike, S: ArrayLike, Q_A: ArrayLike, Q_G: ArrayLike, damping: float
) -> Array:
    """Preconditioned gradient of one block, by solving with ``Q diag(S) Q^T + damping I``.

    Parameters
    ----------
    block_gradient : array of shape (rows, columns) or (groups, rows, columns)
        Gradient of the mean loss.
    S : array of the shape of `block_gradient`
        Scales.
    Q_A : array of shape (columns, columns), with a leading groups axis if the gradient has one
        Eigenvectors of A in the columns.
    Q_G : array of shape (rows, rows), with a leading groups axis if the gradient has one
        Eigenvectors of G in the columns.
    damping : float
        Added to the Fisher of the mean loss.

    Returns
    -------
    array of the shape of `block_gradient`, float64
        The parameters change by minus a learning rate times this.

    Raises
    ------
    ValueError
        If the damping is negative, or shapes do not fit.
    numpy.linalg.LinAlgError
        If the damped matrix is exactly singular.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import ekfac_direction
    >>> ekfac_direction([[10.0, 10.0]], [[3.0, 1.0]], np.eye(2), np.eye(1), damping=1.0)
    array([[2.5, 5. ]])
    """
    V, S, Q_A, Q_G = double(block_gradient), double(S), double(Q_A), double(Q_G)
    if not damping >= 0:
        msg = f"damping is {damping}; expected a number >= 0."
        raise ValueError(msg)
    if V.ndim not in (2, 3):
        msg = f"block_gradient has shape {V.shape}; expected (rows, columns), or groups of these."
        raise ValueError(msg)
    require_shape("S", S, V.shape)
    require_shape("Q_A", Q_A, (*V.shape[:-2], V.shape[-1], V.shape[-1]))
    require_shape("Q_G", Q_G, (*V.shape[:-2], V.shape[-2], V.shape[-2]))
    if V.ndim == 3:
        groups = range(len(V))
        return np.stack([ekfac_direction(V[k], S[k], Q_A[k], Q_G[k], damping) for k in groups])
    F = ekfac_fisher(S, Q_A, Q_G)
    return np.linalg.solve(F + damping * np.eye(V.size), V.reshape(-1)).reshape(V.shape)


def ekfac_factors(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    vectors: ArrayLike,
    sharing: Sharing = "expand",
) -> dict[str, tuple[Array, Array, Array]]:
    """Build scales and basis of every dense and convolutional layer of a network, for one batch.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    vectors : array of shape (M, N, *outputs of one example)
        As in `output_gradients`; `backpropagated_vectors` makes them.
    sharing : "expand" or "reduce"
        As in `kronecker_factors`, whose eigenvectors are the basis; the scales are those of the
        exact block either way.

    Returns
    -------
    dict of str to (S, Q_A, Q_G)
        For `ekfac_direction`; all with a leading groups axis if the block has one. Other layers
        with parameters (layer_norm) are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, ekfac_factors
    >>> fc = Layer("dense", "fc", in_features=1, out_features=1, bias=False)
    >>> params, x = {"fc": np.zeros((1, 1))}, [[1.0], [2.0]]
    >>> ekfac_factors(Network((fc,)), params, x, vectors=[[[3.0], [1.0]]])["fc"]
    (array([[6.5]]), array([[1.]]), array([[1.]]))
    """
    inputs: dict[str, Array] = {}
    network.forward(params, x, record=inputs)
    gradients = derivatives.output_gradients(network, params, x, vectors)
    found = {}
    for name, layer in network.parametric.items():
        if layer.kind not in ("dense", "conv2d"):
            continue
        parts = []
        for a, g in canonical_record(layer, inputs[name], gradients[name]):
            A, G = kronecker_factors(a, g, layer.options["bias"], sharing)
            Q_A, Q_G = np.linalg.eigh(A)[1], np.linalg.eigh(G)[1]
            F = block_fisher(a, g, layer.options["bias"])
            parts.append((basis_diagonal(F, Q_A, Q_G), Q_A, Q_G))
        S, Q_A, Q_G = (np.stack([part[i] for part in parts]) for i in range(3))
        found[name] = (S, Q_A, Q_G) if len(parts) > 1 else (S[0], Q_A[0], Q_G[0])
    return found
