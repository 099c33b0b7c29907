"""Moves of parameters: by their formula however tensors lie in memory, or not at all."""

import pytest
import torch
from ngd_torch._guard import Move, take
from torch import nn

from ngd_core.testing import assert_close

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.mT.contiguous().mT,
    "with gaps": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


def tensor(k, layout):
    r = torch.Generator().manual_seed(k)
    return LAYOUTS[layout](torch.randn(4, 3, 2, 5, generator=r, dtype=torch.float64))


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("of_direction", LAYOUTS)
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_a_move_is_its_formula_in_every_layout(of_parameter, of_direction, momentum):
    p, d = nn.Parameter(tensor(0, of_parameter)), tensor(1, of_direction)
    buffer = None if momentum is None else torch.zeros_like(p).copy_(tensor(2, "contiguous"))
    lr, shrink = 0.1, 0.75
    scale = None if momentum is None else torch.tensor(0.5, dtype=torch.float64)
    velocity = d if buffer is None else 0.5 * d + momentum * buffer
    want, kept = shrink * p.detach() - lr * velocity, d.clone()
    with torch.no_grad():
        ok = take([Move(p, d, lr, shrink, momentum or 0.0, buffer, scale)], p)
    assert bool(ok)
    assert_close(p.detach().numpy(), want.numpy())
    assert torch.equal(d, kept)
    if buffer is not None:
        assert_close(buffer.numpy(), velocity.numpy())


@pytest.mark.parametrize("of_parameter", LAYOUTS)
@pytest.mark.parametrize("bad", ["direction", "vouched", "gradient that nothing vouches for"])
def test_one_bad_move_keeps_all(bad, of_parameter):
    ps = [nn.Parameter(tensor(k, of_parameter)) for k in range(2)]
    buffers = [torch.ones_like(p) for p in ps]
    before = [x.detach().clone() for x in (*ps, *buffers)]
    directions = [torch.ones_like(p) for p in ps]
    if bad == "direction":
        directions[1][0, 0, 0, 0] = torch.nan
    vouched = torch.tensor(bad != "vouched")
    if bad.startswith("gradient"):
        ps[0].grad, vouched = torch.full_like(ps[0], torch.inf), None
    with torch.no_grad():
        ok = take(
            [
                Move(p, d, 0.1, 0.5, 0.9, b, None, vouched)
                for p, d, b in zip(ps, directions, buffers, strict=True)
            ],
            ps[0],
        )
    assert not bool(ok)
    assert all(torch.equal(x, y) for x, y in zip((*ps, *buffers), before, strict=True))
