"""docs/conformance.md says what the kept reports say, and these are of today's checks."""

import json

import numpy as np
import pytest
from conformance.reports import FOLDER, KEPT, OWN, PAGE, blocks, filled, make, outcomes, read, table

from ngd_core.testing import BackendUnderTest, PreconditionerUnderTest, checks_of

ANY = BackendUnderTest("any", np, compile=lambda f: f, capture=dict)
THEIRS = PreconditionerUnderTest("theirs", lambda problem: problem.gradients(), split="pi")
LAWS = {(c.level, c.name): c.law for subject in (ANY, THEIRS) for c in checks_of(subject)}
ADVICE = "cd tests && ../.venv/bin/python -m conformance.reports"


def test_the_page_is_what_the_reports_say():
    page = PAGE.read_text()
    assert page == filled(page, blocks()), ADVICE


def test_each_report_is_kept_and_no_other():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_a_report_is_of_the_checks_there_are(name):
    report, versions = read(name)
    assert set(versions) == set(KEPT[name].packages)
    assert {(o.level, o.name): o.law for o in report.outcomes}.items() <= LAWS.items(), ADVICE
    of = THEIRS if name == "asdfghjkl" else ANY
    now = [check.name for check in checks_of(of, levels=report.levels)]
    assert [o.name for o in report.outcomes] == now, f"{ADVICE} {name}"
    assert all(o.code for o in report.outcomes if o.status == "failed")


@pytest.mark.parametrize("name", OWN)
def test_every_law_held_on_the_libraries_shipped_here(name):
    assert read(name)[0].ok


def test_a_report_is_written_read_and_shown(tmp_path, monkeypatch):
    once = KEPT["numpy"]._replace(options={"max_examples": 1, "levels": ["ops"]})
    monkeypatch.setitem(KEPT, "numpy", once)
    make("numpy", tmp_path)
    assert json.loads((tmp_path / "numpy.json").read_text())["reached"] == "ops"
    assert table(["numpy"], tmp_path).splitlines()[2].endswith("| ops | 11 of 11 |  |  |  |  |")
    assert "cond_takes_the_branch" in outcomes("numpy", tmp_path)


def test_a_place_that_is_missing_is_an_error():
    assert filled("<!-- report a -->\nold\n<!-- end -->", {"a": "new"}).count("new") == 1
    with pytest.raises(ValueError, match="0 places for the report 'b'"):
        filled("<!-- report a -->\nold\n<!-- end -->", {"b": "new"})
