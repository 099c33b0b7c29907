"""Mistakes in layers used several times, tied tables, and shares of the vectors."""

from mutants.mutant import Mutant

TIED = "ngd_core/factors/tied.py"
USES = "ngd_core/factors/uses.py"
TEST = "tests/core/test_uses.py::"
TRACES = TEST + "test_a_tied_block_has_the_partial_traces_of_the_sum_of_its_uses[numpy]"
SHARE = "tests/core/test_invariance.py::test_parts_of_the_vectors_weigh_parts_of_the_examples"

MUTANTS = (
    Mutant(
        "input factors of both uses added as they are",
        TIED,
        "(t * A_1 + u * A_2) * (scale / whole)",
        "(A_1 + A_2) * (scale / whole)",
        TRACES,
    ),
    Mutant(
        "output factors of both uses added as they are",
        TIED,
        "(p * G_1 + q * G_2) / scale",
        "(G_1 + G_2) / scale",
        TRACES,
    ),
    Mutant(
        "traces of the two uses exchanged",
        TIED,
        "(t * A_1 + u * A_2)",
        "(u * A_1 + t * A_2)",
        TRACES,
    ),
    Mutant(
        "nothing divided by nothing",
        TIED,
        "whole = xp.where(some, whole, one)",
        "whole = whole * one",
        TEST + "test_a_tied_block_without_any_gradient_is_zero",
    ),
    Mutant(
        "groups of a kernel behind its taps",
        USES,
        "xp.permute_dims(x, (1, 2, 0, 3))",
        "xp.permute_dims(x, (1, 2, 3, 0))",
        TEST + "test_rows_of_a_convolution_are_as_good_as_its_images[numpy]",
    ),
    Mutant(
        "uses taken for examples",
        USES,
        "LayerRecord(xp.concat(a, axis=1), xp.concat(g, axis=lead), outputs)",
        "LayerRecord(xp.concat(a, axis=0), xp.concat(g, axis=lead - 1), outputs)",
        TEST + "test_the_gradient_of_an_example_is_the_sum_over_uses[numpy]",
    ),
    Mutant(
        "gradients of the uses in reverse",
        USES,
        "g = [flat(use.g, lead, True) for use in uses]",
        "g = [flat(use.g, lead, True) for use in uses[::-1]]",
        TEST + "test_the_gradient_of_an_example_is_the_sum_over_uses[numpy]",
    ),
    *(
        Mutant(
            f"a part of the vectors weighs all examples in {method}",
            f"ngd_core/methods/{file}.py",
            f"{count} * hyper.share",
            count,
            f"{SHARE}[{method}]",
        )
        for method, file, count in (
            ("KFAC", "kfac", "record.a.shape[0]"),
            ("EKFAC", "ekfac", "record.a.shape[0]"),
            ("SNGD", "sngd", "record.a.shape[0]"),
            ("DenseNGD", "dense", "count"),
            ("TridiagonalKFAC", "tridiagonal", "count"),
            ("ProjectiveKFAC", "_projective_layer", "record.a.shape[0]"),
        )
    ),
)
