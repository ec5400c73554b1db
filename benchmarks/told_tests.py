"""A plugin of pytest (`-p benchmarks.told_tests`) that tells each test as soon as it ends.

On its own because every test process imports it before anything else.
"""

from __future__ import annotations

import os
from typing import Any


class Teller:
    """A line for each test, and its traceback if it failed."""

    def __init__(self, config: Any) -> None:
        self.plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            terminal = self.plugins.get_plugin("terminalreporter")
            terminal.write_line(f"[{report.outcome}] {report.nodeid} ({report.duration:.1f} s)")
            if report.failed:
                terminal.write_line(report.longreprtext)
            terminal.flush()


def pytest_configure(config: Any) -> None:
    """A worker of pytest-xdist stays silent: the process that feeds it hears of its tests, too."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Teller(config))
