"""One optimizer on one network, in a process of its own, for `bench_torch_step`."""

import time
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from pathlib import Path

import ngd_torch
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["MISSING", "MODELS", "OPTIMIZERS", "serve"]


class Residual(nn.Module):
    """Basic block of a residual net with group norms."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
        )
        same = inputs == outputs and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return functional.relu(self.inner(x) + self.beside(x))


def resnet(width=16):
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    before = width
    for k in range(4):
        layers += [Residual(before, width << k, 1 + (k > 0)), Residual(width << k, width << k, 1)]
        before = width << k
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Transformer(nn.Module):
    """Two causal blocks over characters."""

    def __init__(self, size=64, features=128, length=32):
        super().__init__()
        self.tokens = nn.Embedding(size, features)
        self.place = nn.Embedding(length, features)
        block = nn.TransformerEncoderLayer(
            features, 4, 4 * features, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(features, size)

    def forward(self, x):
        h = self.tokens(x) + self.place(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.blocks(h, mask, is_causal=True))


def mlp():
    sizes = (784, 512, 512, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def autoencoder():
    sizes = (784, 1000, 500, 250, 30)
    layers = []
    for a, b in pairwise(sizes + sizes[-2::-1]):
        layers += [nn.Linear(a, b), nn.Identity() if b == 30 else nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


MODELS = {
    "MLP": (mlp, (256, 784), (256,), 10),
    "CNN": (cnn, (128, 1, 28, 28), (128,), 10),
    "transformer": (Transformer, (32, 32), (32, 32), 64),
    "autoencoder": (autoencoder, (512, 784), (512,), 2),
    "ResNet-18, width 16": (resnet, (64, 3, 32, 32), (64,), 10),
}
"""Network, shape of a batch, shape of its labels, classes."""

RATE = 1e-4
"""So small that a batch seen hundreds of times is not learnt, as tiny gradients take longer."""
OFTEN = {"factor_every": 10, "inverse_every": 100}
EMPIRICAL = {**OFTEN, "fisher": "empirical"}
EVERY = {"factor_every": 1, "inverse_every": 1}
MEANING = {
    "transformer": {"examples": "positions", "class_axis": -1},
    "autoencoder": {"likelihood": "bernoulli"},
}
"""What the natural gradients are told of a network's outputs."""
OPTIMIZERS = {
    "SGD + momentum": lambda m, **_: torch.optim.SGD(m.parameters(), RATE, momentum=0.9),
    "AdamW": lambda m, **_: torch.optim.AdamW(m.parameters(), RATE),
    "K-FAC 10/100": lambda m, **o: ngd_torch.KFAC(m, RATE, **OFTEN, **o),
    "K-FAC 10/100, empirical": lambda m, **o: ngd_torch.KFAC(m, RATE, **EMPIRICAL, **o),
    "K-FAC 10/100, factored gradient": lambda m, **o: ngd_torch.KFAC(
        m, RATE, factored_gradient=True, **OFTEN, **o
    ),
    "K-FAC 10/100, staggered": lambda m, **o: ngd_torch.KFAC(m, RATE, stagger=True, **OFTEN, **o),
    "K-FAC every step": lambda m, **o: ngd_torch.KFAC(m, RATE, **EVERY, **o),
    "EKFAC 10/100": lambda m, **o: ngd_torch.EKFAC(m, RATE, **OFTEN, **o),
    "Projective 10/100": lambda m, **o: ngd_torch.ProjectiveKFAC(m, RATE, **OFTEN, **o),
    "SNGD 10/100": lambda m, **o: ngd_torch.SNGD(m, RATE, **OFTEN, **o),
    "FNGD, later epochs": lambda m, **_: ngd_torch.FNGD(m, RATE, batch_size=m.examples),
    "FNGD, later epochs, weighted backward": lambda m, **_: ngd_torch.FNGD(
        m, RATE, batch_size=m.examples, weighted_backward=True
    ),
    "SOFIM": lambda m, **_: ngd_torch.SOFIM(m, RATE, rho=1.0),
}


