"""Table of mutants at the end of `make mutants`."""


def pytest_terminal_summary(terminalreporter):
    rows, tally = [], {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "mutant":
                    stem, name, catcher, raised = value
                    rows.append(
                        (stem, name, raised if outcome == "passed" else "SURVIVED", catcher)
                    )
                    caught, total = tally.get(stem, (0, 0))
                    tally[stem] = (caught + (outcome == "passed"), total + 1)
    if not rows:
        return
    terminalreporter.section("mutants")
    stem_width, width = (max(len(row[k]) for row in rows) for k in (0, 1))
    for stem, name, verdict, catcher in sorted(rows):
        terminalreporter.line(f"{stem:{stem_width}} {name:{width}} {verdict:15} {catcher}")
    terminalreporter.line("")
    for stem, (caught, total) in sorted(tally.items()):
        terminalreporter.line(f"{stem:{stem_width}} {caught} of {total} caught")
