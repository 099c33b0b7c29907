"""Mistakes in inverses by products alone: the iteration, its start, its check, its place."""

from mutants.mutant import Mutant

SCHULZ = "ngd_core/inversion/schulz.py"
SPD = "ngd_core/inversion/spd.py"

TESTS = "tests/core/test_newton_schulz.py::"
EQUAL = TESTS + "test_it_is_the_inverse_through_cholesky[numpy]"
RULE = TESTS + "test_steps_by_the_rule_suffice_and_half_of_them_do_not"
START = TESTS + "test_the_last_inverse_is_the_start_of_the_next"
NO_GOOD = TESTS + "test_a_start_that_is_no_good_changes_nothing[numpy]"
NAN = TESTS + "test_what_has_no_inverse_comes_back_as_nan_and_quietly[numpy]"
CHAIN = TESTS + "test_it_goes_down_the_same_chain[numpy]"

MUTANTS = (
    Mutant("any start is good", SCHULZ, "WARM = 0.5", "WARM = 1e9", NO_GOOD),
    Mutant("any end is good", SCHULZ, "RESIDUAL = 0.1", "RESIDUAL = 1e9", RULE),
    Mutant(
        "the step from the true residual left out",
        SCHULZ,
        "    x = x + x @ rest\n",
        "",
        TESTS + "test_each_step_squares_the_residual",
    ),
    Mutant(
        "factors of X in the wrong order for a start that does not commute",
        SCHULZ,
        "x, product = x @ change, product @ change",
        "x, product = change @ x, product @ change",
        TESTS + "test_a_good_start_needs_few_steps",
    ),
    Mutant(
        "M not carried along",
        SCHULZ,
        "x, product = x @ change, product @ change",
        "x, product = x @ change, change @ change",
        EQUAL,
    ),
    Mutant("not symmetric", SCHULZ, "xp.where(ok, 0.5 * (x + x.mT),", "xp.where(ok, x,", EQUAL),
    Mutant(
        "what diverges goes on until it overflows",
        SCHULZ,
        "change = identity + xp.where(safe, rest, _xp.zeros((), like=x, xp=xp))",
        "change = identity + rest",
        NAN,
    ),
    Mutant(
        "identities that stand for bad matrices handed out as inverses",
        SCHULZ,
        "ok = finite & (frobenius_norm(rest, xp=xp) < RESIDUAL)",
        "ok = frobenius_norm(rest, xp=xp) < RESIDUAL",
        NAN,
    ),
    Mutant(
        "starts that overflow multiplied",
        SCHULZ,
        "    start = xp.where(sane, start, _xp.zeros((), like=start, xp=xp))\n",
        "",
        NO_GOOD,
    ),
    Mutant(
        "a good start of one matrix taken for one of all",
        SCHULZ,
        "                xp.all(warm),",
        "                xp.any(warm),",
        CHAIN,
    ),
    Mutant(
        "few steps where many are needed",
        SCHULZ,
        "lambda: _iterate(x, product, self.steps, xp=xp),",
        "lambda: _iterate(x, product, self.warm_steps, xp=xp),",
        CHAIN,
    ),
    Mutant(
        "the start used whether or not it is good",
        SCHULZ,
        "    x = xp.where(warm, start, identity / norm)\n",
        "    x = start\n",
        NO_GOOD,
    ),
    Mutant(
        "no start",
        SCHULZ,
        "replace(ops, spd_inverse=inverse, warm=True)",
        "replace(ops, spd_inverse=inverse)",
        START,
    ),
    Mutant(
        "the other operations forgotten",
        SCHULZ,
        "replace(ops, spd_inverse=inverse, warm=True)",
        "Ops(inverse, warm=True)",
        TESTS + "test_tables_compare_and_keep_their_other_operations",
    ),
    Mutant(
        "the start in another scale than the matrix",
        SPD,
        " * part.scale[..., None, None]\n        inverse = ops",
        "\n        inverse = ops",
        START,
    ),
    Mutant(
        "no scaling of the first X",
        SCHULZ,
        "return identity / norm, m / norm,",
        "return identity, m,",
        EQUAL,
    ),
)
