"""From a trained checkpoint to one that reads further: another node in its description, and the same weights.

A conversion puts another encoding into that node, and migrates or adds the encoding's weights; no other is touched.

An extension is composed from what was trained, never from an earlier extension: the factor is the target over the
length of first training, and what replaces what stands in the checkpoint. So a second extension is the one that would
have been made at once, and no scaling is applied twice.
"""

from zoo.extend.rewrite import Plan, plan

__all__ = ["Plan", "plan"]
