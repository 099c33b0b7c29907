"""No test drops its comparison or skips without a GPU as its reason."""

from __future__ import annotations

import pytest
from arch.habits import faults


def test_no_comparison_is_dropped_and_no_test_skipped():
    assert faults() == []


def plant(root, text):
    for folder in ("tests/core", "ngd_core/testing"):
        (root / folder).mkdir(parents=True)
    (root / "tests/core/test_bad.py").write_text(text)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "np.allclose(a, b)",
        "allclose(a, b)",
        "xp.isclose(a, b).all()",
        "np.testing.__dict__; numpy.array_equal(a, b)",
        "def test():\n    if x:\n        torch.allclose(\n            a, b)",
        "@pytest.mark.skip\ndef test(): ...",
        "@pytest.mark.xfail(reason='hard')\ndef test(): ...",
        "def test():\n    pytest.skip('later')",
        "torch = pytest.importorskip('torch')",
        "from pytest import skip",
        "pytestmark = pytest.mark.skipif(True, reason='slow')",
        "@pytest.mark.gpu\ndef test(): ...\n@pytest.mark.skip\ndef other(): ...",
    ],
)
def test_a_bad_habit_is_named(tmp_path, text):
    found = faults(plant(tmp_path, text))
    assert len(found) == 1
    assert found[0].startswith("tests/core/test_bad.py:")


@pytest.mark.parametrize(
    "text",
    [
        "assert np.allclose(a, b)",
        "same = np.allclose(a, b)\nassert (\n    np.allclose(a, b)\n)",
        "assert_allclose(a, b)\nnp.testing.assert_array_equal(a, b)",
        "@pytest.mark.gpu\n@pytest.mark.skipif(not cuda, reason='no GPU')\ndef test(): ...",
        "st.lists(x)\nskip(a)",
    ],
)
def test_a_good_habit_passes(tmp_path, text):
    assert faults(plant(tmp_path, text)) == []
