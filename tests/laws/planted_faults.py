"""Faults that are planted in simulated runs, of which an audit must find every one."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from laneway.inspection.report import AuditReport


def check_every_fault_is_found(
    fault: str, report_of: Callable[[Random], AuditReport | None], kind: str, num_faults: int
) -> None:
    """Check that audits find a fault in as many runs.

    Args:
        fault: What it is; if it is about a row, this is the only finding.
        report_of: Plants it in a random run, and returns the audit; None: it can't be planted in this run.
        kind: The kind of the finding.
        num_faults: Number of runs.
    """
    num_planted = 0
    for case in range(10**6):
        report = report_of(Random(case))
        if report is None:
            continue
        assert kind in {each.kind for each in report.findings}, (case, report)
        if "row" in fault:
            assert [each.num_rows for each in report.findings] == [1], (case, report)
        num_planted += 1
        if num_planted == num_faults:
            break
