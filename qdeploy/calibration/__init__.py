"""Calibration: text to packed token batches."""

from qdeploy.calibration.builtin import builtin_text
from qdeploy.calibration.packing import CalibrationSet, load

__all__ = ["CalibrationSet", "builtin_text", "load"]
