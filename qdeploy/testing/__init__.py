"""What tests of methods build on: made-up layers, and checks of what every method must hold to."""

from qdeploy.testing.problems import channel_problem, layer_inputs, linear_problem, rounding_error
from qdeploy.testing.rounders import check_rounder
from qdeploy.testing.transforms import check_transform

__all__ = [
    "channel_problem",
    "check_rounder",
    "check_transform",
    "layer_inputs",
    "linear_problem",
    "rounding_error",
]
