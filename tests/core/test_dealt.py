"""Layers are dealt out to workers so that none has much more to do than another."""

from ngd_core import LayerSpec
from ngd_core.methods.dealt import dealt


def test_layers_are_dealt_out_evenly():
    specs = [LayerSpec(f"{k}", "dense", 3 + k % 5, 2 + k % 3) for k in range(23)]
    specs.append(LayerSpec("tokens", "embedding", 5000, 2, bias=False))
    costs = {spec: spec.columns**3 + spec.rows**3 for spec in specs[:-1]}
    costs[specs[-1]] = 5000 + 2**3  # its input factor is diagonal
    for size in (1, 2, 5):
        whose = dealt(reversed(specs), size)
        assert whose == dealt(specs, size)
        assert set(whose) == set(specs)
        shares = [[costs[spec] for spec in specs if whose[spec] == rank] for rank in range(size)]
        least = min(sum(share) for share in shares)
        assert all(sum(share) - min(share) <= least for share in shares)  # the last one was due
