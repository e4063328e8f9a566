"""Arguments of a decoder with those that a description leaves out, so that two networks can be compared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from zoo.decoder import Decoder
from zoo.trunk import Trunk, widened

DEFAULTS = {
    name: each.default
    for kind in (Trunk, Decoder)
    for name, each in inspect.signature(kind).parameters.items()
    if each.default is not each.empty and name not in ("prefix", "causal")  # these are the trunk's, and a decoder's own
}


def complete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of those that are not said, and what some are derived from."""
    found = {**DEFAULTS, **{name: value for name, value in arguments.items() if value is not None}}
    found["kv_heads"] = found["kv_heads"] or found["heads"]
    found["head_dim"] = found["head_dim"] or found["dim"] // found["heads"]
    found["hidden"] = found["hidden"] or widened(found["dim"], found["feed_forward"])
    found["reach"] = found["reach"] or found["length"]
    found["position"] = found["position"] or {"class_path": "RoPE", "init_args": {}}
    return found
