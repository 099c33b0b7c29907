"""K-FAC as Martens and Grosse (2015) run it, from the parts of the core.

The step minimises the quadratic model of the exact Fisher over the K-FAC direction and the step
before; the damping follows the Levenberg-Marquardt rule. `ngd_torch` has no optimizer of this.
"""

import warnings

import torch
from ngd_torch import Preconditioner
from torch.func import functional_call, jvp

import ngd_core
from ngd_core.step import (
    levenberg_marquardt,
    predicted_change,
    quadratic_step,
    reduction_ratio,
)

__all__ = ["QuadraticKFAC"]

ADAPT = 5
"""Steps between two looks at the damping."""


def curved(likelihood, logits, tangent):
    """Product of the Fisher of the outputs with a change of the outputs."""
    if likelihood == "bernoulli":
        p = torch.sigmoid(logits)
        return p * (1 - p) * tangent
    p = torch.softmax(logits, -1)
    return p * (tangent - (p * tangent).sum(-1, keepdim=True))


class QuadraticKFAC:
    """Quadratic-model step size and momentum, Levenberg-Marquardt damping.

    The model's Fisher is that of every `thin`-th example, its slopes are of all.
    """

    def __init__(self, network, loss, damping, *, thin=1, floor=1e-8, decay=0.95, **options):
        self.network, self.loss, self.thin, self.floor = network, loss, thin, floor
        self.likelihood = options.get("likelihood", "categorical")
        self.decay = decay
        self.preconditioner = Preconditioner(network, ngd_core.KFAC(), damping=damping, **options)
        self.before = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        self.steps = 0

    def inner(self, x, directions):
        """``v_i^T F v_j`` by forward-mode differentiation."""
        params = {name: p.detach() for name, p in self.network.named_parameters()}
        self.network.eval()  # a pass that no statistics are taken of

        def outputs(params):
            return functional_call(self.network, params, (x,))

        with warnings.catch_warnings():  # torch's own, where it first derives forward
            warnings.filterwarnings("ignore", ".*torch.jit.script. is", DeprecationWarning)
            found = [jvp(outputs, (params,), (v,)) for v in directions]
        self.network.train()
        logits, tangents = found[0][0], [tangent for _, tangent in found]
        rows = logits.numel() // logits.shape[-1] if logits.ndim > 2 else len(x)
        curves = [curved(self.likelihood, logits, t) for t in tangents]
        return torch.stack([torch.stack([(s * t).sum() / rows for t in curves]) for s in tangents])

    def __call__(self, x, y):
        self.network.zero_grad()
        loss = self.loss(self.network(x), y)
        loss.backward()
        named = dict(self.network.named_parameters())
        grads = {name: p.grad.clone() for name, p in named.items()}
        self.preconditioner.step()
        directions = [{name: p.grad for name, p in named.items()}, self.before]
        damping = self.preconditioner.curvature.damping
        with torch.no_grad():
            inner = self.inner(x[:: self.thin], directions)
            taken = quadratic_step(inner, directions, grads, damping)
            for name, p in named.items():
                p += taken.step[name]
        self.before = taken.step
        self.steps += 1
        if self.steps % ADAPT == 0:
            self.network.eval()
            with torch.no_grad():
                after = self.loss(self.network(x), y)
            self.network.train()
            promised = predicted_change(taken, damping)
            ratio = float(reduction_ratio(after, loss.detach(), promised))
            new = levenberg_marquardt(
                damping, ratio, interval=ADAPT, decay=self.decay, minimum=self.floor
            )
            self.preconditioner.curvature.damping = new
