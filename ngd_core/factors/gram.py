"""Gram matrices of per-example gradients, most of them without forming the gradients.

With ``u_i = sum_t g_it [x_it; 1]^T`` the gradient of example i, ``K_ij = <u_i, u_j>``. Two exact
routes lead there:

- positions: ``K_ij = sum_ts (x_it . x_js + 1) (g_it . g_js)``, for T = 1 the Hadamard product
  ``(X X^T + 1) * (G G^T)``; N^2 T^2 (D + O) multiplications;
- explicit: form ``u_i``, then ``U^T U``; N T D O + N^2 D O multiplications.

The one-hot inputs of an embedding are compared rather than multiplied, which costs nothing.

Two cheaper formulas are in use elsewhere and are wrong where T > 1, so they are not here: taking
all positions as further features, and summing inputs and gradients over positions first.
"""

from __future__ import annotations

from typing import Literal

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.per_example import per_example_gradients
from ngd_core.factors.sharing import rows, token_rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["embedding_gram", "gram", "gram_route", "norm_scale_gram"]

Route = Literal["positions", "explicit"]


def gram_route(spec: LayerSpec, positions: int) -> Route:
    """Cheaper route to a layer's Gram matrix, from static sizes alone.

    "positions" if T = 1 or ``T^2 (D + O) < D O`` with D columns and O rows of a block, the rule
    that the authors' code of TENGraD uses for convolutions; otherwise "explicit". Derived here:
    an embedding, whose inputs need no product, takes "positions" if ``T^2 < D``, and a scale,
    whose gradients are no larger than its inputs, always "explicit".

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    positions : int
        Number T of positions: of a sequence, or output pixels.

    Returns
    -------
    "positions" or "explicit"
        For `gram`.

    Examples
    --------
    >>> from ngd_core import LayerSpec
    >>> fc = LayerSpec("fc", "dense", 64, 64)
    >>> gram_route(fc, 1), gram_route(fc, 5), gram_route(fc, 6)
    ('positions', 'positions', 'explicit')
    """
    d, o = spec.columns, spec.rows
    if spec.kind == "scale":
        return "explicit"
    if spec.kind == "embedding":
        return "positions" if positions == 1 or positions**2 < d else "explicit"
    return "positions" if positions == 1 or positions**2 * (d + o) < d * o else "explicit"


