"""Training by several gloo processes, forked from one that has loaded everything once.

Run as ``python ranks_job.py FOLDER``. What a rank found is written to ``FOLDER``; then it ends at
once, since taking a process group down may wait for ranks that are gone.
"""

import contextlib
import copy
import gc
import os
import random
import sys
import time
import traceback
from datetime import timedelta

import torch
from ngd_torch import EKFAC, FNGD, KFAC, SNGD, SOFIM, NaturalGradient, Preconditioner, _ranks
from ngd_torch._trees import is_stand_in
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn import functional

import ngd_core

N, STEPS, HALF, EPOCH = 8, 20, 10, 7
TIMEOUT, DEADLINE = timedelta(seconds=60), 120.0
OFTEN = {"factor_every": 2, "inverse_every": 3}


def projective(model, recursive, **options):
    # the joint batch has fewer rows than the order of the widest factor, 9, which so is followed
    least = 64 if recursive else 4
    method = ngd_core.ProjectiveKFAC(rank=0.5, min_size=least, recursive=recursive)
    return NaturalGradient(model, method, 0.1, kl_clip=1e-3, fisher="exact", **OFTEN, **options)


class Behind:
    """SGD behind a preconditioner."""

    def __init__(self, model):
        self.first = Preconditioner(model, ngd_core.KFAC(), fisher="exact", damping=0.1, **OFTEN)
        self.second = torch.optim.SGD(model.parameters(), 0.1)

    def step(self):
        self.first.step()
        self.second.step()

    def zero_grad(self):
        self.second.zero_grad()

    def state_dict(self):
        return self.first.state_dict()


MAKERS = {
    "kfac": lambda model, **o: KFAC(model, 0.1, fisher="exact", **OFTEN, **o),
    "empirical": lambda model, **o: KFAC(
        model, 0.1, fisher="empirical", damping_split="exact", **OFTEN, **o
    ),
    "ekfac": lambda model, **o: EKFAC(model, 0.1, fisher="exact", **OFTEN, **o),
    "staggered": lambda model, **o: EKFAC(model, 0.1, fisher="exact", stagger=True, **OFTEN, **o),
    "sngd": lambda model, **o: SNGD(model, 0.03, damping=0.1, **OFTEN, **o),
    "fngd": lambda model, **o: FNGD(model, 0.1, batch_size=N, damping=1.0, **o),
    "behind": Behind,
    "sofim": lambda model: SOFIM(model, 1.0, rho=1.0),
    "sofim-tensor": lambda model: SOFIM(model, 0.5, rho=1.0, scope="tensor"),
    "projected": lambda model, **o: projective(model, recursive=False, **o),
    "recursive": lambda model, **o: projective(model, recursive=True, **o),
}
SPLIT = ("kfac", "empirical", "sngd")


def settings(size):
    """Methods with the number of ranks that keep an inverse; None: as it is chosen by itself."""
    every = [("kfac", None), ("kfac", 1), ("kfac", 2), ("sngd", 1), ("ekfac", size)]
    every += [("projected", size), ("recursive", size), ("fngd", None), ("sofim", None)]
    return [*every, ("empirical", 1), ("staggered", None)] if size == 2 else every


def sharded_settings(size):
    some = [("kfac", None), ("sofim", None)]
    if size == 4:
        return some
    some += [("behind", None)]
    more = [("kfac", "each"), ("ekfac", None), ("sngd", None), ("fngd", None)]
    return [*some, *more, ("projected", None), ("sofim-tensor", None)]


STORED = [
    *dict.fromkeys(name for name, _ in settings(4)),
    *dict.fromkeys(f"fsdp/{name}" for name, _ in sharded_settings(4)),
]
early = []  # optimizers that were made before there was a process group


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers, nn.PReLU(), nn.Linear(5, 3)).double()


def data(k, n=N):
    r = torch.Generator().manual_seed(k)
    x = torch.randn(n, 1, 3, 3, generator=r, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=r)


def even(rank, size):
    """Rows of the joint batch for a rank."""
    return slice(rank * N // size, (rank + 1) * N // size)


def flat(model):
    each = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in each])


def train(model, optimizer, steps, rows=slice(None), loss_of=functional.cross_entropy):
    model.train()
    for k in steps:
        x, y = (part[rows] for part in data(k))
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
        if k == EPOCH and isinstance(optimizer, FNGD):
            optimizer.epoch_end()


def alone(name):
    """Train by one process on the joint batches."""
    model = network()
    train(model, MAKERS[name](model), range(STEPS))
    return flat(model)


def sharded(model, size):
    mesh = init_device_mesh("cpu", (size,))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole_state(model, optimizer):
    parameters = {
        name: getattr(x, "full_tensor", lambda x=x: x)().clone()
        for name, x in model.state_dict().items()
    }
    return {"model": parameters, "optimizer": copy.deepcopy(optimizer.state_dict())}


