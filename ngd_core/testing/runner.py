"""Run the checks on a backend or a preconditioner, and say what was found."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from ngd_core.testing import (
    checks_capture,
    checks_compile,
    checks_factors,
    checks_methods,
    checks_ops,
    checks_preconditioners,
)
from ngd_core.testing.protocol import PreconditionerUnderTest, Subject

__all__ = [
    "Check",
    "LEVELS",
    "Outcome",
    "PROFILES",
    "Report",
    "check_backend",
    "checks_of",
    "parametrize_with_checks",
    "reproduction",
]

Profile: TypeAlias = Literal["quick", "default", "deep"]
Status: TypeAlias = Literal["passed", "failed", "expected", "unexpected"]

LEVELS = ("ops", "factors", "methods", "capture", "compile")
"""Levels in the order in which they need each other."""

PROFILES = {"quick": 15, "default": 60, "deep": 1000}
"""Examples of a check."""

COMPILED = 0.1
"""Share of examples at the level "compile", where each is compiled anew."""

_BACKEND = {
    "ops": checks_ops.CHECKS,
    "factors": checks_factors.CHECKS,
    "methods": checks_methods.CHECKS,
    "capture": checks_capture.CHECKS,
    "compile": checks_compile.CHECKS,
}


class Check(NamedTuple):
    """A law, and where it stands.

    Parameters
    ----------
    name : str
        Stable: reports and lists of expected failures use it.
    level : str
        One of `LEVELS`.
    function : callable
        ``function(subject, **drawn)``, which raises where the law does not hold.
    examples : int
        How many are tried.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest, checks_of
    >>> check = checks_of(BackendUnderTest("numpy", np), profile="quick")[0]
    >>> check.level, check.examples
    ('ops', 15)
    """

    name: str
    level: str
    function: Callable[..., None]
    examples: int

    @property
    def law(self) -> str:
        """First paragraph of the docstring."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())

    def __call__(self, subject: Subject) -> None:
        """Hold the law on examples; the smallest one that breaks it is reported as code.

        Parameters
        ----------
        subject : BackendUnderTest or PreconditionerUnderTest
            What is held to it.

        Raises
        ------
        BaseException
            What the smallest example raised, with a note that holds code to reproduce it.
        """
        last: dict[str, Any] = {}
        try:
            _run(self, subject, last)
        except Exception as error:
            error.add_note(f"Law {self.name}: {self.law}")
            error.add_note("Reproduce it with:\n\n" + reproduction(subject, self.function, last))
            raise


