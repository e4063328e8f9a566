"""Rotary encodings: RoPE, and FoPE, which replaces its waves by Fourier series."""

from zoo_positions.rope.fope import FoPE
from zoo_positions.rope.rope import RoPE

__all__ = ["FoPE", "RoPE"]
