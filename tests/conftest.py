"""Tests of a whole graph of processes are tried again: other work may starve one of them past its time limits."""

from typing import Any

import pytest
from _pytest.runner import runtestprotocol

TRIES = 3


def pytest_runtest_protocol(item: Any, nextitem: Any) -> bool | None:
    if "graph" not in getattr(item, "fixturenames", ()):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in reversed(range(TRIES)):
        reports: list[pytest.TestReport] = runtestprotocol(item, nextitem=nextitem, log=False)
        if not left or not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
