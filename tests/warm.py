"""Importing this compiles the kernels, for processes that are then forked."""

from qdeploy.methods.kernels import compile_all

compile_all()
