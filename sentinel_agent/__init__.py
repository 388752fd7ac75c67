"""Sentinel Agent: the black box of a Python proxy."""

__version__ = "0.1.0.dev0"
