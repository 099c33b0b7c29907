"""Embeddings and elementwise scales by definition: one-hot inputs, and a block for each feature.

Scale: F is that of the mean loss, g is the gradient of an example's own loss. An embedding is the
dense layer ``W`` of shape (features, vocabulary) on one-hot inputs. A scale is ``y = w x + b`` for
each feature by itself; the block of a feature holds ``[w b]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape

__all__ = ["embedding_factors", "one_hot", "scale_factors", "scale_fisher"]


def one_hot(tokens: ArrayLike, vocabulary: int) -> Array:
    """One-hot rows of tokens, zero for a token outside of the vocabulary.

    Parameters
    ----------
    tokens : array of integers, shape (...)
        Tokens.
    vocabulary : int
        Number of tokens there are.

    Returns
    -------
    array of shape (..., vocabulary), float64
        Rows.

    Examples
    --------
    >>> from ngd_core.reference import one_hot
    >>> one_hot([1, -1], 2)
    array([[0., 1.],
           [0., 0.]])
    """
    index = np.asarray(tokens)
    rows = []
    for token in index.reshape(-1):
        rows.append([1.0 if token == v else 0.0 for v in range(vocabulary)])
    return np.array(rows).reshape(*index.shape, vocabulary)


def embedding_factors(tokens: ArrayLike, g: ArrayLike, vocabulary: int) -> tuple[Array, Array]:
    """Factors A and G of an embedding, every position a row of its own.

    ``A = (1/(N T)) sum_{n,t} e e^T`` over one-hot e, and ``G = (1/N) sum_{m,n,t} g g^T``.

    Parameters
    ----------
    tokens : array of integers, shape (N, T)
        Tokens of N examples at T positions.
    g : array of shape (M, N, T, features)
        M back-propagated vectors per example at the looked-up rows, not divided by N.
    vocabulary : int
        Rows of the table.

    Returns
    -------
    A : array of shape (vocabulary, vocabulary), float64
        Input factor as a matrix, diagonal.
    G : array of shape (features, features), float64
        Output-gradient factor.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import embedding_factors
    >>> embedding_factors([[0, 1]], [[[[2.0], [1.0]]]], 2)
    (array([[0.5, 0. ],
           [0. , 0.5]]), array([[5.]]))
    """
    x, g = one_hot(tokens, vocabulary), double(g)
    n_vectors, n_examples, positions, features = g.shape
    require_shape("tokens", x[..., 0], (n_examples, positions))
    A, G = np.zeros((vocabulary, vocabulary)), np.zeros((features, features))
    for n in range(n_examples):
        for t in range(positions):
            A += np.outer(x[n, t], x[n, t]) / (n_examples * positions)
            for m in range(n_vectors):
                G += np.outer(g[m, n, t], g[m, n, t]) / n_examples
    return A, G


def scale_fisher(x: ArrayLike, g: ArrayLike, bias: bool = True) -> Array:
    """Fisher of all parameters of a scale, ``(1/N) sum_{m,n} u u^T``.

    ``u_mn`` holds ``[sum_t x g, sum_t g]`` of feature after feature.

    Parameters
    ----------
    x : array of shape (N, T, features)
        What the scale multiplies.
    g : array of shape (M, N, T, features)
        M back-propagated vectors per example at the output, not divided by N.
    bias : bool
        Whether there is a shift.

    Returns
    -------
    array of shape (features (1 + bias), features (1 + bias)), float64
        Of the mean loss.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import scale_fisher
    >>> scale_fisher([[[2.0]]], [[[[3.0]]]])
    array([[36., 18.],
           [18.,  9.]])
    """
    x, g = double(x), double(g)
    n_vectors, n_examples, positions, features = g.shape
    require_shape("x", x, (n_examples, positions, features))
    width = 1 + bias
    F = np.zeros((features * width, features * width))
    for m in range(n_vectors):
        for n in range(n_examples):
            u = np.zeros((features, width))
            for t in range(positions):
                for f in range(features):
                    u[f, 0] += x[n, t, f] * g[m, n, t, f]
                    if bias:
                        u[f, 1] += g[m, n, t, f]
            F += np.outer(u, u) / n_examples
    return F


def scale_factors(x: ArrayLike, g: ArrayLike, bias: bool = True) -> tuple[Array, Array]:
    """Factors of a scale: the blocks of its Fisher that belong to one feature each, and ones.

    Parameters
    ----------
    x : array of shape (N, T, features)
        What the scale multiplies.
    g : array of shape (M, N, T, features)
        M back-propagated vectors per example at the output, not divided by N.
    bias : bool
        Whether there is a shift.

    Returns
    -------
    A : array of shape (features, 1 + bias, 1 + bias), float64
        Diagonal blocks of `scale_fisher`.
    G : array of shape (features, 1, 1), float64
        Ones, so that ``G (x) A`` is the block.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import scale_factors
    >>> A, G = scale_factors([[[2.0, 0.0]]], [[[[3.0, 1.0]]]], bias=False)
    >>> A.tolist(), G.tolist()
    ([[[36.0]], [[0.0]]], [[[1.0]], [[1.0]]])
    """
    F, width = scale_fisher(x, g, bias), 1 + bias
    features = len(F) // width
    A = np.zeros((features, width, width))
    for f in range(features):
        for i in range(width):
            for j in range(width):
                A[f, i, j] = F[f * width + i, f * width + j]
    return A, np.ones((features, 1, 1))
