"""The gate: a folder is read back, by ourselves and by transformers where it is installed, before it gets its name."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo import checkpoints
from zoo.decoder import Decoder
from zoo.errors import ZooError

WAVES, LOGITS = 1e-6, 1e-4
"""Relative difference of frequencies, and of logits relative to the largest, that rounding may make."""
ROUNDED = 0.05
"""Of logits where matrices were rounded to 16 bits."""
TOKENS = 32


def pass_through(folder: Path, network: Decoder, *, logits: bool = True, code: bool = False) -> list[str]:
    """What was compared and found the same of a folder, in clauses.

    Raises ZooError, with what differs, where something does.

    Args:
        folder: What was written.
        network: What it was written from.
        logits: Compare them too, for which both models are in memory at once.
        code: transformers reads it by code of ours.
    """
    return [*ours(folder, network, logits=logits), *theirs(folder, network, logits=logits, code=code)]


def ours(path: Path, network: Decoder, *, logits: bool = True, close: float = LOGITS) -> list[str]:
    """What was compared with what we read."""
    again = cast(Decoder, checkpoints.read(path).network())
    found = [compared("zoo", waves(network, network.reach), waves(again, network.reach))]
    return [*found, alike("zoo", network, again, close)] if logits else found


def theirs(folder: Path, network: Decoder, *, logits: bool = True, code: bool = False) -> list[str]:
    """What was compared with what transformers reads."""
    if find_spec("transformers") is None:
        return ["transformers is not installed here, and was not asked"]
    import transformers

    transformers.utils.logging.disable_progress_bar()
    found, told = [], f"transformers {transformers.__version__}"
    if code:
        if not logits:
            return [f"{told} reads it by zoo's own code, and was not asked"]
        read = partial(logits_by_code, folder)
        return [alike(f"{told} with zoo's own code", network.float(), read, LOGITS)]
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    if turned := rotary(config, empty):
        found.append(compared(told, near(waves(network, network.reach), turned), turned))
    if logits:
        kind = "dtype" if hasattr(config, "rope_parameters") else "torch_dtype"
        words = {kind: torch.float32, "attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **words).eval()
        found.append(alike(told, network.float(), lambda tokens: model(tokens).logits, LOGITS))
    return found


CHILD = """
import sys
import torch
import transformers
from safetensors.torch import load_file, save_file
transformers.utils.logging.disable_progress_bar()
folder, asked, answer = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    save_file({"logits": model(load_file(asked)["tokens"]).logits.contiguous()}, answer)
"""
"""Reads a folder by the code that it brings, which `export` has just written, in a process of its own."""


def logits_by_code(folder: Path, tokens: Tensor) -> Tensor:
    """The logits that transformers gives for tokens, by the code of a folder that zoo has just written.

    Raises ZooError where transformers cannot read the folder.
    """
    with tempfile.TemporaryDirectory() as place:
        asked, answer = Path(place) / "asked.safetensors", Path(place) / "answer.safetensors"
        save_file({"tokens": tokens}, asked)
        words = [sys.executable, "-c", CHILD, str(folder), str(asked), str(answer)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise ZooError(f"Not published: transformers does not read the folder: {reason[:300]}")
        return load_file(answer)["logits"]


def waves(network: Decoder, reach: int) -> dict[str, tuple[Tensor, float]]:
    """Frequencies and attention factor of a network for short and for long requests; nothing where none turn."""
    found: dict[str, tuple[Tensor, float]] = {}
    if network.trunk.position.content:  # which says nothing of positions alone
        return found
    for name, extent in (("short", 1), ("long", reach)):
        at = torch.zeros(1, 1)
        rotation = network.trunk.position(at, at, extent).rotation
        if rotation is not None:
            found[name] = rotation.frequencies[0].double(), float(rotation.factor)
    return found


def near(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Ours, as far as theirs say the same."""
    return {name: value for name, value in ours.items() if name in theirs}


def rotary(config: Any, model: Any) -> dict[str, tuple[Tensor, float]]:
    """What transformers computes for short requests from a config: its module knows the long ones when they come."""
    place = next((module for module in model.modules() if hasattr(module, "attention_scaling")), None)
    if place is None:
        return {}
    made = type(place)(config)
    return {"short": (made.inv_freq.double(), float(made.attention_scaling))}


def compared(who: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Compare waves; the clause that says so."""
    if ours.keys() != theirs.keys():
        raise ZooError(f"Not published: {who} reads the folder with other positions than the checkpoint has.")
    for name, (frequencies, factor) in ours.items():
        other, gain = theirs[name]
        apart = frequencies.shape != other.shape or not torch.allclose(frequencies, other, rtol=WAVES, atol=0)
        if apart or not math.isclose(factor, gain, rel_tol=WAVES):
            wave = "their number"
            if frequencies.shape == other.shape:
                wave = f"wave {int((frequencies / other - 1).abs().argmax())}"
            what = f"{wave} of {name} requests" if apart else f"the attention factor, {gain:g} for {factor:g}"
            raise ZooError(f"Not published: {who} reads the folder with other frequencies: {what}.")
    return f"{who}: frequencies and attention factor" if ours else f"{who}: no waves, as here"


@torch.no_grad()
def alike(who: str, network: Decoder, other: Callable[[Tensor], Tensor], close: float) -> str:
    """Compare logits; the clause that says so."""
    tokens = torch.randint(network.embedding.num_embeddings, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    own = network(tokens)
    apart, size = float((own - other(tokens)).abs().max()), float(own.abs().max())
    if not apart <= close * size:
        raise ZooError(
            f"Not published: {who} reads the folder and gives other logits, up to {apart:.2g} apart where they are up "
            f"to {size:.2g}."
        )
    return f"{who}: logits of {TOKENS} tokens, {apart:.1e} apart at most"
