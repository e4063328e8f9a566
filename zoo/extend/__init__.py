"""From a trained checkpoint to one that reads further: another node in its description, the same weights.

An extension is composed from what was trained, never from an earlier extension: the factor is the target over the
length of first training, and what replaces what stands in the checkpoint. So a second extension is the one that would
have been made at once, and no scaling is applied twice.
"""

from zoo.extend.rewrite import Plan, plan

__all__ = ["Plan", "plan"]
