"""Mistakes in second moments of convolution inputs by lags between rows."""

from mutants.mutant import Mutant

LAGS = "ngd_core/factors/lags.py"
PATCHES = "ngd_core/factors/patches.py"
TEST = "tests/core/test_lags.py::"
LAW = TEST + "test_moments_are_those_of_unfolded_patches[numpy]"

MUTANTS = (
    Mutant(
        "rows at the edges in every block",
        LAGS,
        "(max(0, i * e - top), min(height - t * e, out_height + i * e - top))",
        "(0, height - t * e)",
        LAW,
    ),
    Mutant(
        "padding above forgotten in the window of a tap row",
        LAGS,
        "(max(0, i * e - top), min",
        "(max(0, i * e), min",
        LAW,
    ),
    Mutant(
        "blocks below the diagonal not transposed",
        LAGS,
        "blocks[i + lag, i] = xp.matrix_transpose(block[..., :k])",
        "blocks[i + lag, i] = block[..., :k]",
        LAW,
    ),
    Mutant(
        "columns in the order (tap, channel)",
        LAGS,
        "xp.permute_dims(moment, (0, 2, 1, 4, 3))",
        "xp.permute_dims(moment, (0, 1, 2, 3, 4))",
        LAW,
    ),
    Mutant(
        "means in the order (tap, channel)",
        LAGS,
        "xp.reshape(xp.matrix_transpose(mean), (groups, d, 1))",
        "xp.reshape(mean, (groups, d, 1))",
        LAW,
    ),
    Mutant(
        "dilation forgotten in the distance of a lag",
        LAGS,
        "start + lag * plan.dilation : stop + lag * plan.dilation",
        "start + lag : stop + lag",
        LAW,
    ),
    Mutant(
        "lags where the kernel skips rows",
        LAGS,
        "if sh == 1 < kh:",
        "if 1 < kh:",
        LAW,
    ),
    Mutant(
        "channels of a grouped convolution interleaved",
        LAGS,
        (
            "(n, geometry.groups, channels // geometry.groups, height, width))\n"
            "    x = xp.permute_dims(x, (1, 3, 0, 4, 2))"
        ),
        (
            "(n, channels // geometry.groups, geometry.groups, height, width))\n"
            "    x = xp.permute_dims(x, (2, 3, 0, 4, 1))"
        ),
        LAW,
    ),
    Mutant(
        "border of a signal left unturned",
        LAGS,
        "pads if isinstance(pads, str) else pads[::-1]",
        "pads",
        TEST + "test_signals_are_images_of_one_row[sides2-1-True]",
    ),
    Mutant(
        "means over positions summed",
        PATCHES,
        "xp.mean(padded[..., rows, cols], axis=(-2, -1))",
        "xp.sum(padded[..., rows, cols], axis=(-2, -1))",
        LAW,
    ),
    Mutant(
        "halves of a batch averaged, not their rows",
        LAGS,
        "_products(part, plan, count, most",
        "_products(part, plan, count // 2, most",
        TEST + "test_a_batch_in_parts_has_the_moment_of_the_whole",
    ),
    Mutant(
        "positions forgotten in the size of what is unfolded",
        LAGS,
        "n * x.shape[1] * taps * positions > most",
        "n * x.shape[1] * taps > most",
        TEST + "test_no_more_is_unfolded_at_once_than_allowed[1000]",
    ),
    Mutant(
        "rows that no tap reads together counted",
        LAGS,
        "if any(_holds(window, run) for window in windows)]",
        "if run]",
        TEST + "test_rows_that_no_tap_reads_are_left_out",
    ),
    Mutant(
        "kernels of many rows by hundreds of products",
        LAGS,
        "MOST_RUNS = 32",
        "MOST_RUNS = 2**20",
        TEST + "test_kernels_of_many_rows_are_unfolded",
    ),
)
