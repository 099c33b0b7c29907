"""Each method of the core as an optimizer, with what it takes and what it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import ngd_core
from ngd_core._typing import Array
from ngd_cupy._optimizers import NaturalGradient

__all__ = ["EKFAC", "FNGD", "KFAC", "SNGD", "SOFIM", "ProjectiveKFAC"]


def KFAC(  # noqa: N802
    model: Any,
    params: Mapping[str, Array],
    lr: float,
    *,
    damping_split: Literal["pi", "exact"] = "pi",
    **options: Any,
) -> NaturalGradient:
    """K-FAC for dense layers and KFC for convolutions; see `ngd_core.KFAC`.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    damping_split : "pi" or "exact"
        As in `ngd_core.KFAC`.
    **options
        As in `NaturalGradient`; the KL clip is 1e-3 unless given.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Examples
    --------
    See `NaturalGradient`.
    """
    method = ngd_core.KFAC(damping_split=damping_split)
    return NaturalGradient(model, params, method, lr, **{"kl_clip": 1e-3, **options})


def EKFAC(  # noqa: N802
    model: Any, params: Mapping[str, Array], lr: float, **options: Any
) -> NaturalGradient:
    """K-FAC with the Fisher's own diagonal in its eigenbasis; see `ngd_core.EKFAC`.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    **options
        As in `NaturalGradient`; the KL clip is 1e-3 unless given.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import EKFAC
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> EKFAC(model, {"fc": np.zeros((2, 4))}, lr=0.1).steps
    0
    """
    return NaturalGradient(model, params, ngd_core.EKFAC(), lr, **{"kl_clip": 1e-3, **options})


def SNGD(  # noqa: N802
    model: Any,
    params: Mapping[str, Array],
    lr: float,
    *,
    metric: Literal["linear", "relu"] = "linear",
    damping_mode: Literal["relative", "absolute", "trace"] = "relative",
    **options: Any,
) -> NaturalGradient:
    """Structured natural gradient descent, from the layers' inputs alone; see `ngd_core.SNGD`.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    metric : "linear" or "relu"
        As in `ngd_core.SNGD`.
    damping_mode : "relative", "absolute" or "trace"
        As in `ngd_core.SNGD`.
    **options
        As in `NaturalGradient`; the damping is 1e-2 unless given. The Fisher's kind plays no part.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import SNGD
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> SNGD(model, {"fc": np.zeros((2, 4))}, lr=0.1).damping
    0.01
    """
    method = ngd_core.SNGD(metric=metric, damping_mode=damping_mode)
    settings = {"damping": 1e-2, "kl_clip": 1e-3, **options, "fisher": "empirical"}
    return NaturalGradient(model, params, method, lr, **settings)


def FNGD(  # noqa: N802
    model: Any,
    params: Mapping[str, Array],
    lr: float,
    *,
    batch_size: int,
    damping_mode: Literal["relative", "absolute"] = "relative",
    gain: Literal["unit", "natural"] = "unit",
    refresh_epochs: int | None = None,
    **options: Any,
) -> NaturalGradient:
    """Weighted sums of per-example gradients, the weights of the first epoch; see `ngd_core.FNGD`.

    Call `NaturalGradient.epoch_end` after each epoch; `fit` does.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    batch_size : int
        Examples of a full batch.
    damping_mode : "relative" or "absolute"
        As in `ngd_core.FNGD`.
    gain : "unit" or "natural"
        As in `ngd_core.FNGD`.
    refresh_epochs : int or None
        As in `ngd_core.FNGD`.
    **options
        As in `NaturalGradient`; the damping is 10 unless given.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import FNGD
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> optimizer = FNGD(model, {"fc": np.zeros((2, 4))}, lr=0.1, batch_size=4)
    >>> optimizer.epoch_end()
    >>> optimizer.epochs
    1
    """
    method = ngd_core.FNGD(
        batch_size=batch_size, damping_mode=damping_mode, gain=gain, refresh_epochs=refresh_epochs
    )
    settings = {"damping": 10.0, **options, "fisher": "empirical"}
    return NaturalGradient(model, params, method, lr, **settings)


def ProjectiveKFAC(  # noqa: N802
    model: Any,
    params: Mapping[str, Array],
    lr: float,
    *,
    rank: float = 0.125,
    sides: Literal["both", "inputs"] = "inputs",
    complement: bool = True,
    **options: Any,
) -> NaturalGradient:
    """K-FAC with projected factors and recursive inverses; see `ngd_core.ProjectiveKFAC`.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    rank : float or int
        As in `ngd_core.ProjectiveKFAC`.
    sides : "both" or "inputs"
        As in `ngd_core.ProjectiveKFAC`.
    complement : bool
        As in `ngd_core.ProjectiveKFAC`.
    **options
        As in `NaturalGradient`; the KL clip is 1e-3 unless given.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import ProjectiveKFAC
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> ProjectiveKFAC(model, {"fc": np.zeros((2, 4))}, lr=0.1, rank=2).method.rank
    2
    """
    method = ngd_core.ProjectiveKFAC(rank=rank, sides=sides, complement=complement)
    return NaturalGradient(model, params, method, lr, **{"kl_clip": 1e-3, **options})


def SOFIM(  # noqa: N802
    model: Any,
    params: Mapping[str, Array],
    lr: float,
    *,
    rho: float,
    beta: float = 0.9,
    scope: Literal["global", "tensor"] = "global",
    **options: Any,
) -> NaturalGradient:
    """Momentum over a regularised rank-one Fisher of that momentum; see `ngd_core.SOFIM`.

    Parameters
    ----------
    model, params, lr
        As in `NaturalGradient`.
    rho : float
        Regularisation, in the units of a squared gradient norm.
    beta : float
        Weight kept by older gradients.
    scope : "global" or "tensor"
        As in `ngd_core.SOFIM`.
    **options
        ``weight_decay`` and ``likelihood``, as in `NaturalGradient`; SOFIM has its own momentum.

    Returns
    -------
    NaturalGradient
        To be stepped.

    Raises
    ------
    TypeError
        For an option of methods that have a Fisher to damp and to invert.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import SOFIM
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> SOFIM(model, {"fc": np.zeros((2, 4))}, lr=0.1, rho=0.5).momentum
    0.0
    """
    for name in options:
        if name not in ("weight_decay", "likelihood"):
            known = "rho, beta, scope, weight_decay and likelihood"
            msg = f"SOFIM has no option {name!r}; it takes {known}."
            raise TypeError(msg)
    method = ngd_core.SOFIM(rho=rho, beta=beta, scope=scope)
    return NaturalGradient(model, params, method, lr, momentum=0.0, **options)
