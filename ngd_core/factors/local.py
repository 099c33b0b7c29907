"""Local Fisher matrices: second moments of a layer's inputs, with nothing of the loss in them.

A layer is taken by itself, as a model of its own outputs given its inputs (relative Fisher
information, Sun and Nielsen 2017). Its weights then have a Fisher matrix that needs no output
gradients and no targets:

========  ==============================================  ========================================
metric    local Fisher matrix                             Fisher of the block ``[W b]``
========  ==============================================  ========================================
linear    ``G = E[x x^T]``, one for all outputs           ``I (x) G``
relu      ``G_j = E[s(z_j)^2 x x^T]``, one for output j   the ``G_j`` on the diagonal
========  ==============================================  ========================================

x is the input with the bias coordinate 1, ``z = [W b] x``, ``s(z) = 1 / (1 + exp(-z))`` the slope
of a smoothed ReLU, and the mean is over examples *and* positions, ``spec.sharing`` or not. The
linear form is the exact Fisher of a linear layer with unit Gaussian noise; with T positions the
Fisher of an example, which sums over them, is T times it. ``0 <= G_j <= G`` as s is below 1.

The authors of SNGD publish code for dense layers alone. For convolutions (rows are patches, one
matrix for each group) and gated recurrent layers the extension is ours: all gates of such a
layer read ``[a_t, h_(t-1), 1]``, so it is a dense layer of these inputs over N examples and T
times whose outputs are the stacked gates, and has one G. That is an LSTM; the candidate of a GRU
reads the reset state instead, so it is a layer of its own.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.kronecker import input_moment
from ngd_core.factors.records import several_vectors
from ngd_core.factors.sharing import rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["linear_fisher", "relu_fisher"]


def linear_fisher(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> Array:
    """Local Fisher matrix of a linear layer, ``G = E[x x^T]``.

    Parameters
    ----------
    spec : LayerSpec
        Layer; its sharing plays no part, every position is a row.
    record : LayerRecord
        Inputs; of the output gradients only the shape is looked at.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (*stack, columns, columns)
        Symmetric, positive semi-definite, at least float32; bias coordinate last.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [3.0]]), g=np.zeros((2, 1)))
    >>> linear_fisher(LayerSpec("fc", "dense", 1, 1), record)
    array([[5., 2.],
           [2., 1.]])
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    return input_moment(spec, record, sharing="expand", xp=xp)


def relu_fisher(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> Array:
    """Local Fisher matrices of a layer before a ReLU, ``G_j = E[s(z_j)^2 x x^T]``.

    Parameters
    ----------
    spec : LayerSpec
        Layer; its sharing plays no part, every position is a row.
    record : LayerRecord
        Inputs and outputs ``z`` before the activation.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (*stack, rows, columns, columns)
        One matrix for each output, symmetric, positive semi-definite, at least float32. Memory
        on the way is that of all rows of inputs times the outputs.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`; if ``record.z`` is missing or not shaped as the outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> spec, z = LayerSpec("fc", "dense", 1, 2, bias=False), np.asarray([[0.0, 1e3]])
    >>> relu_fisher(spec, LayerRecord(a=np.asarray([[2.0]]), g=np.zeros((1, 2)), z=z))
    array([[[1.]],
    <BLANKLINE>
           [[4.]]])
    """
    if record.z is None:
        msg = (
            f"The record of layer {spec.name!r} has no z, which the ReLU metric needs; record the "
            "layer's outputs, or give the layer the linear metric."
        )
        raise ValueError(msg)
    a, g, z, _ = record
    xp = _checks.common_namespace(xp, a=a, g=g, z=z)
    wanted = tuple(g.shape[1:] if several_vectors(spec, record) else g.shape)
    _checks.shape("z", z, wanted, f"the outputs of layer {spec.name!r}")
    x, outputs = rows(spec, LayerRecord(a, z), xp=xp)
    *stack, n, t, _ = x.shape
    x = xp.reshape(x, (*stack, n * t, -1))
    if spec.bias:
        x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)
    slope = _sigmoid(xp.reshape(outputs, (*stack, n * t, spec.rows)).mT, xp=xp)
    weighted = slope[..., None] * x[..., None, :, :]
    return weighted.mT @ weighted / (n * t)


def _sigmoid(z: Array, *, xp: Namespace) -> Array:
    small = xp.exp(-xp.abs(z))
    return xp.where(z < 0, small, _xp.ones((), like=z, xp=xp)) / (1 + small)
