"""Mistakes in counting what a method costs."""

from mutants.mutant import Mutant

COST = "ngd_core/methods/cost.py"
TEST = "tests/backends/test_torch_report.py::"
STATISTICS = TEST + "test_statistics_cost_what_is_counted"
DIRECTIONS = TEST + "test_directions_and_refreshes_cost_what_is_counted"

MUTANTS = (
    Mutant(
        "backward pass counted once",
        COST,
        "3 * examples * positions * _map(spec)",
        "2 * examples * positions * _map(spec)",
        TEST + "test_a_layer_s_own_cost_is_what_is_counted[layer0-shape0]",
    ),
    Mutant(
        "reduced positions counted one by one",
        COST,
        'return n if spec.sharing == "reduce" else n * t',
        "return n * t",
        STATISTICS + "[kfac-reduced-1]",
    ),
    Mutant(
        "one vector counted for several",
        COST,
        "(of_inputs + m * r * r)",
        "(of_inputs + r * r)",
        STATISTICS + "[kfac-dense-3]",
    ),
    Mutant(
        "moments of one group counted for all",
        COST,
        "return spec.groups * _samples(spec, n, t)",
        "return _samples(spec, n, t)",
        STATISTICS + "[kfac-groups-1]",
    ),
    Mutant(
        "diagonal factor counted as a matrix",
        COST,
        'of_inputs = 0 if spec.kind == "embedding" else (c - spec.bias) ** 2',
        "of_inputs = (c - spec.bias) ** 2",
        STATISTICS + "[kfac-embedding-1]",
    ),
    Mutant(
        "eigenbases turned into, not back",
        COST,
        "(1 + exact) * _sides(spec)",
        "_sides(spec)",
        DIRECTIONS + "[kfac exact-dense]",
    ),
    Mutant(
        "one local Fisher counted where every output has its own",
        COST,
        "each, inputs = (r, c) if relu",
        "each, inputs = (1, c) if relu",
        STATISTICS + "[sngd relu-dense-1]",
    ),
    Mutant(
        "projected onto, not back",
        COST,
        "(2 * d * k + k * k) * other",
        "(d * k + k * k) * other",
        DIRECTIONS + "[projective-dense]",
    ),
)
