"""Units of measurement as numbers."""

from typing import Final

GIB: Final = 2**30
"""Bytes in a gibibyte."""
