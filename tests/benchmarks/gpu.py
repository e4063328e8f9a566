"""Training speed of a 125M decoder on a CUDA device, bf16, by encoding, with and without torch.compile.

    python tests/benchmarks/gpu.py [--lengths 1024 8192] [--rounds 10] [--encodings RoPE FoPE ALiBi FIRE]
    python tests/benchmarks/gpu.py --device cpu --tiny          (does it run? its figures mean nothing)

12 layers, 768 wide, 12 heads, SwiGLU of 2048, vocabulary 50304, tied. A step is what `zoo fit` does: forward under
autocast, loss over all tokens, backward, clipping to 1, a fused AdamW step; 32768 tokens, as many rows as the length
allows. "plain" is the same model as a page of PyTorch (nanochat's way: functions, RoPE, flash attention through SDPA,
whole logits), written below. Contestants take turns, so that a busy moment hits them all alike; a figure is the median
of its rounds. MFU counts 6 operations per weight that multiplies and 12 x layers x width x length for attention (PaLM,
arXiv:2204.02311, appendix B), causal or not, over the data sheet's peak.

Goals: at least 50 % MFU with RoPE at 1024 tokens, compiled, and FoPE within 10 % of it. The first turn of a compiled
contestant compiles it, which takes a minute; one that cannot run says why, and the others go on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo import plugins
from zoo.callbacks.throughput import peak
from zoo.decoder import Decoder
from zoo.loss import cross_entropy

SHAPE = {"dim": 768, "layers": 12, "heads": 12, "hidden": 2048, "vocabulary": 50304, "tokens": 32768}
TINY = {"dim": 64, "layers": 2, "heads": 2, "hidden": 128, "vocabulary": 256, "tokens": 256}
PLAIN, CHUNK = "plain", 8192


class Plain(nn.Module):
    """The same model with nothing to choose."""

    def __init__(self, length: int, shape: dict[str, int]) -> None:
        super().__init__()
        dim, hidden, layers, self.heads = shape["dim"], shape["hidden"], shape["layers"], shape["heads"]
        self.embedding = nn.Embedding(shape["vocabulary"], dim)
        sizes = {"qkv": (dim, 3 * dim), "out": (dim, dim), "up": (dim, 2 * hidden), "down": (hidden, dim)}
        make = {name: partial(nn.Linear, *size, bias=False) for name, size in sizes.items()}
        make |= {"norm1": partial(nn.RMSNorm, dim, eps=1e-6), "norm2": partial(nn.RMSNorm, dim, eps=1e-6)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: build() for name, build in make.items()}) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        pairs = dim // self.heads // 2
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(pairs) / pairs)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.float().chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1).to(x.dtype)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            parts = block["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k, v = parts
            y = functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
            x = x + block["out"](y.transpose(1, 2).flatten(-2))
            gate, value = block["up"](block["norm2"](x)).chunk(2, -1)
            x = x + block["down"](functional.silu(gate) * value)
        logits = functional.linear(self.norm(x), self.embedding.weight).float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def contestant(name: str, compiled: bool, length: int, shape: dict[str, int], device: str) -> Callable[[], None]:
    """One training step of an encoding's decoder, or of the plain model."""
    torch.manual_seed(0)
    loss: Callable[[Tensor, Tensor], Tensor]
    if name == PLAIN:
        model: nn.Module = Plain(length, shape).to(device)
        loss = torch.compile(model) if compiled else model
    else:
        rest = {key: value for key, value in shape.items() if key != "tokens"}
        decoder = Decoder(length=length, position=plugins.load("zoo.positions", name), **rest).to(device)
        if compiled:
            decoder.trunk.compile()

        def ours(inputs: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(decoder.hidden(inputs), targets, decoder.head, CHUNK)

        model, loss = decoder, ours
    wanted = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-4, fused=True)
    tokens = torch.randint(shape["vocabulary"], (max(1, shape["tokens"] // length), length + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            found = loss(inputs, targets)
        found.backward()
        nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def race(table: dict[str, Callable[[], None]], rounds: int) -> dict[str, float | str]:
    """Seconds of a step of each contestant, or why it has none: three steps of warm-up, then all in turn."""
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {name: [] for name in table}
    for turn in range(rounds + 3):
        for name, step in table.items():
            if name in failed:
                continue
            begin = time.perf_counter()
            try:
                step()
            except Exception as error:  # whatever it is, the others go on
                failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}"
            if turn >= 3:
                times[name].append(time.perf_counter() - begin)
    return {name: failed.get(name) or statistics.median(each) for name, each in times.items()}


def flops(shape: dict[str, int], length: int) -> int:
    """Of forward and backward, for one token."""
    dim, hidden, layers = shape["dim"], shape["hidden"], shape["layers"]
    matrices = layers * (4 * dim * dim + 3 * dim * hidden) + dim * shape["vocabulary"]
    return 6 * matrices + 12 * layers * dim * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--encodings", nargs="+", default=["RoPE", "FoPE", "ALiBi", "FIRE"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model that a test can train")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    plugins.load_all()
    shape = TINY if options.tiny else SHAPE
    device = torch.device(options.device)
    best = peak(device, torch.bfloat16)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {best / 1e12:.3g} TFLOP/s at best; {options.rounds} rounds")
    for length in options.lengths or ([64, 128] if options.tiny else [1024, 8192]):
        torch._dynamo.reset()
        table = {}
        for name in (PLAIN, *options.encodings):
            for compiled in (False,) if options.eager else (False, True):
                table[name + " compiled" * compiled] = contestant(name, compiled, length, shape, options.device)
        found, tokens = race(table, options.rounds), max(1, shape["tokens"] // length) * length
        print(f"\n{f'length {length}':20} {'tokens/s':>10} {'MFU':>7} {'x plain':>8} {'x RoPE':>8}")
        for name, seconds in found.items():
            if isinstance(seconds, str):
                print(f"{name:20} {seconds}")
                continue
            ending = " compiled" if name.endswith("compiled") else ""
            others = [found.get(other + ending) for other in (PLAIN, "RoPE")]
            ratios = [f"{other / seconds:8.2f}" if isinstance(other, float) else " " * 8 for other in others]
            speed = tokens / seconds
            mfu = f"{speed * flops(shape, length) / best:7.1%}" if best else " " * 7
            print(f"{name:20} {speed:10.0f} {mfu} {' '.join(ratios)}", flush=True)
        table.clear()


if __name__ == "__main__":
    main()