def _run(check: Check, subject: Subject, last: dict[str, Any]) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    from ngd_core.testing.strategies import drawn, parameters

    names = parameters(check.function)
    if not names:
        check.function(subject)
        return

    @settings(
        max_examples=check.examples,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(drawn(subject, names))
    def hold(arguments: Mapping[str, Any]) -> None:
        last.clear()
        last.update({name: arguments[name] for name in names})
        check.function(subject, **arguments)

    hold()


def reproduction(
    subject: Subject, function: Callable[..., None], arguments: Mapping[str, Any]
) -> str:
    """Python code that calls a check with these arguments.

    Parameters
    ----------
    subject : BackendUnderTest or PreconditionerUnderTest
        Its ``source`` binds `subject`; without one the code says what has to be bound.
    function : callable
        The check.
    arguments : mapping of str to object
        Plain values.

    Returns
    -------
    str
        Statements.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest, checks_ops
    >>> from ngd_core.testing.runner import reproduction
    >>> mine = BackendUnderTest("mine", np, source="from my_package import backend as subject")
    >>> print(reproduction(mine, checks_ops.cond_takes_the_branch, {"dtype": "float32"}))
    from my_package import backend as subject
    from ngd_core.testing.checks_ops import cond_takes_the_branch
    <BLANKLINE>
    cond_takes_the_branch(subject, dtype='float32')
    """
    name = function.__name__
    bind = subject.source or f"# subject = the object named {subject.name!r} that was checked"
    words = ", ".join(["subject", *(f"{key}={value!r}" for key, value in arguments.items())])
    return f"{bind}\nfrom {function.__module__} import {name}\n\n{name}({words})"


def checks_of(
    subject: Subject,
    *,
    profile: Profile = "default",
    levels: Iterable[str] | None = None,
    max_examples: int | None = None,
) -> list[Check]:
    """List the checks that a subject is held to.

    Parameters
    ----------
    subject : BackendUnderTest or PreconditionerUnderTest
        A backend without a ``capture`` or ``compile`` has no checks of these levels; a
        preconditioner has those of "methods" alone.
    profile : "quick", "default" or "deep"
        Of `PROFILES`; the subject's ``share`` of it is tried.
    levels : iterable of str, optional
        Of `LEVELS`; all by default.
    max_examples : int, optional
        In place of the profile's.

    Returns
    -------
    list of Check
        In order of levels.

    Raises
    ------
    ValueError
        For an unknown profile or level.

    Examples
    --------
    >>> from ngd_core.testing import PreconditionerUnderTest, checks_of
    >>> plain = PreconditionerUnderTest("gradient", lambda problem: problem.gradients())
    >>> checks_of(plain)[0].name
    'direction_is_the_dense_damped_solve'
    """
    if profile not in PROFILES:
        msg = f"profile is {profile!r}; expected one of {', '.join(PROFILES)}."
        raise ValueError(msg)
    wanted = LEVELS if levels is None else tuple(levels)
    unknown = [level for level in wanted if level not in LEVELS]
    if unknown:
        msg = f"level is {unknown[0]!r}; expected one of {', '.join(LEVELS)}."
        raise ValueError(msg)
    count = PROFILES[profile] if max_examples is None else max_examples
    found = []
    for level, functions in _offered(subject).items():
        if level in wanted:
            share = subject.share * (COMPILED if level == "compile" else 1.0)
            examples = max(1, round(count * share))
            found += [Check(f.__name__, level, f, examples) for f in functions]
    return found


def _offered(subject: Subject) -> dict[str, tuple[Callable[..., None], ...]]:
    if isinstance(subject, PreconditionerUnderTest):
        return {"methods": checks_preconditioners.checks_for(subject)}
    left_out = {level for level in ("capture", "compile") if getattr(subject, level, None) is None}
    return {level: found for level, found in _BACKEND.items() if level not in left_out}


class Outcome(NamedTuple):
    """What became of one check.

    Parameters
    ----------
    name, level, law : str
        Of the check.
    status : "passed", "failed", "expected" or "unexpected"
        "expected": it failed, and that was said before; "unexpected": it passed though a failure
        was expected.
    seconds : float
        Time it took.
    reason : str
        Why a failure was expected.
    error : str
        What the smallest failing example raised.
    code : str
        Python code that raises it again.
    """

    name: str
    level: str
    law: str
    status: Status
    seconds: float
    reason: str = ""
    error: str = ""
    code: str = ""


@dataclass(frozen=True)
class Report:
    """Outcomes of all checks; printed it is a table, and what to do about the failures.

    Parameters
    ----------
    subject : str
        Name.
    profile : str
        As given.
    outcomes : tuple of Outcome
        In order.
    strict : bool
        Whether an expected failure that passes counts as a failure.

    Examples
    --------
    >>> Report("mine", "quick", (Outcome("a", "ops", "a is a.", "passed", 0.0),)).reached
    'ops'
    """

    subject: str
    profile: str
    outcomes: tuple[Outcome, ...]
    strict: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing failed that was not expected to, nor passed that was."""
        bad = {"failed", "unexpected"} if self.strict else {"failed"}
        return not any(outcome.status in bad for outcome in self.outcomes)

    @property
    def reached(self) -> str | None:
        """Last level up to which every check passed, those not offered or not run apart."""
        level = None
        for name in self.levels:
            if any(o.status in ("failed", "expected") for o in self.outcomes if o.level == name):
                break
            level = name
        return level

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels that were run."""
        run = {outcome.level for outcome in self.outcomes}
        return tuple(level for level in LEVELS if level in run)

    def passed(self, level: str) -> tuple[int, int]:
        """Numbers of checks of a level that passed, and of all."""
        of = [o for o in self.outcomes if o.level == level]
        return sum(o.status in ("passed", "unexpected") for o in of), len(of)

    def summary(self) -> str:
        """One line: level reached, and how many checks of each passed."""
        counts = ", ".join("{} {}/{}".format(x, *self.passed(x)) for x in self.levels)
        reached = f"level reached: {self.reached or 'none'}"
        return f"{self.subject}: {reached} ({counts})"

    def __str__(self) -> str:
        wide = max((len(o.name) for o in self.outcomes), default=0)
        lines = [self.summary(), ""]
        for o in self.outcomes:
            lines.append(f"{o.level:8} {o.name:{wide}} {o.status:10} {o.seconds:6.1f} s".rstrip())
        for o in self.outcomes:
            if o.status in ("failed", "unexpected"):
                lines += ["", f"{o.name} ({o.level}): {o.status}", f"Law: {o.law}"]
                said = o.error or f"it passed, though a failure was expected: {o.reason}"
                lines += [said, *([f"\n{o.code}"] if o.code else [])]
            elif o.status == "expected":
                lines += ["", f"{o.name} ({o.level}): failed, as expected: {o.reason}"]
        return "\n".join(lines)

    def json(self) -> str:
        """Everything as JSON: the fields, the level reached and whether all is well."""
        data = asdict(self) | {"reached": self.reached, "ok": self.ok}
        data["outcomes"] = [outcome._asdict() for outcome in self.outcomes]
        return json.dumps(data, indent=1)


def check_backend(
    subject: Subject,
    *,
    profile: Profile = "default",
    levels: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
    max_examples: int | None = None,
    progress: Callable[[Check], None] | None = None,
) -> Report:
    """Hold a backend or a preconditioner to all laws, without pytest.

    Parameters
    ----------
    subject : BackendUnderTest or PreconditionerUnderTest
        What is checked.
    profile : "quick", "default" or "deep"
        15, 60 or 1,000 examples a law, times the subject's ``share``.
    levels : iterable of str, optional
        Of "ops", "factors", "methods", "capture" and "compile"; all by default.
    expected_failures : mapping of str to str, optional
        Reasons by the name of a check.
    strict : bool
        Whether an expected failure that passes is a failure.
    max_examples : int, optional
        In place of the profile's.
    progress : callable, optional
        ``progress(check)`` is called before each.

    Returns
    -------
    Report
        Printed it is a table.

    Raises
    ------
    ValueError
        For an unknown profile, level, or name among the expected failures.
    ImportError
        If Hypothesis is not installed; it comes with ``ngd-core[checks]``.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest, check_backend
    >>> report = check_backend(BackendUnderTest("numpy", np), levels=["ops"], max_examples=3)
    >>> print(report.summary())
    numpy: level reached: ops (ops 11/11)
    """
    _need_hypothesis()
    options: dict[str, Any] = {"profile": profile, "max_examples": max_examples}
    expected = _known(subject, expected_failures)
    outcomes = []
    for check in checks_of(subject, levels=levels, **options):
        if progress is not None:
            progress(check)
        outcomes.append(_outcome(check, subject, expected.get(check.name)))
    return Report(subject.name, profile, tuple(outcomes), strict)


def _need_hypothesis() -> None:
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError as error:
        msg = (
            "The conformance suite needs Hypothesis, which is not installed; "
            "install it with: pip install 'ngd-core[checks]'"
        )
        raise ImportError(msg) from error


def _known(subject: Subject, expected: Mapping[str, str] | None) -> dict[str, str]:
    names = [check.name for check in checks_of(subject)]
    unknown = [name for name in expected or {} if name not in names]
    if unknown:
        msg = (
            f"expected_failures names {unknown[0]!r}, which is no check of {subject.name}; "
            f"its checks are {', '.join(names)}."
        )
        raise ValueError(msg)
    return dict(expected or {})


def _outcome(check: Check, subject: Subject, reason: str | None) -> Outcome:
    start, error, code = time.perf_counter(), "", ""
    try:
        with warnings.catch_warnings():
            # some examples are not finite on purpose
            warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
            check(subject)
    except Exception as found:
        *notes, code = getattr(found, "__notes__", [""])
        own = ("Law ", "Falsifying ", "Failing ")
        said = [note for note in notes if not note.startswith(own)]
        error = "\n".join([f"{type(found).__name__}: {found}", *said])
        code = code.partition("\n\n")[2]
    seconds = time.perf_counter() - start
    status: Status = "failed" if error else "passed"
    if reason is not None:
        status = "expected" if error else "unexpected"
    fields = check.name, check.level, check.law, status, seconds
    return Outcome(*fields, reason or "", error, code)


def parametrize_with_checks(
    subjects: Iterable[Subject],
    *,
    profile: Profile = "default",
    levels: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
    max_examples: int | None = None,
) -> Any:
    """Decorate a pytest function ``test(backend, check)`` with all checks of all subjects.

    Parameters
    ----------
    subjects : iterable of BackendUnderTest or PreconditionerUnderTest
        What is checked.
    profile : "quick", "default" or "deep"
        As in `check_backend`.
    levels : iterable of str, optional
        As in `check_backend`.
    expected_failures : mapping of str to str, optional
        Reasons by the name of a check; it is marked as an expected failure for each subject.
    strict : bool
        Whether an expected failure that passes is a failure.
    max_examples : int, optional
        As in `check_backend`.

    Returns
    -------
    pytest.MarkDecorator
        The decorator.

    Raises
    ------
    ValueError
        As `check_backend`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest, parametrize_with_checks
    >>> @parametrize_with_checks([BackendUnderTest("mine", np)])
    ... def test_laws(backend, check):
    ...     check(backend)
    """
    import pytest

    levels = None if levels is None else tuple(levels)
    options: dict[str, Any] = {"profile": profile, "max_examples": max_examples, "levels": levels}
    made = []
    for subject, check, reason in _cases(subjects, expected_failures, options):
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=strict)]
        made.append(pytest.param(subject, check, marks=marks, id=f"{subject}-{check.name}"))
    return pytest.mark.parametrize(("backend", "check"), made)


def _cases(
    subjects: Iterable[Subject], expected: Mapping[str, str] | None, options: dict[str, Any]
) -> Iterator[tuple[Subject, Check, str | None]]:
    for subject in subjects:
        reasons = _known(subject, expected)
        for check in checks_of(subject, **options):
            yield subject, check, reasons.get(check.name)