def _soap(m, **_):
    from pytorch_optimizer import SOAP

    return SOAP(m.parameters(), RATE, precondition_frequency=10)


def _shampoo(m, **_):
    from pytorch_optimizer import Shampoo

    return Shampoo(m.parameters(), RATE, preconditioning_compute_steps=10)


def _singd(m, **options):
    from singd.optim.optimizer import SINGD

    average = "batch+sequence" if "examples" in options else "batch"
    diagonal = {"structures": ("diagonal", "diagonal"), "T": 10, "warn_unsupported": False}
    return SINGD(m, lr=RATE, loss_average=average, **diagonal)


PEERS = {
    "SOAP, bases every 10": ("pytorch_optimizer", _soap),
    "Shampoo, roots every 10": ("pytorch_optimizer", _shampoo),
    "SINGD, diagonal, every 10": ("singd", _singd),
}
"""Package and optimizer; SINGD trains Linear and Conv2d alone."""
MISSING = [name for name, (package, _) in PEERS.items() if find_spec(package) is None]
OPTIMIZERS |= {name: make for name, (_, make) in PEERS.items() if name not in MISSING}


def _batch(model):
    make, shape, labels, classes = MODELS[model]
    if model == "transformer":
        return make, torch.randint(0, classes, shape), torch.randint(0, classes, labels)
    if model == "autoencoder":
        x = torch.rand(shape)
        return make, x, x
    return make, torch.randn(shape), torch.randint(0, classes, labels)


def _loss(network, x, y):
    if y is x:  # an autoencoder's Bernoulli loss, summed over the pixels
        return functional.binary_cross_entropy_with_logits(network(x), y, reduction="sum") / len(x)
    return functional.cross_entropy(network(x).flatten(0, -2), y.flatten())


def _resident(field):
    """Bytes of this process as Linux counts them: "VmRSS" now, "VmHWM" at most since `_forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _forget():
    """Let the highest resident size start again, as importing takes more than a small network."""
    Path("/proc/self/clear_refs").write_text("5")


def serve(pipe, model, name):
    """Answer each number of steps with their cost; None ends the process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = _resident("VmRSS")
    _forget()
    make, x, y = _batch(model)
    network = make()
    network.examples = len(y)
    optimizer = OPTIMIZERS[name](network, **MEANING.get(model, {}))

    def step():
        optimizer.zero_grad()
        loss = _loss(network, x, y)
        loss.backward()
        optimizer.step()
        return loss

    facts = _facts(network, optimizer, x, y)
    facts["fault"] = _fault(step) if name in PEERS else None
    pipe.send(facts)
    if facts["fault"]:
        return
    if isinstance(optimizer, ngd_torch.FNGD):  # two batches make the epoch that finds coefficients
        step()
        step()
        optimizer.epoch_end()
    step()
    while (count := pipe.recv()) is not None:
        walls, cpu = [], time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            loss = step()
            walls.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        pipe.send({"cpu": cpu / count, "walls": walls, "loss": loss.item()})
    pipe.send({"memory": _resident("VmHWM") - before, "counted": _counted(optimizer)})


def _fault(step):
    """What a peer says of a network that it cannot train; None if it can."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _facts(network, optimizer, x, y):
    """Multiply-adds that PyTorch counts in a forward and backward pass, and what a step adds."""
    with FlopCounterMode(display=False) as counter:
        _loss(network, x, y).backward()
    network.zero_grad()
    own = counter.get_total_flops() / 2
    facts = {"own": own, "parameters": sum(prod(p.shape) for p in network.parameters())}
    if hasattr(optimizer, "report"):
        facts["bytes"] = optimizer.report().bytes
    return facts


def _counted(optimizer):
    """Multiply-adds of a step over those of the layers' own passes; None if they are not known."""
    if not isinstance(optimizer, ngd_torch.NaturalGradient):
        return None
    try:
        further, own = optimizer.report().cost()
    except ValueError:
        return None
    return 1 + further / own
