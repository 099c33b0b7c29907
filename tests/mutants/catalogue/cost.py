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
        "3 * examples * t * _map(spec)",
        "2 * examples * t * _map(spec)",
        TEST + "test_a_layer_s_own_cost_is_what_is_counted[layer0-shape0]",
    ),
    Mutant(
        "reduced positions counted one by one",
        COST,
        'return n if spec.sharing == "reduce" else n * _number(t)',
        "return n * _number(t)",
        STATISTICS + "[kfac-reduced-1]",
    ),
    Mutant(
        "one vector counted for several",
        COST,
        "_samples(spec, n, t) * m * r * r)",
        "_samples(spec, n, t) * r * r)",
        STATISTICS + "[kfac-dense-3]",
    ),
    Mutant(
        "moments of one group counted for all",
        COST,
        "return spec.groups * (_of_inputs(",
        "return (_of_inputs(",
        STATISTICS + "[kfac-groups-1]",
    ),
    Mutant(
        "diagonal factor counted as a matrix",
        COST,
        'if spec.kind == "embedding":\n        return 0',
        'if spec.kind == "scale":\n        return 0',
        STATISTICS + "[kfac-embedding-1]",
    ),
    Mutant(
        "images counted as if unfolded",
        COST,
        "spec.geometry is None or isinstance(t, int) or spec",
        "spec.geometry is None or t or spec",
        STATISTICS + "[kfac-convolution-1]",
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
        "moments = r * n * _number(t) * c * c",
        "moments = n * _number(t) * c * c",
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
