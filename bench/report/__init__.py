"""The report: one self-contained HTML file, a pure function of run folders."""

from qdeploy.bench.report.page import write_report

__all__ = ["write_report"]
