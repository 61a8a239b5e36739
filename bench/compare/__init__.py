"""Run folders of a baseline and of candidates, compared: figures, verdicts, and a gate for a pipeline."""

from qdeploy.bench.compare.comparison import compare_folders
from qdeploy.bench.compare.conditions import parse_condition
from qdeploy.bench.compare.gate import Outcome, decide

__all__ = ["Outcome", "compare_folders", "decide", "parse_condition"]
