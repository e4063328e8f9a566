"""Folders of Hugging Face made by hand, without transformers: a config, random weights, a tokenizer."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from zoo.cli import main
from zoo.hub import families
from zoo.hub.config import Config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "eos_token_id": 256,
}


def tensors(config: dict) -> dict[str, torch.Tensor]:
    """Random weights of the shapes that a config asks for."""
    generator = torch.Generator().manual_seed(0)
    parts = families.network(Config(Path("config.json"), config)).layout.parts.values()
    shapes = {part.name: part.shape for each in parts for part in each}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def tokenizer(extra: int = 0) -> str:
    """A tokenizer.json of bytes with an end, and some more tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    found = Tokenizer(models.BPE(vocabulary, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<|endoftext|>", *(f"<|extra {number}|>" for number in range(extra))])
    return found.to_str()


def write(path: Path, config: dict, weights: dict[str, torch.Tensor] | None = None, prefix: str = "") -> Path:
    """A folder with one file of weights."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    weights = tensors(config) if weights is None else weights
    save_file({prefix + name: tensor for name, tensor in weights.items()}, path / "model.safetensors")
    (path / "tokenizer.json").write_text(tokenizer())
    return path


def shard(path: Path) -> Path:
    """Divide the file of weights in two, with an index."""
    from safetensors.torch import load_file

    whole = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(whole)}
    for file in sorted(set(places.values())):
        save_file({name: tensor for name, tensor in whole.items() if places[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def zoo(capsys, *words: str) -> tuple[int, str]:
    """A command: its exit status, and what it said to the terminal."""
    capsys.readouterr()
    before, sys.argv = sys.argv, ["zoo", *map(str, words)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0), "".join(capsys.readouterr())
    finally:
        sys.argv = before
    return 0, "".join(capsys.readouterr())
