"""Folders that transformers reads by zoo's own code, for what none of its families computes.

They hold two files of python, which transformers runs where it is told to (trust_remote_code), and which call the
installed package: an encoding may be anybody's plugin. Nothing of it is copied into the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zoo
from zoo.hub.arguments import complete
from zoo.hub.families import CODE, OWN

CONFIGURATION, MODELING = "configuration_zoo.py", "modeling_zoo.py"
KEYS: Mapping[str, Any] = {
    "model_type": OWN,
    "auto_map": CODE,
}
"""What a config.json says of them."""
WAY_OUT = "   Try:  --code, a folder that transformers reads by zoo's own code"
FILES = {
    CONFIGURATION: '''"""The configuration of a model that zoo wrote; it needs nothing but transformers."""

from transformers import PretrainedConfig


class ZooConfig(PretrainedConfig):
    """Keys as they stand in config.json."""

    model_type = "zoo"

    def __init__(self, rope_scaling=None, rope_parameters=None, **keys):
        super().__init__(**keys)
        self.rope_parameters = rope_parameters
        if not hasattr(PretrainedConfig, "rope_scaling"):  # another name of the same since transformers 5
            self.rope_scaling = rope_scaling
''',
    MODELING: f'''"""transformers' door to a model that zoo wrote: the code is that of the installed package."""

try:
    from zoo.export.modeling import Model
except ImportError as error:
    raise ImportError(
        "This model is computed by zoo, {zoo.__version__} or later.   Try:  pip install positionzoo"
    ) from error

from .configuration_zoo import ZooConfig


class ZooForCausalLM(Model):
    """A language model of zoo's."""

    config_class = ZooConfig
''',
}
"""Their content, by name."""


def keys(about: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a folder that zoo itself reads by its config.yaml: what other programs look for, no more."""
    arguments = complete(about["network"]["init_args"])
    return {
        **KEYS,
        "architectures": ["ZooForCausalLM"],
        "vocab_size": arguments["vocabulary"],
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["layers"],
        "num_attention_heads": arguments["heads"],
        "num_key_value_heads": arguments["kv_heads"] or arguments["heads"],
        "max_position_embeddings": arguments["reach"] or arguments["length"],
    }
