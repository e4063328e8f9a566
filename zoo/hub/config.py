"""A config.json, of which every key is understood: asked for by a family, known to change no number, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import ZooError, listing
from zoo.limits import LONGEST, read_json

CONFIG = "config.json"
WORDS = """
    architectures model_type dtype torch_dtype transformers_version use_cache initializer_range layer_norm_type
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout attn_implementation
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id tokenizer_class task_specific_params problem_type id2label label2id finetuning_task prefix
    output_attentions output_hidden_states return_dict torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward summary_type summary_use_proj summary_activation summary_first_dropout
    summary_proj_to_labels gradient_checkpointing max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences return_dict_in_generate
    output_scores remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    model_max_length max_sequence_length is_llama_config n_ctx pretraining_tp attention_probs_dropout_prob
    hidden_dropout_prob n_special predict_special_tokens output_past unsloth_version unsloth_fixed
"""
HARMLESS = frozenset(WORDS.split())
"""Keys that change no number of a forward pass: training, generation, bookkeeping. So do those that begin with _.

`pretraining_tp` cuts products in slices and adds them up again, which transformers no longer does.
"""
PLAIN: Mapping[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "rope_interleaved": False,
    "use_mrope": False,
    "is_decoder": None,
    "auto_map": None,
}
"""Keys whose one value we have; another is refused. `is_decoder` is either here: a decoder is one anyway."""
MOST = dict.fromkeys(("num_hidden_layers", "n_layer"), 10_000)
"""Numbers of which no model has more."""
Kind = TypeVar("Kind", int, float, bool, str, list, dict)
NEEDED: Any = object()
"""The default of a key that must be there."""


class Config:
    """The keys of a config.json, which are taken one by one; `done` refuses what is left.

    Raises ZooError for a key that is missing, has the wrong type or is not understood.

    Args:
        path: The file or folder that messages speak of.
        keys: What it says.
    """

    def __init__(self, path: Path, keys: Mapping[str, Any]) -> None:
        self.path, self.keys = path, dict(keys)
        self.taken: set[str] = set()

    @classmethod
    def read(cls, folder: Path) -> Config:
        """That of a folder."""
        path = folder / CONFIG
        keys = read_json(path)
        if not isinstance(keys, dict):
            raise ZooError(f"{path} is damaged: it holds no keys and values.")
        return cls(path, keys)

    def take(self, name: str, kind: type[Kind], default: Any = NEEDED) -> Any:
        """The value of a key; one that is null is not there."""
        self.taken.add(name)
        value = self.keys.get(name)
        if value is None:
            if default is NEEDED:
                raise ZooError(f"{self.path} does not say {name}, without which there is no model.")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ZooError(f"{self.path} says {name}: {value!r}, and that should be of type {kind.__name__}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.strange(name, "that is no number to compute with")
        return value

    def count(self, name: str, default: Any = NEEDED) -> Any:
        """A number of things, 1 at least."""
        value = self.take(name, int, default)
        if value is not None and not 1 <= value <= MOST.get(name, LONGEST):
            raise self.strange(name, f"there should be 1 at least and {MOST.get(name, LONGEST)} at most")
        return value

    def only(self, name: str, *values: Any) -> Any:
        """A key that has one of some values or is not there; the value, None where it is not."""
        self.taken.add(name)
        value = self.keys.get(name)
        if value is not None and value not in values:
            raise self.strange(name, f"only {listing([repr(each) for each in values])} is known here")
        return value

    def strange(self, name: str, reason: str) -> ZooError:
        """What is said of a value that we do not have."""
        return ZooError(f"{self.path} says {name}: {json.dumps(self.keys.get(name))[:120]}; {reason}.")

    def done(self) -> None:
        """Refuse keys that nobody took and that may change numbers."""
        if self.keys.get("auto_map"):
            raise ZooError(
                f"{self.path} belongs to a model that brings its own code (auto_map), which zoo does not run. "
                "If it is one of a known family, remove that key."
            )
        if self.keys.get("quantization_config"):
            raise ZooError(f"{self.path} says quantization_config: weights that are quantized are read from GGUF only.")
        for name, value in PLAIN.items():
            if value is not None and name not in self.taken and self.keys.get(name, value) not in (value, None):
                raise self.strange(name, f"only {value!r} is known here")
        left = unknown(self.keys, self.taken)
        if left:
            raise ZooError(
                f"{self.path} has {listing(left)}, which zoo does not know and which may change what the model "
                "computes. If it does not, remove it from the file."
            )


def unknown(keys: Mapping[str, Any], taken: Iterable[str]) -> list[str]:
    """Keys that nobody took and that are not known to be harmless; one that says null says nothing."""
    known = {*taken, *HARMLESS, *PLAIN}
    left = [name for name, value in keys.items() if name not in known and value is not None]
    return sorted(name for name in left if not name.startswith(("_", "transformers.js")))
