"""K-FAC over several processes: ``torchrun --standalone --nproc-per-node 2 several_processes.py``.

Without torchrun it is an ordinary script of one process.
"""

import os
from datetime import timedelta

import torch
from ngd_torch import KFAC
from torch import distributed, nn

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if ranks > 1:
    distributed.init_process_group("gloo", timeout=timedelta(minutes=1))  # "nccl" for GPUs

torch.manual_seed(0)
x = torch.randn(512, 20) @ torch.randn(20, 20)  # correlated inputs
y = (x[:, 0] * x[:, 1] > 0).long()
x, y = x[rank::ranks], y[rank::ranks]  # every rank has its own examples
model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 2))
if ranks > 1:
    model = nn.parallel.DistributedDataParallel(model)
optimizer = KFAC(model, lr=0.3, factor_every=1, inverse_every=10, inverse_ranks=1)

for step in range(61):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 and rank == 0:
        print(f"step {step:2}: loss {loss.item():.4f}", flush=True)

state = optimizer.state_dict()  # on every rank, as it is gathered from all of them
if ranks > 1:
    distributed.barrier()
    distributed.destroy_process_group()
