"""transformers' face of a checkpoint of ours, which the folders that `remote` describes load.

Importing this imports transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import GENERATION_CONFIG_NAME

from zoo import checkpoints
from zoo.decoder import Decoder
from zoo.errors import ZooError, listing

WHERE = {"revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "subfolder"}
"""Arguments of `from_pretrained` that say where a folder comes from."""
IDLE = {"trust_remote_code", "code_revision", "adapter_kwargs", "use_safetensors", "low_cpu_mem_usage"}
"""Arguments that change no number here."""


class Model(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A language model of ours, which computes in float32 (under autocast, as everywhere in zoo) and keeps no cache.

    Every token that is generated reads the whole text anew, with the length so far as the length of the request, since
    transformers does not say how long the result will be. `zoo generate` knows, and keeps a cache.

    Args:
        config: Of the folder.
        network: What computes.
    """

    main_input_name = "input_ids"

    def __init__(self, config: PretrainedConfig, network: Decoder | None = None) -> None:
        if network is None:
            raise ZooError("A model of zoo's is read with its weights.   Try:  AutoModelForCausalLM.from_pretrained")
        super().__init__(config)
        self.network = network
        self.generation_config = GenerationConfig(
            use_cache=False, **{name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")}
        )

    @classmethod
    def from_pretrained(cls, name: Any, *inputs: Any, config: Any = None, **others: Any) -> Any:  # type: ignore[override]
        """The model of a folder or of a repository on the hub; raises ZooError for arguments that it does not serve."""
        path = Path(name)
        where = {key: others.pop(key) for key in list(others) if key in WHERE}
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            keep = {key: value for key, value in where.items() if key not in ("proxies", "subfolder")}
            path = Path(snapshot_download(str(name), **keep))
        path /= where.get("subfolder") or ""
        kinds = {others.pop("dtype", None), others.pop("torch_dtype", None)} - {None, "auto", "float32", torch.float32}
        device = others.pop("device_map", None)
        others = {key: value for key, value in others.items() if value is not None and key not in IDLE}
        others = {key: value for key, value in others.items() if not key.startswith("_")}
        if kinds:
            raise ZooError("zoo computes in float32.   Try:  torch.autocast('cuda', torch.bfloat16) around the call")
        if inputs or others or device in ("auto", "balanced", "sequential"):
            wrong = listing(others) if others else f"device_map={device!r}" if device else "more positional arguments"
            raise ZooError(f"A model of zoo's is read without {wrong}.   Try:  from_pretrained({str(name)!r})")
        network = cast(Decoder, checkpoints.read(path).network())
        found = cls(config if config is not None else cast(Any, cls).config_class.from_pretrained(path), network).eval()
        if (path / GENERATION_CONFIG_NAME).is_file():  # of the folder that this one was made of
            found.generation_config = GenerationConfig.from_pretrained(path, use_cache=False)
        return found if device is None else found.to(device[""] if isinstance(device, dict) else device)

    def save_pretrained(self, *args: Any, **others: Any) -> None:
        """Refused: what trains such a model and writes it is zoo."""
        raise ZooError(
            "A model of zoo's is trained and written by zoo.   Try:  zoo fit --model.weights FOLDER, then zoo export"
        )

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding of tokens."""
        return self.network.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        """The read-out."""
        return self.network.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits, and the mean loss of the tokens after the first where there are labels.

        Args:
            input_ids: [batch, tokens].
            attention_mask: [batch, tokens], 0 for padding at either end of a row.
            labels: [batch, tokens], -100 where nothing is scored.
            logits_to_keep: So many of the last tokens only (0: all), or the indices of some.
            num_items_in_batch: Scored tokens of all batches before a step: what the sum of losses is divided by, where
                transformers' Trainer adds several up.
            **others: What transformers says to all of its models; anything that would change a number is refused.
        """
        wrong = {"inputs_embeds", "position_ids", "output_attentions", "output_hidden_states"} & others.keys()
        if strange := sorted(key for key in wrong if others[key] is not None and others[key] is not False):
            raise ZooError(f"A model of zoo's takes tokens and a mask, and no {listing(strange)}.")
        padding, extent = left(attention_mask, input_ids)
        hidden = self.network.hidden(input_ids, padding=padding, extent=extent)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.network.head(hidden[:, kept] if labels is None else hidden)
        loss = None
        if labels is not None:
            how = "mean" if num_items_in_batch is None else "sum"
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction=how
            )
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **others: Any) -> Any:  # type: ignore[override]
        """The whole text, at each step."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}


def left(mask: Tensor | None, tokens: Tensor) -> tuple[Tensor | None, int]:
    """Tokens of padding before each row, and the length of the longest without them.

    Padding behind a row is seen by nothing before it.
    """
    if mask is None:
        return None, tokens.shape[1]
    if mask.shape != tokens.shape:
        raise ZooError(f"The mask of {list(tokens.shape)} tokens has that shape too, and got {list(mask.shape)}.")
    kept = mask.bool()
    before, after = (rows.long().cumsum(1).eq(0).sum(1) for rows in (kept, kept.flip(1)))
    count = kept.sum(1)
    if bool(((count + before + after != tokens.shape[1]) & (count > 0)).any()):
        raise ZooError("A mask hides tokens at the ends of a row only, and this one has a gap.")
    return before, max(int((tokens.shape[1] - before).max()), 1)
