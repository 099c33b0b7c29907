"""Who trains in `bench_training`, with which settings tried, and one run of one of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import ngd_torch
import torch
from training_exact import ExactNGD
from training_quadratic import QuadraticKFAC
from training_tasks import batches

try:
    import pytorch_optimizer
except ImportError:
    pytorch_optimizer = None

__all__ = ["CONTENDERS", "Contender", "run"]

Advance = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Contender:
    """``make(network, task, **settings)`` gives what a batch is handed to.

    The grid has at most four settings, so that everyone is tuned with as many runs. `sums` is the
    grid where the loss is a sum over pixels, `full` where that is of 28 x 28 (None: the same),
    `deep` that of the transformer and the ResNet (None: `grid`), and `only` are the tasks it runs
    on (None: all).
    """

    make: Callable[..., Advance]
    grid: tuple[dict[str, Any], ...]
    sums: tuple[dict[str, Any], ...]
    full: tuple[dict[str, Any], ...] | None = None
    deep: tuple[dict[str, Any], ...] | None = None
    first_order: bool = False
    only: tuple[str, ...] | None = None
    needs: Any = True

    def settings(self, task):
        if task.options.get("likelihood") != "bernoulli":
            return self.grid if self.deep is None or not task.deep else self.deep
        large = task.rows[0].shape[1] > 64
        return self.full if large and self.full is not None else self.sums


def grid(**choices):
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


class Stepping:
    """Gradients of the loss, then a step of an optimizer."""

    def __init__(self, network, task, optimizer):
        self.network, self.loss, self.optimizer = network, task.loss, optimizer

    def __call__(self, x, y):
        self.optimizer.zero_grad()
        self.loss(self.network(x), y).backward()
        self.optimizer.step()

    def epoch_end(self):
        if isinstance(self.optimizer, ngd_torch.FNGD):
            self.optimizer.epoch_end()


def sgd(network, task, lr):
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, nesterov=True)
    return Stepping(network, task, optimizer)


def adamw(network, task, lr):
    return Stepping(network, task, torch.optim.AdamW(network.parameters(), lr))


def soap(network, task, lr):
    chosen = pytorch_optimizer.SOAP(network.parameters(), lr, weight_decay=0.0)
    return Stepping(network, task, chosen)


def shampoo(network, task, lr):
    chosen = pytorch_optimizer.ScalableShampoo(
        network.parameters(), lr, start_preconditioning_step=5, preconditioning_compute_steps=10
    )
    return Stepping(network, task, chosen)


def ours(kind, **fixed):
    """Of K-FAC's kin; the rate is so high that `kl_clip` is what bounds a step."""

    def make(network, task, **settings):
        rate = 1.0 if "likelihood" in task.options else 0.3
        options = dict(task.options)
        if kind is ngd_torch.SNGD:
            options.pop("likelihood", None)
        chosen = kind(network, **{"lr": rate, **fixed, **settings}, **options)
        return Stepping(network, task, chosen)

    return make


def fngd(network, task, **settings):
    chosen = ngd_torch.FNGD(network, batch_size=task.batch, **settings)
    return Stepping(network, task, chosen)


def sofim(network, task, **settings):
    return Stepping(network, task, ngd_torch.SOFIM(network, **settings))


def quadratic(network, task, **settings):
    return QuadraticKFAC(
        network, task.loss, factor_every=5, inverse_every=20, **settings, **task.options
    )


def exact(network, task, **settings):
    return ExactNGD(network, task.loss, **settings)


OFTEN = {"factor_every": 5, "inverse_every": 20, "early": True}
EVERY = {"factor_every": 1, "inverse_every": 1}
RATES = grid(lr=[1e-3, 3e-3, 0.01, 0.03])
TENTHS = grid(lr=[0.01, 0.03, 0.1, 0.3])
KRONECKER = grid(kl_clip=[1e-3, 3e-3], damping=[0.01, 0.1])
KRONECKER_DEEP = grid(kl_clip=[3e-4, 1e-3], damping=[1e-3, 1e-2])
KRONECKER_SUMS = grid(kl_clip=[3e-3, 1e-2], damping=[1e-3, 1e-2])
KRONECKER_FULL = grid(kl_clip=[1e-2, 3e-2], damping=[3e-4, 1e-3])
GRIDS = (KRONECKER, KRONECKER_SUMS, KRONECKER_FULL, KRONECKER_DEEP)
AUTOENCODERS = ("digits-autoencoder", "autoencoder")
SMALL = ("digits-autoencoder", "cnn")

