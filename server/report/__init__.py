"""The report of a run, from its run folder."""

from server.report.report import write_report

__all__ = ["write_report"]
