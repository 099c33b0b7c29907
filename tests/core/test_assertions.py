"""The assertions that hold the laws: each raises where it must."""

import numpy as np
import pytest

from ngd_core.testing import assert_close, assert_far, tolerance

ONE = np.asarray([1.0, 2.0])


@pytest.mark.parametrize(
    ("actual", "desired", "options", "sentence"),
    [
        (ONE, ONE[:1], {}, r"shape \(2,\) instead of \(1,\)"),
        (ONE, ONE[:, None], {}, r"shape \(2,\) instead of \(2, 1\)"),
        ([np.nan, 2.0], ONE, {}, "not finite"),
        ([np.inf, 2.0], [np.inf, 2.0], {}, "not finite"),
        (ONE, [np.nan, 2.0], {}, "relative error nan above"),
        (ONE, [np.inf, 2.0], {}, "relative error nan above"),
        (ONE, ONE, {"scale": np.nan}, "relative error nan above"),
        (ONE + 1e-12, ONE, {}, "relative error 5e-13 above 1.15e-14"),
        (ONE + 1e-12, ONE, {"scale": 1e-3}, "relative error 1e-09"),
        (ONE + 1e-4, ONE, {"dtype": "float32", "size": 2}, "float32, size 2, condition 1"),
        ([1e-3], [0.0], {}, "relative error 0.001 above"),
        (ONE + 0.1, ONE, {"kappa": np.inf}, "relative error 0.05 above 0.01"),
    ],
)
def test_what_is_not_close_is_said(actual, desired, options, sentence):
    with pytest.raises(AssertionError, match=sentence):
        assert_close(actual, desired, **options)


def test_what_is_close_passes():
    assert_close(ONE * (1 + 1e-15), ONE)
    assert_close(ONE + 1e-12, ONE, size=100)
    assert_close(ONE + 1e-12, ONE, kappa=100)
    assert_close([0.0], [0.0])
    assert_close(np.ones((0, 3)), np.ones((0, 3)))


@pytest.mark.parametrize(
    ("actual", "least"), [(ONE, 1e-9), (ONE + 1e-3, 0.1), ([np.nan, 2.0], 0.1)]
)
def test_what_is_not_far_is_said(actual, least):
    with pytest.raises(AssertionError, match="expected at least"):
        assert_far(actual, ONE, least=least)


def test_the_tolerance_grows_with_sums_and_conditions_to_one_percent():
    assert tolerance("float64", 2, 3) == pytest.approx(6 * tolerance("float64"))
    assert tolerance("float64") < tolerance("float32") < tolerance("bfloat16") == 1e-2
    assert tolerance("float32", 10**9, 1e9) == 1e-2
