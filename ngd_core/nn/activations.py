"""Element-wise functions and their derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["GELU", "ReLU", "Sigmoid", "Tanh"]


@dataclass(frozen=True)
class ReLU:
    """``max(x, 0)``; the derivative at 0 is taken as 0, as every framework does.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.ReLU(), {}, np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute the outputs, which are also what is kept; NaN stays NaN."""
        y = xp.maximum(x, _xp.zeros((), like=x, xp=xp))
        return y, y

    def backward(self, y: Array, g: Array, *, xp: Namespace) -> Array:
        """Pass ``g`` on where the output is positive."""
        return g * _xp.astype(y > 0, g.dtype, xp=xp)


@dataclass(frozen=True)
class Tanh:
    """Hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Tanh(), {}, np.array([[0.0]]))
    array([[0.]])
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute the outputs, which are also what is kept."""
        y = xp.tanh(x)
        return y, y

    def backward(self, y: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute ``g (1 - y^2)``."""
        return g * (1 - xp.square(y))


@dataclass(frozen=True)
class Sigmoid:
    """Logistic function ``1 / (1 + exp(-x))``, without overflow for any finite input.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Sigmoid(), {}, np.array([[0.0]]))
    array([[0.5]])
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute the outputs, which are also what is kept."""
        e = xp.exp(-xp.abs(x))
        y = xp.where(x < 0, e, 1.0) / (1 + e)
        return y, y

    def backward(self, y: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute ``g y (1 - y)``."""
        return g * (y - xp.square(y))


@dataclass(frozen=True)
class GELU:
    """Gaussian error linear unit in its tanh form (Hendrycks and Gimpel 2016, section 2).

    ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, since the Array API has no erf; it differs
    from ``x Phi(x)`` by less than 5e-4. PyTorch calls it ``approximate="tanh"``.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> np.round(nn.predict(nn.GELU(), {}, np.array([[1.0]])), 4)
    array([[0.8412]])
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute the outputs; the input is kept."""
        t, _ = _gelu_tanh(x, xp=xp)
        return 0.5 * x * (1 + t), x

    def backward(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Multiply ``g`` by the derivative of the tanh form."""
        t, slope = _gelu_tanh(x, xp=xp)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - xp.square(t)) * slope)


def _gelu_tanh(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    c, square = math.sqrt(2 / math.pi), xp.square(x)
    t = xp.tanh(c * x * (1 + 0.044715 * square))
    return t, c * (1 + 3 * 0.044715 * square)
