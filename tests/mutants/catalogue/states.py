"""Mistakes in states as named arrays and as files."""

from mutants.mutant import Mutant

STATE = "ngd_core/state.py"
TEST = "tests/core/test_state.py::"

MUTANTS = (
    Mutant(
        "arrays of the file in the state themselves",
        STATE,
        "return _xp.copied(value, like=x, xp=_xp.namespace_of(x))",
        "return value",
        TEST + "test_a_state_comes_back_and_acts_the_same[kfac-numpy]",
    ),
    Mutant(
        "arrays that have no place passed over",
        STATE,
        "    if unknown:\n",
        "    if False:\n",
        TEST + "test_arrays_that_do_not_fit[arrays2-parts2]",
    ),
    Mutant(
        "another shape taken in",
        STATE,
        " or tuple(value.shape) != tuple(x.shape)",
        "",
        TEST + "test_arrays_that_do_not_fit[arrays0-parts0]",
    ),
    Mutant(
        "memory of a view written as it lies",
        STATE,
        'np.asarray(x, order="C")',
        "np.asarray(x)",
        TEST + "test_memory_order_and_views_are_kept",
    ),
    Mutant(
        "unfinished file left in the folder",
        STATE,
        "        part.unlink(missing_ok=True)\n",
        "        target.exists()\n",
        TEST + "test_a_write_that_fails_leaves_the_old_file",
    ),
    Mutant(
        "file of somebody else written over",
        STATE,
        'f".{target.name}.{os.getpid()}"',
        'f".{target.name}"',
        TEST + "test_another_writer_in_the_folder_is_left_alone",
    ),
    Mutant(
        "one of two arrays of a name lost",
        STATE,
        "        if path in found:\n",
        "        if False:\n",
        TEST + "test_two_arrays_of_one_name",
    ),
)