CONTENDERS = {
    "SGD, Nesterov": Contender(sgd, TENTHS, RATES, first_order=True),
    "AdamW": Contender(adamw, RATES, RATES, first_order=True),
    "SOAP": Contender(soap, RATES, grid(lr=[3e-3, 0.01, 0.03, 0.1]), needs=pytorch_optimizer),
    "Shampoo": Contender(
        shampoo, TENTHS, grid(lr=[3e-3, 0.01, 0.03, 0.1]), only=SMALL, needs=pytorch_optimizer
    ),
    "KFAC": Contender(ours(ngd_torch.KFAC, **OFTEN), *GRIDS),
    "EKFAC": Contender(ours(ngd_torch.EKFAC, **OFTEN), *GRIDS),
    "ProjectiveKFAC": Contender(ours(ngd_torch.ProjectiveKFAC, **OFTEN), *GRIDS),
    "SNGD": Contender(
        ours(ngd_torch.SNGD, **OFTEN),
        grid(kl_clip=[1e-3, 3e-3], damping=[0.01, 0.1]),
        grid(kl_clip=[3e-3, 1e-2], damping=[0.01, 0.1]),
        grid(kl_clip=[1e-2, 3e-2], damping=[0.03, 0.3]),
        grid(kl_clip=[3e-4, 1e-3], damping=[0.01, 0.1]),
    ),
    "FNGD": Contender(
        fngd, grid(lr=[0.3, 1.0], damping=[1.0, 10.0]), grid(lr=[0.1, 0.3], damping=[10.0, 30.0])
    ),
    "SOFIM": Contender(
        sofim,
        grid(lr=[0.3, 1.0], rho=[0.1, 1.0]),
        grid(lr=[1.0, 3.0], rho=[1.0, 10.0]),
        grid(lr=[10.0, 30.0], rho=[10.0, 100.0]),
    ),
    "KFAC, quadratic": Contender(
        quadratic,
        grid(damping=[0.01, 0.1, 1.0, 10.0]),
        grid(damping=[0.3, 1.0, 3.0, 10.0]),
        only=(*AUTOENCODERS, "cnn"),
    ),
    "exact NGD": Contender(exact, grid(lr=[0.01, 0.1], damping=[0.03, 0.3]), (), only=("cnn",)),
    "KFAC, every step": Contender(
        ours(ngd_torch.KFAC, **EVERY), KRONECKER, KRONECKER_SUMS, only=SMALL
    ),
    "KFAC, defaults": Contender(ours(ngd_torch.KFAC), grid(lr=[0.1]), grid(lr=[0.1])),
    "KFAC, early": Contender(ours(ngd_torch.KFAC, early=True), grid(lr=[0.1]), grid(lr=[0.1])),
}


def run(contender, task, settings, seed, steps, stop=10.0):
    """Loss of `task.shown` every `task.every` steps, and CPU seconds of the steps alone.

    Ends early where the loss is not finite or more than `stop` times the first.
    """
    torch.manual_seed(seed)
    network = task.make()
    advance = contender.make(network, task, **settings)
    found = {"steps": [], "losses": [], "seconds": []}
    spent, stream = 0.0, batches(task, seed)
    for k in range(steps + 1):
        if k % task.every == 0:
            with torch.no_grad():
                network.eval()
                loss = float(task.loss(network(task.shown[0]), task.shown[1]))
                network.train()
            found["steps"].append(k)
            found["losses"].append(float(f"{loss:.5g}"))
            found["seconds"].append(round(spent, 3))
            if not loss <= stop * found["losses"][0]:
                break
        if k < steps:
            x, y, last = next(stream)
            start = time.process_time()
            advance(x, y)
            if last and hasattr(advance, "epoch_end"):
                advance.epoch_end()
            spent += time.process_time() - start
    return found
