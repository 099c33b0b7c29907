"""What tests of the PyTorch adapter look at."""

import torch


def flat(model):
    """Copy of all parameters, in one row."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def records_of(optimizer, run):
    """Records that reach the statistics while `run` runs: a list of uses a layer."""
    found = {}

    def keep(records):
        for name, uses in records.items():
            found.setdefault(name, []).extend(uses)

    deliver, optimizer.curvature.deliver = optimizer.curvature.deliver, keep
    run()
    optimizer.curvature.deliver = deliver
    return found
