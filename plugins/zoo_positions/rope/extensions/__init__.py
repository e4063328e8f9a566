"""Extensions of rotary encodings: each gives the waves new frequencies, and some an attention factor.

With d channels, base b, trained length L and factor s, wave t < d / 2 turns by w_t = b^(-2t / d) radians per position,
and r_t = L w_t / 2 pi times in training; an extension makes w'_t of w_t. What all of them share: a wave divided by s
turns no further over s L positions than it did in training, and fast waves, which turned often, need none of that. They
differ in which waves they hold for fast. ReRoPE, SelfExtend and DualChunk leave the waves alone and map positions.
"""

from zoo_positions.rope.extensions.abf import ABF
from zoo_positions.rope.extensions.byparts import ByParts
from zoo_positions.rope.extensions.dualchunk import DualChunk
from zoo_positions.rope.extensions.dynamic import DynamicNTK
from zoo_positions.rope.extensions.linear import Linear
from zoo_positions.rope.extensions.llama3 import Llama3
from zoo_positions.rope.extensions.longrope import LongRoPE
from zoo_positions.rope.extensions.ntk import NTK
from zoo_positions.rope.extensions.rerope import LeakyReRoPE, ReRoPE
from zoo_positions.rope.extensions.resonance import Resonance
from zoo_positions.rope.extensions.selfextend import SelfExtend
from zoo_positions.rope.extensions.yarn import YaRN

__all__ = [
    "ABF",
    "NTK",
    "ByParts",
    "DualChunk",
    "DynamicNTK",
    "LeakyReRoPE",
    "Linear",
    "Llama3",
    "LongRoPE",
    "ReRoPE",
    "Resonance",
    "SelfExtend",
    "YaRN",
]
