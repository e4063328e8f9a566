"""Perplexity of one long text: zoo's reader beside a plain loop over transformers' Llama with chunked loss.

    python tests/benchmarks/evaluation.py [--lengths 2048 8192] [--threads 2]     (needs pip install 'positionzoo[hf]')

The same shape (8 layers, 512 wide, 8 heads, vocabulary 8192), float32, no gradient, batch 1. transformers: the model
without its head on the whole text (SDPA, no cache), then head and cross-entropy by chunks of 1024 tokens. zoo:
`Reader.losses`. Each cell is a fresh process: peak resident memory less what it held with the model after a warm-up
(Linux tells it), and the median time of some rounds. First the losses of the two are compared, on equal weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DIM, LAYERS, HEADS, HIDDEN, VOCABULARY = 512, 8, 8, 1408, 8192
CHUNK = 1024


def llama() -> Any:
    """transformers' model, random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=65536,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def plain() -> Callable[[Any], Any]:
    """Losses of a text by transformers."""
    import torch
    from torch.nn import functional

    model = llama()

    @torch.inference_mode()
    def losses(tokens: Any) -> Any:
        hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state
        targets = tokens[0, 1:].split(CHUNK)
        parts = zip(hidden[0].split(CHUNK), targets, strict=True)
        return torch.cat([functional.cross_entropy(model.lm_head(h).float(), t, reduction="none") for h, t in parts])

    return losses


def ours(weights: Any = None) -> Callable[[Any], Any]:
    """Losses of a text by zoo, with transformers' weights where they are given."""
    import torch

    from zoo.data.tokenizer import Tokenizer
    from zoo.decoder import Decoder
    from zoo.evaluate.reader import Reader

    torch.manual_seed(0)
    model = Decoder(
        vocabulary=VOCABULARY, length=8192, dim=DIM, layers=LAYERS, heads=HEADS, hidden=HIDDEN, eps=1e-6
    ).eval()
    if weights is not None:
        with torch.no_grad():
            model.embedding.weight.copy_(weights.model.embed_tokens.weight)
            for block, layer in zip(model.trunk.blocks, weights.model.layers, strict=True):
                a, m = layer.self_attn, layer.mlp
                block.attention.qkv.weight.copy_(torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)))
                block.attention.out.weight.copy_(a.o_proj.weight)
                block.feed_forward.up.weight.copy_(torch.cat((m.gate_proj.weight, m.up_proj.weight)))
                block.feed_forward.down.weight.copy_(m.down_proj.weight)
    about = {"tokenizer": Tokenizer("bytes").describe()}
    reader = Reader(SimpleNamespace(network=lambda: model, about=about, path=Path("bench")), "bench")  # type: ignore[arg-type]
    return lambda tokens: reader.losses(tokens)[0]


def resident(most: bool) -> float:
    """Resident memory of this process in MiB: now, or the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    word = "VmHWM" if most else "VmRSS"
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(word))


def measure(name: str, length: int, rounds: int) -> None:
    """Print one cell as JSON; runs in a process of its own."""
    import torch

    run = {"transformers": plain, "zoo": ours}[name]()
    tokens = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))
    run(tokens[:, :64])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and initialisation
    before, times = resident(False), []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run(tokens)
        times.append(time.perf_counter() - begin)
    print(json.dumps({"mib": resident(True) - before, "seconds": statistics.median(times[1:])}))


def same() -> float:
    """Largest difference of the losses of a text, on equal weights."""
    import torch

    tokens = torch.randint(VOCABULARY, (1, 2500), generator=torch.Generator().manual_seed(2))
    return float((ours(llama())(tokens) - plain()(tokens)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        measure(options.cell[0], int(options.cell[1]), options.rounds)
        return
    print(
        f"perplexity of one text, CPU, float32, {options.threads} threads, load {os.getloadavg()[0]:.1f} at the start"
    )
    print(f"largest difference of two losses: {same():.1e} nats")
    print(f"{'length':>7} {'':13} {'peak MiB':>9} {'ratio':>7} {'tokens/s':>9} {'ratio':>7}")
    for length in options.lengths:
        found: dict[str, dict[str, float]] = {}
        for name in ("transformers", "zoo"):
            words = [sys.executable, __file__, "--cell", name, str(length), "--rounds", str(options.rounds)]
            env = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            base, this = found["transformers"], found[name]
            rate = length / this["seconds"]
            memory, speed = this["mib"] / base["mib"], base["seconds"] / this["seconds"]
            print(f"{length:7} {name:13} {this['mib']:9.0f} {memory:6.2f}x {rate:9.0f} {speed:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