def half_and_whole(model, inner, optimizer, rows):
    """Train, and store the state half way."""
    train(model, optimizer, range(HALF), rows)
    stored = whole_state(inner, optimizer)
    train(model, optimizer, range(HALF, STEPS), rows)
    return stored, flat(model)


def resumed(name, stored, rank, size, *, shards):
    model = network()
    model.load_state_dict(stored["model"])
    if shards:
        model = sharded(model, size)
    elif size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = MAKERS[name](model, **({"inverse_ranks": 1} if name in SPLIT else {}))
    optimizer.load_state_dict(stored["optimizer"])
    train(model, optimizer, range(HALF, STEPS), even(rank, size))
    return flat(model)


def bytes_of_inverses(optimizer):
    """Bytes that inverses take: a number that stands for many counts once."""
    layers = optimizer.curvature.state.layers.values()
    kept = [x for layer in layers for x in (layer.inverse.a, layer.inverse.g)]
    return sum(min(x.untyped_storage().nbytes(), x.nbytes) for x in kept if not is_stand_in(x))


def data_parallel(rank, size, found, stored):
    for name, k in settings(size):
        inner = network()
        model = nn.parallel.DistributedDataParallel(inner)
        optimizer = MAKERS[name](model, **({} if k is None else {"inverse_ranks": k}))
        stored[name], found[f"{name}/{k}"] = half_and_whole(
            model, inner, optimizer, even(rank, size)
        )
        if name == "kfac":
            found[f"bytes/{k}"] = bytes_of_inverses(optimizer)
            rows = optimizer.report().layers.values()
            found[f"report/{k}"] = sum(row["bytes"] for row in rows)
            found[f"stats/{k}"] = optimizer.stats


def fully_sharded(rank, size, found, stored):
    if size == 2:
        _ranks.BUCKET = 50  # several collectives in place of one
    for name, k in sharded_settings(size):
        model = sharded(network(), size)
        optimizer = MAKERS[name](model, **({} if k is None else {"inverse_ranks": k}))
        stored[f"fsdp/{name}"], found[f"fsdp/{name}/{k}"] = half_and_whole(
            model, model, optimizer, even(rank, size)
        )
        if (name, k) == ("kfac", None):
            found["fsdp/bytes"] = bytes_of_inverses(optimizer)
            momentum = optimizer.state[model[3].weight]["momentum_buffer"]
            found["fsdp/momentum"] = tuple(momentum.to_local().shape)


def bad_gradients(model):
    """Ones, but not in the second half of the rows, which lie with the second of two ranks."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
        p.grad[(len(p) + 1) // 2 :] = float("nan")


def step_of_bad_gradients(found):
    """A gradient that is not finite in one process alone is refused by all."""
    plain, model = network(), sharded(network(), 2)
    bad_gradients(plain)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements, src_data_rank=None)
    optimizer = MAKERS["sofim"](model)
    optimizer.step()
    found["bad gradients"] = flat(model)
    found["rejected"] = [int(x.rejected) for x in optimizer.moments.tensors.values()]


def averaged_by_hand(rank, found):
    """Gradients averaged by the script; batches of 2 and of 6 examples, these in three parts."""
    sums = {"loss_reduction": "sum", "loss_scale": lambda: 1 / N}
    for name, options in {"kfac": {}, "ekfac": {}, "fngd": sums}.items():
        model = network()
        optimizer = MAKERS[name](model, **options)
        for k in range(STEPS):
            x, y = (part[2:] if rank else part[:2] for part in data(k))
            most = len(x) if name == "fngd" else 2
            optimizer.zero_grad()
            for some, labels in zip(x.split(most), y.split(most), strict=True):
                loss = functional.cross_entropy(model(some), labels, reduction="sum") / N
                loss.backward()
            for p in model.parameters():
                distributed.all_reduce(p.grad)
            optimizer.step()
            if k == EPOCH and name == "fngd":
                optimizer.epoch_end()
        found[f"unequal/{name}"] = flat(model)


def sampled(rank, found):
    """Monte-Carlo labels: other ones on each rank; stored and resumed."""
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = KFAC(model, 0.1, **OFTEN)
    before = torch.get_rng_state()
    train(model, optimizer, range(HALF), even(rank, 2))
    found["untouched"] = bool(torch.equal(before, torch.get_rng_state()))
    generator = optimizer.curvature.capture.generators[torch.device("cpu")]
    found["noise"] = torch.rand(3, generator=generator.clone_state())
    state = whole_state(model.module, optimizer)
    train(model, optimizer, range(HALF, STEPS), even(rank, 2))
    found["sampled"] = flat(model)
    again = network()
    again.load_state_dict(state["model"])
    again = nn.parallel.DistributedDataParallel(again)
    optimizer = KFAC(again, 0.1, **OFTEN)
    optimizer.load_state_dict(state["optimizer"])
    train(again, optimizer, range(HALF, STEPS), even(rank, 2))
    found["sampled again"] = flat(again)


def refused(rank, size, found):
    for name, k in (("kfac", 3), ("kfac", 0), ("ekfac", 1), ("recursive", 1), ("fngd", 1)):
        try:
            MAKERS[name](network(), inverse_ranks=k)
        except ValueError as error:
            found[f"refused/{name}/{k}"] = str(error)
    model = network()
    optimizer = MAKERS["fngd"](model)
    if rank == 1:
        model(data(0)[0]).sum().backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        found["refused/other batches"] = str(error)
    model = network()
    optimizer = MAKERS["kfac"](model[: 2 + 2 * rank])
    try:
        optimizer.step()
    except RuntimeError as error:
        found["refused/other layers"] = str(error)
    if early:
        try:
            early[0].step()
        except RuntimeError as error:
            found["refused/early"] = str(error)


class Attention(nn.Module):
    """A packed weight: three layers in the rows of one parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x):
        x = x.flatten(1)[:, :8].reshape(-1, 2, 4)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def packed(rank, found):
    inner = Attention()
    model = nn.parallel.DistributedDataParallel(inner)
    train(model, MAKERS["kfac"](model, inverse_ranks=1), range(HALF), even(rank, 2))
    found["packed"] = flat(inner)
    optimizer = MAKERS["kfac"](fully_shard(Attention(), mesh=init_device_mesh("cpu", (2,))))
    found["packed and sharded"] = optimizer.report().uncovered


