"""Damaged checkpoints of all five formats, made of small ones that are whole."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "hub"),
    str(Path(__file__).parent.parent / "checkpoints"),
]
import conftest as zero_directories  # noqa: E402
import folders  # noqa: E402
from mutations import change, damage, nested, value  # noqa: E402
from server import Case  # noqa: E402

RECIPE = {
    "model": {
        "class_path": "LanguageModel",
        "init_args": {"length": 16, "dim": 16, "layers": 1, "heads": 2, "position": "RoPE", "schedule": "WarmupCosine"},
    },
    "data": {
        "class_path": "Text",
        "init_args": {"files": ["texts"], "tokenizer": "bytes", "batch": 8, "workers": 0, "valid": 0.2, "test": 0.2},
    },
    "trainer": {
        **{"max_steps": 2, "accelerator": "cpu", "limit_val_batches": 1, "num_sanity_val_steps": 0, "logger": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": "run"},
    },
}
SHORT = [
    *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.logger", "false", "--trainer.enable_model_summary", "false"),
]
COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "CKPT", "--prompt", "ab", "--tokens", "2", "--seed", "0"],
    "evaluate": ["evaluate", "CKPT", "--lengths", "8,16", "--files", "texts", "--documents", "2", "--measures", "perplexity"],  # noqa: E501
    "extend": ["extend", "CKPT", "--to", "64", "--method", "YaRN", "--out", "long"],
    "convert": ["extend", "CKPT", "--to", "64", "--method", "FoPE", "--out", "long.ckpt"],
    "export": ["export", "CKPT", "--to", "hf", "--check", "waves", "--out", "exported"],
    "gguf": ["export", "CKPT", "--to", "gguf", "--check", "waves", "--out", "exported.gguf"],
    "analyze": ["analyze", "CKPT", "--files", "texts", "--length", "8"],
    "validate": ["validate", "--ckpt_path", "CKPT", *SHORT, "--data.workers", "0", "--trainer.limit_val_batches", "1"],
    "fit": ["fit", "--ckpt_path", "CKPT", *SHORT, "--data.workers", "0", "--trainer.max_steps", "3", "--trainer.default_root_dir", "again"],  # noqa: E501
    "weights": ["fit", "--model.weights", "CKPT", *SHORT, "--data.files", "texts", "--data.tokenizer", "bytes", "--data.workers", "0",  # noqa: E501
                "--trainer.fast_dev_run", "true"],
    "check": ["check", "./CKPT"],
}  # fmt: skip
FORMS = {"ckpt": "last.ckpt", "folder": "ours", "hub": "theirs", "gguf": "model.gguf", "zero": "zero"}
"""What stands in the folder of whole checkpoints, by format."""


def furnish(place: Path) -> None:
    """Make a whole checkpoint of each format, and what commands read beside them."""
    from zoo import checkpoints, cli
    from zoo.checkpoints import lightning

    (place / "texts").mkdir(parents=True)
    for number in range(12):
        (place / "texts" / f"{number}.txt").write_text(f"{number} and the words of this text " * 40)
    (place / "nobodys-secret").write_text("nobody's business")
    (place / "hostile_module.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\ndef run(*_, **__): Path('ran').touch()\n"
        "class Calls:\n    def __init__(self, function=None, **_): function()\n"
    )
    before = Path.cwd()
    os.chdir(place)
    try:
        (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        for words in (
            ["fit", "--config", "recipe.yaml"],
            ["extend", "run/checkpoints/last.ckpt", "--to", "32", "--method", "YaRN", "--out", "ours"],
        ):
            sys.argv = ["zoo", *words]
            cli.run(words)
        found = next(place.glob("**/last.ckpt"))
        shutil.copy(found, place / "last.ckpt")
        folders.write(place / "theirs", folders.LLAMA)
        cli.run(["export", "theirs", "--to", "gguf", "--check", "waves", "--out", "model.gguf"])
        content = lightning.load(place / "last.ckpt")
        weights = {name: weight.clone() for name, weight in content["state_dict"].items()}
        client = {key: value for key, value in content.items() if key not in ("state_dict", "optimizer_states")}
        zero_directories.write(place / "zero", weights, stage=2, client=client)
        for name in FORMS.values():
            checkpoints.listed(place / name)
    finally:
        os.chdir(before)


def odd(rng: random.Random) -> Any:
    """A value that does not belong into a pickled checkpoint."""
    if rng.random() < 0.7:
        return value(rng)
    return rng.choice(
        [
            lambda: torch.ones(2, 3),
            lambda: torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2)),
            lambda: torch.tensor(float("nan")),
            lambda: torch.ones(1).expand(10**6),
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            lambda: torch.ones(2, dtype=torch.complex64),
            lambda: torch.empty(0),
            lambda: b"bytes",
            lambda: {1, 2},
            lambda: (1, (2,)),
        ]
    )()


def pickled(path: Path, rng: random.Random) -> None:
    """Change a file of torch.save."""
    how = rng.random()
    with zero_directories.classes():
        repickle(path, rng, how)


def repickle(path: Path, rng: random.Random, how: float) -> None:
    """Change what is pickled, or the bytes, as a number from 0 to 1 says."""
    if how < 0.65:
        content = torch.load(path, weights_only=False)
        part = (
            rng.choice(["zoo", "zoo", "zoo", "all", "state_dict"])
            if isinstance(content, dict) and "zoo" in content
            else "all"
        )
        if part == "all":
            content = change(content, rng, odd)
        else:
            content[part] = change(content.get(part, {}), rng, odd)
        torch.save(content, path)
    elif how < 0.7:
        content = torch.load(path, weights_only=False)
        for name in content.get("state_dict", {}) if isinstance(content, dict) else ():
            content["state_dict"][name] = torch.full_like(content["state_dict"][name], float("nan"))
        torch.save(content, path)
    elif how < 0.75:
        packed(path)
    else:
        path.write_bytes(damage(path.read_bytes(), rng, rng.choice([None, 3000])))


def packed(path: Path) -> None:
    """Write an archive again, its records compressed, its pickle followed by a bomb."""
    beside = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, data + bytes(300 << 20) * info.filename.endswith("data.pkl"))
    beside.replace(path)


def settings(path: Path, rng: random.Random) -> None:
    """Change a file of YAML or JSON."""
    text = path.read_bytes()
    if rng.random() < 0.25:
        path.write_bytes(damage(text, rng))
        return
    form = path.suffix == ".json"
    tree = change(json.loads(text) if form else yaml.safe_load(text), rng)
    try:
        path.write_text(json.dumps(tree) if form else yaml.safe_dump(tree))
    except (TypeError, ValueError, RecursionError, yaml.YAMLError):
        path.write_text("[" * 5000)


def tokenizer(path: Path, rng: random.Random) -> None:
    """Change a description of a tokenizer, or make a bomb of it."""
    bombs: list[Callable[[dict[str, Any]], Any]] = [
        lambda old: {**old, "packed": base64.b64encode(zlib.compress(bytes(200 << 20), 9)).decode(), "kind": "tokenizers", "end": 0},  # noqa: E501
        lambda old: {**old, "ranks": base64.b64encode(zlib.compress(bytes(200 << 20), 9)).decode(), "pattern": "x"},
        lambda old: {**old, "ranks": base64.b64encode(zlib.compress(b"YQ== 0\n" * 1000)).decode(), "pattern": "("},
        lambda old: {**old, "name": "nobodys-secret"},
        lambda old: {**old, "kind": rng.choice(["os", "tokenizers", 5, None])},
        lambda old: {**old, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 50_000}] * 40}},  # noqa: E501
        lambda old: {**old, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 4000}},
        lambda old: {**old, "normalizer": nested(2000, dict)},
        lambda old: change(old, rng),
    ]  # fmt: skip
    old = json.loads(path.read_text())
    try:
        path.write_text(json.dumps(rng.choice(bombs)(old)))
    except RecursionError:
        path.write_text("{" * 100_000)


def weights(path: Path, rng: random.Random) -> None:
    """Change a safetensors file: its head as JSON, or its bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        path.write_bytes(damage(data, rng, rng.choice([8, size, None])))
        return
    try:
        head = json.dumps(change(json.loads(data[8 : 8 + size]), rng)).encode()
    except (TypeError, ValueError, RecursionError):
        head = b"[" * 2000
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])


