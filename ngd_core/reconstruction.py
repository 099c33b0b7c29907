"""Local Fisher layers: a layer's weights ``w = M^(-1/2) w'``, trained through ``w'``.

SNGD (arXiv 2109.10100 and 2412.07441) puts a fixed linear map in front of the weights of each
layer, made from its damped local Fisher matrix ``M = G + eps I``, and trains ``w'`` by plain
gradient descent. The map acts on the input side: every row w of a block ``[W b]``, which holds
the weights of one output, is ``w' R^-1`` with ``R = M^(1/2)`` (under the ReLU metric each row
has its own). Then

- the gradient at ``w'`` is ``grad R^-1``: M is a constant in it, nothing is differentiated through
  the root [derived; a different method results otherwise];
- a step ``w' <- w' - lr grad R^-1`` is ``w <- w - lr grad M^-1``: the natural gradient in M;
- when M changes, ``w' <- w' R_old^-1 R_new`` keeps the weights, and so the network's function; a
  momentum buffer beside ``w'`` must be multiplied by the same matrix, or the two ways of training
  part [derived; the sources do not tell whether theirs re-project].
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion import PURE, Ops
from ngd_core.inversion.roots import RootKind, Roots, damped_roots

__all__ = [
    "LocalFisherLayer",
    "coordinates",
    "identity_layer",
    "map_rows",
    "pull_back",
    "refresh_layer",
    "reproject",
    "weights",
]


class LocalFisherLayer(NamedTuple):
    """The map in front of a layer's weights.

    Parameters
    ----------
    root : array, shape (*stack, d, d) or (*stack, rows, d, d)
        ``R = M^(1/2)``; a matrix for each row of the block if there is one more axis.
    inverse : array, shape of `root`
        ``R^-1``.
    good : array of bool, shape of `root` without its last two axes
        Whether it is more than the identity that all starts from.
    """

    root: Array
    inverse: Array
    good: Array


def identity_layer(
    stack: tuple[int, ...], d: int, *, like: Array, xp: Namespace | None = None
) -> LocalFisherLayer:
    """Local Fisher layer that changes nothing.

    Parameters
    ----------
    stack : tuple of int
        Leading axes: groups, and rows if each has its own matrix.
    d : int
        Columns of the block.
    like : array
        Template of dtype and device.
    xp : namespace, optional
        Array namespace; found from `like` if not given.

    Returns
    -------
    LocalFisherLayer
        Identities, marked as not good; no two of its arrays share memory.

    Examples
    --------
    >>> import numpy as np
    >>> identity_layer((), 2, like=np.zeros(())).root
    array([[1., 0.],
           [0., 1.]])
    """
    xp = _checks.common_namespace(xp, like=like)
    root, inverse = (
        _xp.eye(d, like=like, xp=xp) + _xp.zeros((*stack, d, d), like=like, xp=xp) for _ in range(2)
    )
    return LocalFisherLayer(root, inverse, _xp.zeros(stack, like=like, dtype=xp.bool, xp=xp))


def refresh_layer(
    old: LocalFisherLayer,
    G: Array,
    damping: Scalar,
    *,
    root: RootKind = "eigh",
    steps: int | None = None,
    rank: int | None = None,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[LocalFisherLayer, Array]:
    """Make the layer of a new local Fisher matrix; weights and buffers need `reproject` then.

    Parameters
    ----------
    old : LocalFisherLayer
        Stays where `G` cannot be used.
    G : array, shape of ``old.root``
        Local Fisher matrix.
    damping : float or array of shape () or of the stack
        ``eps`` in ``M = G + eps I``.
    root : "eigh", "denman-beavers", "newton-schulz" or "nystrom"
        As `ngd_core.inversion.damped_roots`.
    steps, rank : int, optional
        Likewise.
    dtype : "float32", "float64" or None
        Likewise.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    layer : LocalFisherLayer
        In the dtype of `G`.
    code : array of int32, shape of the stack
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    ValueError
        As `ngd_core.inversion.damped_roots`.

    Examples
    --------
    >>> import numpy as np
    >>> old = identity_layer((), 1, like=np.zeros(()))
    >>> layer, code = refresh_layer(old, np.asarray([[3.0]]), 1.0)
    >>> layer.root.round(6), layer.inverse.round(6)
    (array([[2.]]), array([[0.5]]))
    """
    roots, good, code = damped_roots(
        G,
        damping,
        Roots(old.root, old.inverse),
        old.good,
        root=root,
        steps=steps,
        rank=rank,
        dtype=dtype,
        ops=ops,
        xp=xp,
    )
    return LocalFisherLayer(*roots, good), code


def map_rows(block: Array, matrix: Array, *, xp: Namespace | None = None) -> Array:
    """Multiply the rows of a block by a matrix, or each row by its own.

    Parameters
    ----------
    block : array, shape (*stack, rows, d)
        Block.
    matrix : array, shape (*stack, d, d) or (*stack, rows, d, d)
        One matrix for all rows, or one for each.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (*stack, rows, d)
        ``block matrix``.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> map_rows(np.ones((2, 1)), np.asarray([[[2.0]], [[3.0]]]))
    array([[2.],
           [3.]])
    """
    xp = _checks.common_namespace(xp, block=block, matrix=matrix)
    *stack, n, d = block.shape
    if matrix.ndim == block.ndim + 1:
        _checks.shape("matrix", matrix, (*stack, n, d, d), "one matrix for each row of the block")
        return (block[..., None, :] @ matrix)[..., 0, :]
    _checks.shape("matrix", matrix, (*stack, d, d), "one matrix for all rows of the block")
    return block @ matrix


def weights(layer: LocalFisherLayer, coordinates: Array, *, xp: Namespace | None = None) -> Array:
    """Weights that the network computes with, ``w = w' R^-1``.

    Parameters
    ----------
    layer : LocalFisherLayer
        The map.
    coordinates : array, shape (*stack, rows, d)
        ``w'``, in the dtype of the map.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (*stack, rows, d)
        Block ``[W b]``.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> layer = LocalFisherLayer(np.asarray([[2.0]]), np.asarray([[0.5]]), np.asarray(True))
    >>> weights(layer, np.asarray([[6.0]]))
    array([[3.]])
    """
    return map_rows(coordinates, layer.inverse, xp=xp)


def coordinates(layer: LocalFisherLayer, weights: Array, *, xp: Namespace | None = None) -> Array:
    """Coordinates ``w' = w R`` of given weights; the inverse of `weights`.

    Parameters
    ----------
    layer : LocalFisherLayer
        The map.
    weights : array, shape (*stack, rows, d)
        Block ``[W b]``, in the dtype of the map.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (*stack, rows, d)
        ``w'``.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> layer = LocalFisherLayer(np.asarray([[2.0]]), np.asarray([[0.5]]), np.asarray(True))
    >>> coordinates(layer, np.asarray([[3.0]]))
    array([[6.]])
    """
    return map_rows(weights, layer.root, xp=xp)


def pull_back(layer: LocalFisherLayer, grad: Array, *, xp: Namespace | None = None) -> Array:
    """Gradient at the coordinates, ``grad' = grad R^-1``, the map held fixed.

    Parameters
    ----------
    layer : LocalFisherLayer
        The map.
    grad : array, shape (*stack, rows, d)
        Gradient at the weights, in the dtype of the map.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (*stack, rows, d)
        Gradient of ``L'(w') = L(w' R^-1)``.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> layer = LocalFisherLayer(np.asarray([[2.0]]), np.asarray([[0.5]]), np.asarray(True))
    >>> pull_back(layer, np.asarray([[3.0]]))
    array([[1.5]])
    """
    return map_rows(grad, layer.inverse, xp=xp)  # R is symmetric


def reproject(
    old: LocalFisherLayer,
    new: LocalFisherLayer,
    coordinates: Array,
    *,
    xp: Namespace | None = None,
) -> Array:
    """Coordinates of the same weights after a refresh, ``w' R_old^-1 R_new``.

    Parameters
    ----------
    old, new : LocalFisherLayer
        The map before and after.
    coordinates : array, shape (*stack, rows, d)
        ``w'``, or a momentum buffer beside it, in the dtype of the maps.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (*stack, rows, d)
        The same in the new coordinates.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> old = identity_layer((), 1, like=np.zeros(()))
    >>> new = LocalFisherLayer(np.asarray([[2.0]]), np.asarray([[0.5]]), np.asarray(True))
    >>> reproject(old, new, np.asarray([[3.0]]))
    array([[6.]])
    """
    return map_rows(map_rows(coordinates, old.inverse, xp=xp), new.root, xp=xp)