def gram(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    route: Route | None = None,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Inner products ``K_ij = <u_i, u_j>`` of the per-example gradients of one layer.

    Parameters
    ----------
    spec : LayerSpec
        Layer; its ``sharing`` plays no part, the gradients are exact. Groups of a convolution
        and features of a scale are parts of one block, so their Gram matrices are added.
    record : LayerRecord
        Inputs and per-example output gradients (a mean over the batch undone).
    route : "positions", "explicit" or None
        How; None leaves it to `gram_route`. The result is the same.
    dtype : dtype, optional
        Of the result, to which the record is cast first; the record's own if not given. At least
        float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (M N, M N)
        For M back-propagated vectors, those of one vector in a row: ``(N, N)`` for M = 1.
        Symmetric up to rounding and positive semi-definite. Not divided by N.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`; for an unknown route.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> gram(LayerSpec("fc", "dense", 1, 1), record)
    array([[18., 36.],
           [36., 80.]])
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    _checks.one_of("route", route, ("positions", "explicit", None))
    of_tokens = spec.kind == "embedding" and record.tied is None
    x, y = (token_rows if of_tokens else rows)(spec, record, dtype=dtype, xp=xp)
    *stack, m, n, t, _ = y.shape
    if (route or gram_route(spec, t)) == "explicit":
        u = xp.reshape(per_example_gradients(spec, record, dtype=dtype, xp=xp), (m * n, -1))
        return u @ u.mT
    if of_tokens:
        flat = xp.reshape(x, (n * t,))
        known = (flat >= 0) & (flat < spec.in_features)
        inputs = _xp.astype(_equal(flat) & known, y.dtype, xp=xp)
    else:
        x = xp.reshape(x, (*stack, n * t, -1))
        inputs = x @ x.mT + int(spec.bias)
    k = _over_positions(inputs, y, xp=xp)
    return xp.sum(k, axis=0) if stack else k


def _over_positions(inputs: Array, y: Array, *, xp: Namespace) -> Array:
    """Sum over positions of inner products of inputs ``(..., N T, N T)`` times those of y."""
    *stack, m, n, t, outputs = y.shape
    y = xp.reshape(y, (*stack, m * n * t, outputs))
    pairs = xp.reshape(y @ y.mT, (*stack, m, n * t, m, n * t)) * inputs[..., None, :, None, :]
    return xp.sum(xp.reshape(pairs, (*stack, m * n, t, m * n, t)), axis=(-3, -1))


def _equal(flat: Array) -> Array:
    return flat[:, None] == flat[None, :]


def embedding_gram(tokens: Array, g: Array, *, xp: Namespace | None = None) -> Array:
    """Gram matrix of an embedding, whose inputs are one-hot rows.

    ``K_ij = sum_ts [token_it = token_js] (g_it . g_js)``

    Parameters
    ----------
    tokens : array of integers, shape (N, *positions)
        Indices into the table. Its size is not known here: `gram` alone tells tokens outside.
    g : array, shape (N, *positions, features) or (M, N, *positions, features)
        Per-example gradients at the looked-up rows, of M back-propagated vectors.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (M N, M N)
        At least float32; ordered as by `gram`. Needs memory for ``(M N T)^2`` numbers, none for
        the table's size.

    Raises
    ------
    TypeError
        If the tokens are no integers, the gradients no real floating numbers.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> tokens, g = np.asarray([[0, 1], [1, 1]]), np.ones((2, 2, 1))
    >>> embedding_gram(tokens, g)
    array([[2., 2.],
           [2., 4.]])
    """
    xp = _checks.common_namespace(xp, tokens=tokens, g=g)
    _checks.integral(xp, tokens=tokens)
    _checks.floating(xp, g=g)
    _checks.rank(1, tokens=tokens)
    _checks.rank(2, g=g)
    g = g if g.ndim == tokens.ndim + 2 else g[None, ...]
    _checks.shape("tokens", tokens, tuple(g.shape[1:-1]), "the axes of g before the last")
    m, n, features = g.shape[0], tokens.shape[0], g.shape[-1]
    y = xp.reshape(_xp.astype(g, _xp.working(g.dtype, xp=xp), xp=xp), (m, n, -1, features))
    same = _xp.astype(_equal(xp.reshape(tokens, (-1,))), y.dtype, xp=xp)
    return _over_positions(same, y, xp=xp)


def norm_scale_gram(
    normalised: Array, g: Array, *, bias: bool = True, xp: Namespace | None = None
) -> Array:
    """Gram matrix of an elementwise scale and shift, as after layer normalisation.

    ``u_i = [sum_t xhat_it * g_it, sum_t g_it]``, formed, since it is no larger than the input.

    Parameters
    ----------
    normalised : array, shape (N, *positions, features)
        What the scale multiplies, ``xhat``. Each row may depend on its own example only: with
        batch statistics there are no per-example gradients.
    g : array, shape (N, *positions, features)
        Per-example gradients at the output.
    bias : bool
        Whether there is a shift.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (N, N)
        At least float32.

    Raises
    ------
    TypeError
        If the arrays are not real floating.
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> xhat = np.asarray([[1.0, -1.0], [2.0, 0.0]])
    >>> norm_scale_gram(xhat, np.ones((2, 2)))
    array([[4., 4.],
           [4., 6.]])
    """
    xp = _checks.common_namespace(xp, normalised=normalised, g=g)
    _checks.floating(xp, normalised=normalised, g=g)
    _checks.rank(2, g=g)
    _checks.shape("normalised", normalised, tuple(g.shape), "the shape of g")
    dtype = _xp.working(xp.result_type(normalised, g), xp=xp)
    shape = (g.shape[0], -1, g.shape[-1])
    y = xp.reshape(_xp.astype(g, dtype, xp=xp), shape)
    x = xp.reshape(_xp.astype(normalised, dtype, xp=xp), shape)
    u = xp.sum(x * y, axis=1)
    if bias:
        u = xp.concat([u, xp.sum(y, axis=1)], axis=-1)
    return u @ u.mT
