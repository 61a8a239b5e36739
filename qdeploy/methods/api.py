"""All that a method of one's own imports, from one place: see docs/adding-a-method.md.

These names stay what they are; modules beside this one may change with any version.
"""

from qdeploy import levels
from qdeploy.distributed import Group
from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.grid import Grid, fit, search
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.scaling import ChannelProblem, scaling
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import Scheme

__all__ = [
    "ChannelProblem",
    "Grid",
    "Group",
    "Hessian",
    "LinearProblem",
    "QuantizedLinear",
    "Scheme",
    "Solution",
    "fit",
    "levels",
    "portable_scales",
    "relative_error",
    "rounder",
    "scaling",
    "search",
]
