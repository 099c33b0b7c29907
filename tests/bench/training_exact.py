"""The natural gradient of a whole network, no block left out, from one batch."""

import torch
from torch.func import functional_call, grad, vmap

__all__ = ["ExactNGD"]


class ExactNGD:
    """``(F + damping I)^-1 g`` with the empirical Fisher of the batch, and momentum.

    F has the rank of the batch, so that the inverse is one of a matrix of examples (Woodbury).
    """

    def __init__(self, network, loss, lr, damping, momentum=0.9):
        self.network, self.loss = network, loss
        self.lr, self.damping, self.momentum = lr, damping, momentum
        self.velocity = 0.0

    def direction(self, x, y):
        """Of all parameters, as one vector."""
        params = {name: p.detach() for name, p in self.network.named_parameters()}

        def one(params, x, y):
            return self.loss(functional_call(self.network, params, (x[None],)), y[None])

        found = vmap(grad(one), (None, 0, 0))(params, x, y)
        rows = torch.cat([g.flatten(1) for g in found.values()], 1)
        mean, count = rows.mean(0), len(rows)
        gram = rows @ rows.T / count + self.damping * torch.eye(count, dtype=rows.dtype)
        inside = torch.linalg.solve(gram, rows @ mean) / count
        return (mean - rows.T @ inside) / self.damping

    def __call__(self, x, y):
        self.velocity = self.momentum * self.velocity + self.direction(x, y)
        parts = self.velocity.split([p.numel() for p in self.network.parameters()])
        with torch.no_grad():
            for p, part in zip(self.network.parameters(), parts, strict=True):
                p -= self.lr * part.view_as(p)
