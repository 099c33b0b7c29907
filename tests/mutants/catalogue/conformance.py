"""Mistakes in the conformance suite itself: it would pass what is wrong, or say the wrong thing."""

from mutants.mutant import Mutant

RUNNER = "ngd_core/testing/runner.py"
PROTOCOL = "ngd_core/testing/protocol.py"
PRECONDITIONERS = "ngd_core/testing/checks_preconditioners.py"
TEST = "tests/conformance/test_suite.py::"

MUTANTS = (
    Mutant(
        "an expected failure counts as passed for the level",
        RUNNER,
        'if any(o.status in ("failed", "expected") for o',
        'if any(o.status in ("failed",) for o',
        TEST + "test_expected_failures_are_strict_and_known",
    ),
    Mutant(
        "the first failing arguments are kept, not the smallest",
        RUNNER,
        "        last.clear()\n        last.update({name: arguments[name] for name in names})",
        "        for name in names:\n            last.setdefault(name, arguments[name])",
        TEST + "test_a_counter_example_is_shrunk_and_runs",
    ),
    Mutant(
        "strictness is forgotten",
        RUNNER,
        'bad = {"failed", "unexpected"} if self.strict else {"failed"}',
        'bad = {"failed"}',
        TEST + "test_expected_failures_are_strict_and_known",
    ),
    Mutant(
        "devices are not looked at",
        PROTOCOL,
        "if self.device is not None and x.device != template.device:",
        "if False:",
        TEST + "test_a_backend_looks_where_its_results_live",
    ),
    Mutant(
        "numbers that are not finite on purpose are warned of",
        RUNNER,
        'warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)',
        'warnings.filterwarnings("default", ".* encountered in ", RuntimeWarning)',
        TEST + "test_a_report_has_no_warnings_of_numbers_that_are_not_finite_on_purpose",
    ),
    Mutant(
        "the diagnosis scales the wrong way",
        PRECONDITIONERS,
        "factor = float(examples) ** i * float(positions) ** j",
        "factor = float(examples) ** -i * float(positions) ** -j",
        TEST + "test_a_scale_error_is_measured",
    ),
)