def by_itself(rank, found):
    """A group of one, in the midst of others."""
    groups = [distributed.new_group([r]) for r in range(2)]
    model = network()
    train(model, MAKERS["kfac"](model, process_group=groups[rank]), range(3), slice(rank, None))
    found["by itself"] = flat(model)


def together(rank, size, folder):
    found, stored = {}, {}
    data_parallel(rank, size, found, stored)
    fully_sharded(rank, size, found, stored)
    if size == 2:
        refused(rank, size, found)
        step_of_bad_gradients(found)
        averaged_by_hand(rank, found)
        sampled(rank, found)
        packed(rank, found)
        by_itself(rank, found)
    else:
        ranks = MAKERS["kfac"](network(), inverse_ranks=2).curvature.ranks
        groups = [ranks.row, ranks.column]
        cpu = torch.device("cpu")
        found["timeouts"] = [_ranks._timeout(group, cpu).total_seconds() for group in groups]
        if rank == 3:  # any rank's will do
            torch.save(stored, f"{folder}/stored.pt")
    return found


def resume(rank, size, folder):
    stored = torch.load(f"{folder}/stored.pt", weights_only=True)
    found = {}
    for name, state in stored.items():
        shards = name.startswith("fsdp/") and size > 1
        found[name] = resumed(name.removeprefix("fsdp/"), state, rank, size, shards=shards)
    return found


def last(rank, size, folder):
    """Rank 1 ends without a word; the others must hear of it."""
    found = {}
    for k in ("each", 1):
        model = network()
        optimizer = MAKERS["kfac"](model, inverse_ranks=k)
        train(model, optimizer, range(2), even(rank, size))
    if rank == 1:
        os._exit(0)
    start = time.monotonic()
    try:
        train(model, optimizer, range(2, STEPS), even(rank, size))
    except RuntimeError as error:
        found["error"] = str(error)
    found["seconds"] = time.monotonic() - start
    return found


def child(work, rank, size, folder):
    torch.set_num_threads(1)
    random.seed(rank)
    early.append(MAKERS["kfac"](network()))
    if size > 1:
        place = f"file://{folder}/{work.__name__}{size}"
        distributed.init_process_group(
            "gloo", init_method=place, rank=rank, world_size=size, timeout=TIMEOUT
        )
    found = work(rank, size, folder)
    torch.save(found, f"{folder}/{work.__name__}{size}-{rank}.pt.part")
    os.rename(
        f"{folder}/{work.__name__}{size}-{rank}.pt.part",
        f"{folder}/{work.__name__}{size}-{rank}.pt",
    )


def forked(work, size, folder):
    """Run ``work(rank, size, folder)`` in processes; those that are late are ended."""
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    child(work, rank, size, folder)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    until = time.monotonic() + DEADLINE
    while pids and time.monotonic() < until:
        pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        print(f"{work.__name__} of {size}: a rank was late", file=sys.stderr)


WORKS = (together, 2), (together, 4), (resume, 2), (resume, 1), (last, 2)

if __name__ == "__main__":
    folder = sys.argv[1]
    gc.freeze()
    for work, size in WORKS:
        start = time.monotonic()
        forked(work, size, folder)
        print(f"{work.__name__} of {size}: {time.monotonic() - start:.1f} s", file=sys.stderr)
