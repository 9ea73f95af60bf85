"""In CI (`CI` is set) a test that met a busy machine is tried again, once: ADR 48.

Loaded by tests/conftest.py. What the tests of `tests/simulation` say depends on no clock, no
process and no socket: they are never tried again, nor is anything by hand.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

NEVER = "tests/simulation/"
AT_MOST = 5
"""Tests of a run that may need it. More of them have a cause in common, and the run fails."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CI"):
        for item in items:
            if not item.nodeid.startswith(NEVER):
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What failed at the first try and passed at the second is told whole: it has a cause."""
    tried_again = terminalreporter.stats.get("rerun", [])
    for report in tried_again:
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
    if len(tried_again) > AT_MOST:
        terminalreporter.write_line(f"{len(tried_again)} tests were tried twice, {AT_MOST} may be")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and len(reporter.stats.get("rerun", [])) > AT_MOST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