def mutate(form: str, path: Path, rng: random.Random) -> None:
    """Damage the checkpoint of a format that stands at a path."""
    if form == "ckpt":
        pickled(path, rng)
    elif form == "zero":
        pickled(rng.choice(sorted(path.rglob("*.pt"))), rng) if rng.random() < 0.9 else (path / "latest").write_bytes(
            rng.choice([b"", b"..", b"x" * 5000, b"../..", b"\xff"])
        )
    elif form == "gguf":
        path.write_bytes(damage(path.read_bytes(), rng, rng.choice([24, 500, 2000, 8000, None])))
    else:
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.suffix in (".yaml", ".json", ".safetensors")
        ]
        file = rng.choice(files + [file for file in files if "config" in file.name] * 3)
        kind = weights if file.suffix == ".safetensors" else tokenizer if file.name == "tokenizer.json" else settings
        kind(file, rng)


def make(whole: Path, place: Path, seed: int) -> Case:
    """A case: a damaged checkpoint in a folder of its own, and the command that reads it."""
    rng = random.Random(seed)
    form = list(FORMS)[seed % len(FORMS)]
    name = FORMS[form]
    place.mkdir(parents=True)
    source = whole / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
    for other in ("texts", "hostile_module.py", "nobodys-secret"):
        (place / other).symlink_to(whole / other)
    usable = [
        each
        for each in COMMANDS
        if not (each in ("validate", "fit") and form not in ("ckpt", "zero"))
        and not (each == "check" and form not in ("folder", "hub"))
    ]
    command = rng.choice(usable)
    mutate(form, place / name, rng)
    path = place / name
    size = (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )
    return Case(f"{form}/{command}", seed, place, [word.replace("CKPT", name) for word in COMMANDS[command]], size)
