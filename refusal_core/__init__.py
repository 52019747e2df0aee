"""Refusal directions in chat models: extract once, fit and test at every layer, then look."""

__version__ = "0.2.0"
