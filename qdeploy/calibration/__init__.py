"""Calibration: text to packed token batches."""

from qdeploy.calibration.mixture import CalibrationSet, load

__all__ = ["CalibrationSet", "load"]
