"""The methods of the core at work on a model of `ngd_core.nn`.

Nothing here names CuPy: arrays stay on the device of the parameters, and the same code runs on any
Array API library, which is how it is tested without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import ngd_core
from ngd_core import Hyper, Info, Method, losses, nn, state, step
from ngd_core._typing import Array
from ngd_core._xp import asarray, namespace_of

__all__ = ["NaturalGradient"]


class NaturalGradient:
    """Train a model of `ngd_core.nn` with a method of `ngd_core`.

    Parameters
    ----------
    model : layer
        Network, usually a `ngd_core.nn.Sequential`.
    params : mapping of str to array
        Initial blocks, as `ngd_core.nn.init` gives them; they stay as they are.
    method : Method
        For example ``ngd_core.KFAC(damping_split="exact")``.
    lr : float
        Learning rate; an attribute, may be set at any time, as may `damping`.
    damping : float
        Added to the Fisher of the mean loss.
    momentum : float
        Heavy-ball momentum of the directions.
    weight_decay : float
        Decoupled: parameters shrink by ``1 - lr * weight_decay``.
    decay : float
        Weight kept by older statistics.
    factor_every, inverse_every : int
        Steps between two statistics and between two refreshes.
    early : bool
        Further ones at steps 1, 4, 16, 64, ... below these intervals, see `ngd_core.step.due`.
    fisher : "mc", "exact" or "empirical"
        Sampled labels, the exact Fisher, or the training labels.
    likelihood : "categorical", "bernoulli" or "gaussian"
        What the model's outputs are parameters of, and whose negative logarithm is the loss.
    kl_clip : float or None
        Bound on a step's estimated KL divergence, see `ngd_core.step.kl_clip_scale`.
    seed : int
        Of the sampled labels: those of step k depend on the seed and k alone. They are drawn by
        NumPy, so that all array libraries draw the same.

    Attributes
    ----------
    params : dict of str to array
        Current parameters; a step makes new arrays.
    steps, epochs : int
        Steps taken, and epochs closed.
    info : dict
        `ngd_core.Info` of the last step, by layer, on the device.

    Raises
    ------
    ValueError
        For a number outside its range, or a model that the method cannot take.

    Examples
    --------
    With NumPy arrays in place of CuPy's:

    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import KFAC
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> optimizer = KFAC(model, {"fc": np.zeros((2, 4))}, lr=0.1)
    >>> round(float(optimizer.step(np.ones((4, 3)), np.asarray([0, 1, 1, 0]))), 4)
    0.6931
    """

    def __init__(
        self,
        model: Any,
        params: Mapping[str, Array],
        method: Method,
        lr: float,
        *,
        damping: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay: float = 0.95,
        factor_every: int = 10,
        inverse_every: int = 100,
        early: bool = False,
        fisher: Literal["mc", "exact", "empirical"] = "mc",
        likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
        kl_clip: float | None = None,
        seed: int = 0,
    ) -> None:
        at_least = {"lr": lr, "damping": damping, "momentum": momentum}
        for name, value in {**at_least, "weight_decay": weight_decay}.items():
            if not value >= 0:
                msg = f"{name} is {value}; expected a number >= 0."
                raise ValueError(msg)
        for name, every in (("factor_every", factor_every), ("inverse_every", inverse_every)):
            if not isinstance(every, int) or every < 1:
                msg = f"{name} is {every!r}; expected an integer >= 1."
                raise ValueError(msg)
        if fisher not in ("mc", "exact", "empirical"):
            msg = f"fisher is {fisher!r}; expected 'mc', 'exact' or 'empirical'."
            raise ValueError(msg)
        if kl_clip is not None and not kl_clip > 0:
            msg = f"kl_clip is {kl_clip}; expected a number > 0, or None."
            raise ValueError(msg)
        self.model, self.method, self.likelihood = model, method, losses.get(likelihood)
        self.lr, self.damping, self.momentum, self.decay = lr, damping, momentum, decay
        self.weight_decay, self.kl_clip, self.fisher, self.seed = (
            weight_decay,
            kl_clip,
            fisher,
            seed,
        )
        self.factor_every, self.inverse_every, self.early = factor_every, inverse_every, early
        missing = sorted(set(nn.shapes(model)) - set(params))
        if missing:
            msg = f"params has no block for the layer {missing[0]!r}; make them with nn.init."
            raise ValueError(msg)
        self.params = {name: params[name] for name in nn.shapes(model)}
        self.velocity = step.momentum_init(self.params)
        self.specs = nn.specs(model)
        if isinstance(method, ngd_core.SOFIM):
            self.curvature: Any = method.init(self.params)
        else:
            self.curvature = method.init(self.specs, next(iter(self.params.values())))
        self.info: dict[Any, Info] = {}
        self.steps = self.epochs = 0

    def step(self, x: Array, y: Array) -> Array:
        """Take a step on one batch.

        Parameters
        ----------
        x : array, shape (N, ...)
            Inputs.
        y : array
            Targets, as the likelihood takes them: integers of shape (N, ...) for a categorical one.

        Returns
        -------
        array, shape ()
            Mean loss over the N examples before the step, on the device: nothing waits for it.
        """
        xp = namespace_of(x)
        hyper = Hyper(damping=self.damping, decay=self.decay)
        outputs, tape = nn.forward(self.model, self.params, x)
        loss = xp.mean(self.likelihood.value(outputs, y))
        slopes = self.likelihood.gradient(outputs, y)
        grads, records, _ = nn.backward(self.model, self.params, tape, slopes)
        blocks: dict[Any, Array] = {spec: grads[spec.name] for spec in self.specs}
        if isinstance(self.method, ngd_core.SOFIM):
            blocks = {**grads}
            self.curvature = self.method.accumulate(self.curvature, blocks, hyper)
        elif isinstance(self.method, ngd_core.FNGD):
            if self.method.recording(self.epochs):
                self.curvature = self.method.accumulate(self.curvature, records, hyper)
        else:
            if step.due(self.steps, self.factor_every, early=self.early):
                seen = records if self.fisher == "empirical" else self._sampled(outputs, tape)
                self.curvature = self.method.accumulate(self.curvature, seen, hyper)
            if step.due(self.steps, self.inverse_every, early=self.early):
                self.curvature, _ = self.method.refresh(self.curvature, hyper)
        found, self.info = self.method.direction(self.curvature, blocks, records, hyper)
        if self.kl_clip is not None:
            scale = step.kl_clip_scale(self.info, self.lr, self.kl_clip)
            found = {key: scale * d for key, d in found.items()}
        directions = {name: _finite(g, xp) for name, g in grads.items()}
        directions |= {_name(key): d for key, d in found.items()}
        moves, self.velocity = step.momentum(self.velocity, directions, decay=self.momentum)
        if self.weight_decay:
            self.params = step.decoupled_weight_decay(self.params, self.lr, self.weight_decay)
        self.params = step.sgd(self.params, moves, self.lr)
        self.steps += 1
        return loss

    def _sampled(self, outputs: Array, tape: nn.Tape) -> Any:
        """Take records of the model's own distribution."""
        noise, xp = None, namespace_of(outputs)
        if self.fisher == "mc":
            draw = np.random.default_rng([self.seed, self.steps])
            uniform = self.likelihood.noise == "uniform"
            shape = (1, *self.likelihood.noise_shape(outputs))
            numbers = draw.random(shape) if uniform else draw.standard_normal(shape)
            kind = np.float64 if outputs.dtype == xp.float64 else np.float32
            noise = asarray(numbers.astype(kind), like=outputs, xp=xp)
        vectors = losses.fisher_vectors(self.fisher, self.likelihood, outputs, noise=noise)
        return nn.backward(self.model, self.params, tape, vectors, grads=False).records

    def epoch_end(self) -> None:
        """Close an epoch; FNGD reuses from then on what it learnt in its first."""
        if isinstance(self.method, ngd_core.FNGD):
            self.curvature, _ = self.method.refresh(self.curvature, Hyper(damping=self.damping))
        self.epochs += 1

    @property
    def stats(self) -> dict[str, dict[str, float]]:
        """Code and measures of the last step, layer by layer, as numbers; waits for the device."""
        return {
            _name(key): {"code": int(info.code)}
            | {name: float(value) for name, value in info.measures.items()}
            for key, info in self.info.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, momentum and curvature to a safetensors file, all or nothing.

        Parameters
        ----------
        path : path
            File; one that is there is replaced.
        """
        counts = {"steps": str(self.steps), "epochs": str(self.epochs)}
        state.save(path, state.flatten(self._all()), method=self.method, **counts)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save`, bit by bit as if there had been no break.

        Parameters
        ----------
        path : path
            File of the same method with the same options on the same model.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is damaged or does not fit; nothing has changed then.
        """
        stored = state.load(path, method=self.method)
        found = state.unflatten(self._all(), stored.arrays)
        counts = [int(stored.notes.get(name, 0)) for name in ("steps", "epochs")]
        self.params, self.velocity = found["params"], found["velocity"]
        self.curvature = found["curvature"]
        self.steps, self.epochs = counts

    def _all(self) -> dict[str, Any]:
        return {"params": self.params, "velocity": self.velocity, "curvature": self.curvature}


def _name(key: Any) -> str:
    """Name of a layer, or of a block that SOFIM knows by name."""
    return key if isinstance(key, str) else key.name


def _finite(g: Array, xp: Any) -> Array:
    """Gradient, or zeros where a number of it is not finite."""
    return xp.where(xp.all(xp.isfinite(g)), g, xp.zeros_like(g))
