"""Damaged recipes: changed values, structures, anchors and bytes of a recipe that is whole."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from mutations import change, damage
from server import Case

from checkpoints import RECIPE

FULL = copy.deepcopy(RECIPE)
FULL["model"]["init_args"] |= {
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}},
    "position": {"class_path": "RoPE", "init_args": {"base": 10000.0, "extension": {"class_path": "Linear", "init_args": {"factor": 2.0}}}},  # noqa: E501
    **{"kernel": "Auto", "dropout": 0.0, "norm": "RMSNorm", "window": None, "kv_heads": 1, "compile": False, "chunk": 64},  # noqa: E501
}  # fmt: skip
FULL["trainer"] |= {
    **{"val_check_interval": 1, "log_every_n_steps": 1, "accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1},
    **{
        "max_epochs": -1,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "callbacks": ["LearningRateMonitor"],
        "min_steps": None,
    },
}
FULL["seed_everything"] = 0
STAGES = {
    **copy.deepcopy(RECIPE),
    "extend": [{"to": 64, "method": "YaRN", "arguments": {"fast": 16}, "finetune": {"max_steps": 1, "lr": 0.001}}],
}
TEXTS = (
    "a: &a [*a]\n",
    "trainer: [1]\n",
    "trainer: &x\n  <<: *x\n",
    "<<: *self\n",
    "model: &m {class_path: LanguageModel, init_args: *m}\n",
    "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 12)]),  # noqa: E501
    "model: 1\nmodel: 2\n",
    "seed_everything: " + "9" * 5000 + "\n",
    "trainer: {max_steps: 1, max_steps: 2}\n",
    "!!python/object/apply:os.system ['touch ran']\n",
    "model: !!python/name:os.system\n",
    "- a\n- b\n",
    "just words\n",
    "[" * 20_000,
    "a: " * 3000,
    "? {a: b}\n: c\n",
    "model: {? [1]: 2}\n",
    "\ufeffmodel: LanguageModel\n",
    "--- a\n--- b\n",
    "%YAML 9.9\n---\nmodel: LanguageModel\n",
    "model: LanguageModel\nx: \u00e4\x85\n",
)  # fmt: skip


def text_of(rng: random.Random) -> bytes:
    """The bytes of a damaged recipe."""
    how = rng.random()
    if how < 0.1:
        return rng.choice(TEXTS).encode()
    tree = copy.deepcopy(rng.choice([FULL, FULL, RECIPE, STAGES]))
    if how < 0.75:
        try:
            return yaml.safe_dump(change(tree, rng)).encode(
                rng.choice(["utf-8"] * 20 + ["latin-1", "utf-16", "utf-16-be"])
            )
        except (TypeError, ValueError, RecursionError, yaml.YAMLError, UnicodeEncodeError):
            return b"{" * 3000
    plain = yaml.safe_dump(tree)
    if how < 0.85:
        lines = plain.splitlines()
        at = rng.randrange(len(lines))
        lines.insert(
            at,
            rng.choice([lines[at], lines[at].replace(":", ": &x", 1), "  <<: *x", "\t" + lines[at], lines[at] + " *x"]),
        )
        return "\n".join(lines).encode()
    return damage(plain.encode(), rng)


def make(whole: Path, place: Path, seed: int) -> Case:
    """A case: a damaged recipe in a folder of its own, which is printed or begun."""
    rng = random.Random(seed)
    place.mkdir(parents=True)
    for other in ("texts", "hostile_module.py", "nobodys-secret"):
        (place / other).symlink_to(whole / other)
    content = text_of(rng)
    (place / "recipe.yaml").write_bytes(content)
    more = (
        ["--print_config"] if rng.random() < 0.15 else ["--trainer.fast_dev_run", "true"] if rng.random() < 0.6 else []
    )
    return Case("recipe", seed, place, ["fit", "--config", "recipe.yaml", *more], len(content))
