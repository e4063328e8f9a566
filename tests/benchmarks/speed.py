"""Speed of the decoder, training and greedy generation, against transformers' Llama of the same shape.

    python tests/benchmarks/speed.py [--rounds 7] [--threads 2] [--quick]

13.8M weights: 6 layers, 384 wide, 6 heads, SwiGLU of 1024, vocabulary 8192, tied; float32, CPU. Training is forward,
loss over all tokens, backward and a fused AdamW step on 8 x 256 tokens. Generation is greedy with a KV cache, batch 1,
prompt 16, 128 new tokens; "matrices alone" are our matrix-vector products and nothing around them.
Contestants take turns (A B C A B C ...), so that a busy moment hits them all alike; a figure is the median of its
rounds. Ratios hold within a run, not across runs, and mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import Tensor, nn

from zoo import plugins
from zoo.decoder import Decoder
from zoo.generate import generate
from zoo.loss import cross_entropy

DIM, LAYERS, HEADS, HIDDEN, LENGTH, BATCH, VOCABULARY = 384, 6, 6, 1024, 256, 8, 8192
PROMPT, NEW = 16, 128
THEIRS, OURS, BARE = "transformers", ("RoPE", "ALiBi", "FoPE", "NoPE"), "matrices alone"

Table = dict[str, Callable[[], int]]
"""Contestants by name: each call does one piece of work and returns the number of its tokens."""


def llama() -> nn.Module:
    """transformers' Llama of that shape."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def ours(position: str) -> Decoder:
    """Our decoder of that shape."""
    return Decoder(
        vocabulary=VOCABULARY,
        length=LENGTH,
        dim=DIM,
        layers=LAYERS,
        heads=HEADS,
        hidden=HIDDEN,
        position=plugins.load("zoo.positions", position),
    )


def trainer(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], int]:
    """One training step, on the same tokens every time."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> int:
        loss(inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return BATCH * LENGTH

    return step


def training() -> Table:
    """Who trains."""

    def mine(model: Decoder, inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model.hidden(inputs), targets, model.head, 8192)

    model = llama().train()
    table: Table = {THEIRS: trainer(model, lambda x, y: model(input_ids=x, labels=x, shift_labels=y).loss)}
    for name in OURS:
        decoder = ours(name).train()
        table[name] = trainer(decoder, partial(mine, decoder))
    return table


def generation() -> Table:
    """Who generates."""
    prompt = torch.randint(VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    model = llama().eval()

    def theirs() -> int:
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
        return ids.shape[1] - PROMPT

    table: Table = {THEIRS: theirs}
    for name in OURS:
        decoder = ours(name).eval()
        table[name] = partial(lambda m: generate(m, prompt, NEW, temperature=0).shape[1], decoder)
    matrices = [module for module in ours("NoPE").modules() if isinstance(module, nn.Linear)]
    vectors = {width: torch.randn(1, 1, width) for width in {m.in_features for m in matrices}}

    def bare() -> int:
        for _ in range(NEW):
            for matrix in matrices:
                matrix(vectors[matrix.in_features])
        return NEW

    return {**table, BARE: bare}


def race(table: Table, rounds: int) -> dict[str, float]:
    """Tokens a second of each contestant: one warm-up, then all in turn, and the median."""
    for work in table.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, work in table.items():
            begin = time.perf_counter()
            tokens = work()
            found[name].append(tokens / (time.perf_counter() - begin))
    return {name: statistics.median(each) for name, each in found.items()}


def show(title: str, speeds: dict[str, float]) -> None:
    print(f"\n{title:24} {'tokens/s':>9} {f'x {THEIRS}':>15} {'x RoPE':>8}")
    for name, speed in speeds.items():
        print(f"{name:24} {speed:9.0f} {speed / speeds[THEIRS]:15.2f} {speed / speeds['RoPE']:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    rounds = 2 if options.quick else options.rounds
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, float32; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; medians of {rounds} rounds; load {os.getloadavg()[0]:.1f} at start"
    )
    show("training", race(training(), rounds))
    with torch.inference_mode():
        show("greedy generation", race(generation(), rounds))


if __name__ == "__main__":
    main()
