"""Plots, one a module; each takes records and returns panels of SVG markup."""
