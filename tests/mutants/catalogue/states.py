"""Mistakes in states as named arrays and as files."""

from mutants.mutant import Mutant

TREES = "ngd_core/state/trees.py"
FILES = "ngd_core/state/files.py"
TORCH = "backends/ngd_torch/_files.py"
TEST = "tests/core/test_state.py::"
FILE_TEST = "tests/core/test_state_files.py::"
MOVES = "tests/backends/test_state_moves.py::"

MUTANTS = (
    Mutant(
        "arrays of the file in the state themselves",
        TREES,
        "return _xp.copied(value, like=x, xp=_xp.namespace_of(x))",
        "return value",
        TEST + "test_a_state_comes_back_and_acts_the_same[kfac-numpy]",
    ),
    Mutant(
        "arrays that have no place passed over",
        TREES,
        "    if unknown:\n",
        "    if False:\n",
        TEST + "test_arrays_that_do_not_fit[arrays2-parts2]",
    ),
    Mutant(
        "another shape taken in",
        TREES,
        " or tuple(value.shape) != tuple(x.shape)",
        "",
        TEST + "test_arrays_that_do_not_fit[arrays0-parts0]",
    ),
    Mutant(
        "memory of a view written as it lies",
        FILES,
        'np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")',
        'np.asarray(x, dtype=x.dtype.newbyteorder("<"))',
        FILE_TEST + "test_memory_order_and_views_are_kept",
    ),
    Mutant(
        "unfinished file left in the folder",
        FILES,
        "        part.unlink(missing_ok=True)\n",
        "        target.exists()\n",
        FILE_TEST + "test_a_write_that_fails_leaves_the_old_file",
    ),
    Mutant(
        "file of somebody else written over",
        FILES,
        'f".{target.name}.{uuid.uuid4().hex}"',
        'f".{target.name}"',
        FILE_TEST + "test_another_writer_in_the_folder_is_left_alone",
    ),
    Mutant(
        "one of two arrays of a name lost",
        TREES,
        "        if path in found:\n",
        "        if False:\n",
        TEST + "test_two_arrays_of_one_name",
    ),
    Mutant(
        "numbers not in the digest",
        FILES,
        '        found.update(arrays[name].reshape(-1).view("u1"))\n',
        "        found.update(b'')\n",
        FILE_TEST + "test_a_byte_that_changed_is_noticed_wherever_it_is",
    ),
    Mutant(
        "shapes not in the digest",
        FILES,
        "json.dumps([about, notes, outline], sort_keys=True)",
        "json.dumps([about, notes, names], sort_keys=True)",
        FILE_TEST + "test_a_byte_that_changed_is_noticed_wherever_it_is",
    ),
    Mutant(
        "file written in its place",
        FILES,
        'part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")\n    try:\n        with part.open("xb")',
        'part = target\n    try:\n        with part.open("wb")',
        FILE_TEST + "test_a_process_killed_at_any_instant_leaves_the_old_file_or_the_new",
    ),
    Mutant(
        "later version read as this one",
        FILES,
        "        later = version > VERSION\n",
        "        later = version > VERSION + 1\n",
        FILE_TEST + "test_files_of_others_and_of_later_versions[two]",
    ),
    Mutant(
        "options of a method not looked at",
        FILES,
        "        if got != own:\n",
        "        if False:\n",
        FILE_TEST + "test_a_state_of_another_method_or_of_other_options",
    ),
    Mutant(
        "names for what is within a layer too",
        TREES,
        "_label(key, names)), {})",
        "_label(key, names)), names)",
        TEST + "test_names_are_of_layers_alone",
    ),
    Mutant(
        "place in the schedule left in the file",
        TORCH,
        "{**curvature.state_dict(), **counts, ",
        "{**curvature.state_dict(), ",
        MOVES + "test_training_goes_on_in_every_other_framework[torch-kfac]",
    ),
)
