"""A `Problem` as a function of JAX, and what ngd_jax records of it."""

from __future__ import annotations

from typing import Any

from ngd_core import LayerRecord, nn
from ngd_core.testing.problems import Problem

__all__ = ["capture"]


def capture(problem: Problem) -> dict[str, LayerRecord]:
    """Take the records that `ngd_jax.value_and_grad` makes of the problem's loss.

    Parameters
    ----------
    problem : Problem
        The problem.

    Returns
    -------
    dict of str to LayerRecord
        Arrays by layer.

    Examples
    --------
    >>> from ngd_core.testing.jax_subject import capture
    >>> from ngd_core.testing.problems import problem
    >>> [record.a.shape for record in capture(problem("dense", 3, seed=0)).values()]
    [(3, 3), (3, 4)]
    """
    import jax.numpy as jnp
    import ngd_jax

    specs = {spec.name: spec for spec in nn.specs(problem.model)}
    params = {}
    for name, spec in specs.items():
        block = jnp.asarray(problem.params[name])
        shape: tuple[int, ...] = (spec.out_features, spec.in_features)
        if spec.geometry is not None:
            shape += spec.geometry.kernel_size
        params[name] = block[:, :-1].reshape(shape)
        params[f"{name} bias"] = block[:, -1]

    def loss(params: Any, x: Any, y: Any) -> Any:
        outputs = _apply(problem.model, params, x)
        return 0.5 * jnp.sum((outputs - y) ** 2) / x.shape[0]

    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    return dict(ngd_jax.value_and_grad(loss)(params, x, y)[2])


def _apply(model: Any, params: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    for layer in model.layers:
        spec: Any = getattr(layer, "spec", None)
        if isinstance(layer, nn.Tanh):
            x = jnp.tanh(x)
        elif isinstance(layer, nn.Flatten):
            x = x.reshape(x.shape[0], -1)
        elif spec.geometry is None:
            x = x @ params[spec.name].T + params[f"{spec.name} bias"]
        else:
            conv = jax.lax.conv_general_dilated
            x = conv(x, params[spec.name], spec.geometry.stride, "VALID")
            x = x + params[f"{spec.name} bias"][:, None, None]
    return x
