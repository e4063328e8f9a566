"""Rotary encodings: RoPE, and what changes its waves or what they turn.

RoPEMixed learns its directions on a grid, FoPE replaces waves by series, pRoPE stills the slow ones, xPos lets products
shrink with distance, PoPE turns the sizes of channels.
"""

from zoo_positions.rope.fope import FoPE
from zoo_positions.rope.mixed import RoPEMixed
from zoo_positions.rope.pope import PoPE
from zoo_positions.rope.prope import pRoPE
from zoo_positions.rope.rope import RoPE
from zoo_positions.rope.xpos import xPos

__all__ = ["FoPE", "PoPE", "RoPE", "RoPEMixed", "pRoPE", "xPos"]
