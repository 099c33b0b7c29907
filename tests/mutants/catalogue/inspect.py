"""Mistakes in `ngd inspect`: what is compared with what, scales, files, words for pictures."""

from mutants.mutant import Mutant

INSPECTION = "ngd_core/lab/inspection.py"
MODULE = "ngd_core/lab/torch_inspect.py"
PAGE = "ngd_core/lab/page.py"
STYLE = "ngd_core/lab/style.py"
SUBJECT = "ngd_core/lab/subject.py"
SVG = "ngd_core/lab/svg.py"
WEIGHTS = "ngd_core/lab/weights.py"
TEST = "tests/core/test_inspect.py::"
TEST_TORCH = "tests/backends/test_torch_inspect.py::"

MUTANTS = (
    Mutant(
        "effective dimension at another damping",
        INSPECTION,
        "float(analysis.effective_dimension(values, damping)),",
        "float(analysis.effective_dimension(values, 2 * damping)),",
        TEST + "test_every_figure_of_a_layer_is_that_of_the_analysis",
    ),
    Mutant(
        "the joint direction for that of each layer",
        INSPECTION,
        "analysis.natural_gradient({spec: records[spec]}, {spec: grad}, damping)[spec]",
        "joint[spec]",
        TEST + "test_layers_alone_are_compared_with_the_joint_direction",
    ),
    Mutant(
        "records of the labels for the exact side",
        SUBJECT,
        "exact_records=exact,",
        "exact_records=back.records,",
        TEST + "test_a_method_agrees_as_the_analysis_says[kfac]",
    ),
    Mutant(
        "EKFAC and its kin see the labels' own gradients",
        SUBJECT,
        'exact if entry.observes == "samples" else back.records',
        "back.records",
        TEST + "test_a_method_agrees_as_the_analysis_says[kfac]",
    ),
    Mutant(
        "SNGD takes the damping of the page",
        SUBJECT,
        "return own if own is None or method in RELATIVE else damping",
        "return own if own is None else damping",
        TEST + "test_a_method_agrees_as_the_analysis_says[sngd]",
    ),
    Mutant(
        "vectors of a module averaged",
        MODULE,
        "rows * len(vectors) ** 0.5",
        "rows",
        TEST_TORCH + "test_layers_of_a_module_are_those_of_the_arrays",
    ),
    Mutant(
        "weights of a module left at their initial values",
        "ngd_core/lab/inspect.py",
        "torch_inspect.fill(module, values)",
        "pass",
        TEST_TORCH + "test_layers_of_a_module_are_those_of_the_arrays",
    ),
    Mutant(
        "optimizers sample labels",
        MODULE,
        "exact=True",
        "exact=False",
        TEST_TORCH + "test_an_optimizer_agrees_as_its_method_does[kfac]",
    ),
    Mutant(
        "optimizers remember what they began with",
        MODULE,
        "rule.curvature.decay, rule.curvature.inverse_every = 0.0, 1",
        "rule.curvature.decay, rule.curvature.inverse_every = 0.95, 1",
        TEST_TORCH + "test_an_optimizer_agrees_as_its_method_does[ekfac]",
    ),
    Mutant(
        "saved weights are those of the second to last step",
        "ngd_core/lab/train.py",
        "        for k in range(len(batches)):\n            state = move(state, k, rate)\n        return",
        "        for k in range(len(batches) - 1):\n            state = move(state, k, rate)\n        return",
        TEST + "test_weights_of_compare_are_those_it_ended_with",
    ),
    Mutant(
        "unknown arrays in a file are passed over",
        WEIGHTS,
        "unknown = [name for name in arrays if name not in wanted]",
        "unknown = []",
        TEST + "test_weights_of_another_model_get_one_sentence[changes1-parts1]",
    ),
    Mutant(
        "the digest of our own files is not looked at",
        WEIGHTS,
        "return state.load(source).arrays if own else arrays",
        "return arrays",
        TEST + "test_a_file_of_ours_that_was_changed_is_refused",
    ),
    Mutant(
        "names from outside go into the page as markup",
        PAGE,
        "    return escape(\n",
        "    return str(\n",
        TEST + "test_what_a_person_named_is_not_taken_for_markup",
    ),
    Mutant(
        "descriptions of pictures are empty",
        SVG,
        "{escape(description)}</desc>",
        "</desc>",
        TEST + "test_every_picture_has_a_title_and_a_description",
    ),
    Mutant(
        "soft words too light",
        STYLE,
        '"soft": "#57606a"',
        '"soft": "#8c959f"',
        TEST + "test_words_and_pictures_stand_out_from_the_paper[light]",
    ),
    Mutant(
        "columns from the lowest, not from 0",
        SVG,
        "v-{h / most * span:.1f}h",
        "v-{(h - min(heights)) / most * span:.1f}h",
        TEST + "test_columns_are_as_high_as_their_numbers",
    ),
    Mutant(
        "numbers a power of ten off after rounding",
        SVG,
        'power = math.floor(math.log10(abs(float(f"{x:.{digits - 1}e}"))))',
        "power = math.floor(math.log10(abs(x)))",
        TEST + "test_numbers_for_people[9.999e-05-0.000100]",
    ),
)
