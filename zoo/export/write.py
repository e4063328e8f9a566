"""Making the folder: config, weights, tokenizer, card; each weight by a link where a hub folder holds it already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zoo
from zoo import checkpoints
from zoo.checkpoints import folder, tensors
from zoo.checkpoints.stored import Listing
from zoo.data.tokenizer import Tokenizer
from zoo.errors import listing
from zoo.export import engines, remote
from zoo.export.config import Exported, export, language
from zoo.export.rope import Unheard
from zoo.export.tokenizer import portable
from zoo.extend.write import clone
from zoo.hub import files, tokenizers
from zoo.hub import folder as hub
from zoo.hub.config import CONFIG, Config

SETTINGS, TEXT, CARD, GENERATION = "tokenizer_config.json", "tokenizer.json", "README.md", "generation_config.json"
CODE_KEYS = frozenset({"auto_map", "custom_generate", "trust_remote_code", "custom_pipelines", "name_or_path"})
"""Keys of configs by which transformers imports code or fetches from a hub."""


def origin(path: Path) -> Path | None:
    """The folder of Hugging Face's that a checkpoint is, or was made of; None where there is none."""
    form = checkpoints.form(path)
    if form is hub:
        return path
    return path / folder.HUB if form is folder and (path / folder.HUB).is_dir() else None


def plan(found: Listing, *, code: bool = False) -> Exported:
    """How a checkpoint is said; raises ZooError where it cannot be.

    Args:
        found: The checkpoint.
        code: Bring zoo's own code, even where a family of theirs is the same network.
    """
    source = origin(found.path)
    keys = plain_keys(Config.read(source).keys) if source is not None else None
    reason = "It was asked to bring zoo's own code."
    if not code:
        try:
            return export(found.about, keys)
        except Unheard as error:
            reason = str(error)
    language(found.about)
    return Exported(remote.keys(found.about), None, (reason,), code=True)


def write(found: Listing, said: Exported, beside: Path, held: Path | None = None) -> str:
    """Write all but the card, and say how the weights came there.

    Args:
        found: The checkpoint.
        said: Its config.
        beside: The folder, which is made here.
        held: Another that was written of the same weights.
    """
    beside.mkdir(parents=True)
    how, source = "conversion", origin(found.path)
    if held is not None:
        how = listing(sorted({clone(path, beside / path.name) for path in files.weight_files(held)}))
    elif said.layout is None:
        about = {name: value for name, value in found.about.items() if name != "tokenizer"}
        folder.write(beside, about, found.weights, "")
    elif source is not None and same(found, source):
        ways = {clone(path, beside / path.name) for path in files.weight_files(source)}
        how = listing(sorted(ways))
    else:
        tensors.pack(beside / files.KINDS[0], said.layout.theirs(found.weights))
    reach = int(found.about["network"]["init_args"].get("reach") or found.about["network"]["init_args"]["length"])
    kept: dict[str, Any] = {}
    if source is not None:
        companions = files.companion_files(source)
        for path in companions:
            if path.name == GENERATION:
                (beside / path.name).write_text(dumped(plain_keys(tokenizers.keys(path))), encoding="utf-8")
            elif path.name not in (CONFIG, CARD, SETTINGS):
                shutil.copyfile(path, beside / path.name)
        files.tell_left(source, [*companions, *files.weight_files(source)])
        kept = plain_keys(tokenizers.keys(source / SETTINGS))
    keys = dict(said.keys)
    if (told := found.about.get("tokenizer")) is not None:
        tokenizer = Tokenizer.restore(told)
        text, end = portable(tokenizer)
        if not (beside / TEXT).exists():
            (beside / TEXT).write_text(text, encoding="utf-8")
        if tokenizer.start is not None:
            kept = {"bos_token": tokenizer.decode([tokenizer.start]), **kept}
            keys.setdefault("bos_token_id", tokenizer.start)
        kept = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, **kept}
        keys.setdefault("eos_token_id", tokenizer.end)
    if kept:  # of a tokenizer that only transformers reads too
        (beside / SETTINGS).write_text(dumped({**kept, "model_max_length": reach}), encoding="utf-8")
    if source is None:  # some families have numbers of their own otherwise, and those of a hub folder may be meant
        keys = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | keys
    (beside / CONFIG).write_text(dumped(keys), encoding="utf-8")
    if said.code:
        for name, content in remote.FILES.items():
            (beside / name).write_text(content, encoding="utf-8")
    return how


def plain_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a foreign file by which transformers neither imports nor fetches nor opens anything."""
    return {name: value for name, value in keys.items() if not chooses_code(name)}


def chooses_code(name: str) -> bool:
    """Whether transformers may take the value of a key for code to import, or for a file or a repository to open."""
    return name.startswith("_") or name.endswith(("_file", "_implementation")) or name in CODE_KEYS


def same(found: Listing, source: Path) -> bool:
    """Whether a checkpoint has just the weights of a hub folder."""
    held = files.weights(source)
    return held.keys() == found.weights.keys() and all(found.weights[name] == held[name] for name in held)


def dumped(keys: Mapping[str, Any]) -> str:
    """JSON as people read it."""
    return json.dumps(keys, indent=2, ensure_ascii=False) + "\n"


def card(
    found: Listing, said: Exported, command: str, how: str, gate: list[str], name: str, only: str | None = None
) -> str:
    """The README: what it is, what was compared, how it is used."""
    arguments = found.about["network"]["init_args"]
    length, reach = arguments["length"], arguments.get("reach") or arguments["length"]
    node = arguments.get("position") or {"class_path": "RoPE"}
    extension = (node.get("init_args") or {}).get("extension")
    what = node["class_path"] + (f" with {extension['class_path']}" if extension else "")
    lines = [
        f"# {name}",
        f"{said.keys['architectures'][0]}, {what}, trained on {length} tokens, reads {reach}; written by zoo "
        f"{zoo.__version__} (weights: {how}):",
        f"```bash\n{command}\n```",
        "Read back before it was published, and the same:\n\n" + "\n".join(f"- {line}" for line in gate),
    ]
    if said.notes:
        lines.append("To know:\n\n" + "\n".join(f"- {note}" for note in said.notes))
    lines.append("## Use\n\n" + "\n\n".join(engines.uses(said, name, reach, only)))
    return "\n\n".join(lines) + "\n"
