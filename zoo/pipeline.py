"""Recipes in stages: training, then one extension after the other, each with its fine-tuning.

A stage is an ordinary run of an ordinary recipe, which is derived from the whole one and kept beside the stage's
checkpoints. What a stage leaves under its final name is complete, so the files say how far the pipeline has come: the
same command, typed again, goes over finished stages and continues the one that was interrupted from its last
checkpoint. The first process converts, measures and keeps the books, and all others wait for it.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only

from zoo import checkpoints, lock, resume
from zoo.checkpoints import lightning
from zoo.continuation import FLAG
from zoo.data.positions import Placement
from zoo.errors import ZooError, escape_controls
from zoo.extend import Plan, plan
from zoo.extend.methods import usual
from zoo.extend.source import Source, read
from zoo.extend.write import write
from zoo.lengths import length, short
from zoo.limits import read_json, reporting_damage
from zoo.recipe import FREE, differences, named, renamed
from zoo.stored_sections import read_weights_section
from zoo.tasks import LanguageModel

DOCUMENTS = 8
"""Held-out documents that a stage is measured on."""
MACHINE = {
    *("accelerator", "barebones", "cache", "callbacks", "default_root_dir", "detect_anomaly", "devices", "logger"),
    *("enable_model_summary", "enable_progress_bar", "log_every_n_steps", "num_nodes", "num_sanity_val_steps"),
    *("plugins", "profiler", "strategy", "workers"),
}
"""Settings of trainer and data that may change between two halves of a run."""


@dataclass
class FineTune:
    """Training after an extension, with a fresh optimizer. What is not said here is as in the recipe.

    Args:
        max_steps: Optimizer steps.
        lr: Learning rate at its peak.
        warmup: Steps of warm-up, where the recipe has a schedule.
        length: Tokens of a block (default: the target; with pose and cream the length of first training).
        batch: Blocks per process and step (default: as many tokens as in the recipe).
        positions: full: blocks count from 0. pose, cream: blocks that are shorter than the target train all of it.
    """

    max_steps: int
    lr: float | None = None
    warmup: float = 20
    length: int | str | None = None
    batch: int | None = None
    positions: Literal["full", "pose", "cream"] = "full"


@dataclass
class Extend:
    """A stage after training: the checkpoint is extended, trained further, and measured.

    Args:
        to: Tokens that it is to read, such as 4096 or 4k; or how many times what it reads before, such as 2x.
        method: The extension (default: what is usual for the encoding).
        arguments: The method's own.
        finetune: Training that follows (default: none).
    """

    to: int | str
    method: str | None = None
    arguments: dict[str, Any] | None = None
    finetune: FineTune | None = None


class Pipeline:
    """A recipe with an `extend` section.

    Args:
        recipe: All of it, as plain data.
        fit: Runs a recipe without such a section, its checkpoints in a folder.
    """

    def __init__(self, recipe: dict[str, Any], fit: Callable[[dict[str, Any], Path], None]) -> None:
        self.recipe, self.fit = copy.deepcopy(recipe), fit
        self.part = self.recipe.pop("stages")
        self.stages = [stage(each) for each in self.recipe.pop("extend") or []]
        self.asked = [plain(each) for each in self.stages]
        self.recipe.pop("config", None)
        self.unlock, self.recipe["unlock"] = bool(self.recipe.pop("unlock", False)), False
        self.trainer, self.model = self.recipe["trainer"], self.recipe["model"]
        self.root = Path(self.trainer["default_root_dir"])
        if self.recipe.get("ckpt_path"):
            raise ZooError("A recipe with stages finds its place by itself. Leave --ckpt_path out, and run it again.")
        if not self.stages:
            raise ZooError(f"--stages {self.part} is a part of a recipe with `extend`, and this one has none.")
        self.length = self.model["init_args"].get("length")
        if not self.model["class_path"].endswith("LanguageModel"):
            raise ZooError("`extend` serves language models, and this recipe trains none.")

    def run(self) -> None:
        """All stages that are asked for and not done."""
        if self.part != "pretrain":
            self.rehearse()
        if self.trainer.get("fast_dev_run"):
            rank_zero_only(print)(
                "zoo: a rehearsal leaves no checkpoint, so it ends before the extensions", file=sys.stderr
            )
            return self.fit(self.recipe, self.root)
        first(self.claim)
        weights = self.model["init_args"].get("weights")
        if self.part == "extend" and weights:
            result = Path(weights)
        elif self.part == "extend" and not self.told("pretrain"):
            raise ZooError(
                f"There is no finished training in {self.root} to extend.   Try:  --stages all, or --model.weights CKPT"
            )
        else:
            result = self.train("pretrain", self.recipe)
        trained = result
        for number, each in enumerate(self.stages if self.part != "pretrain" else [], 1):
            name = "-".join([str(number), short(target(each.to)), *([each.method] if each.method else [])])
            result = self.extend(name, each, trained, result)

    # What is known before anything runs.

    def rehearse(self) -> None:
        """Raise ZooError for a stage that could not be, before the training that it would follow."""
        own = inspect.signature(LanguageModel).parameters.keys() - {"vocabulary", "length", "decoder"}
        arguments = renamed(self.model["init_args"], checkpoints.SLOTS)
        network = {key: value for key, value in arguments.items() if key not in own}
        network["vocabulary"] = network.get("vocabulary") or 2
        node = {"class_path": "zoo.decoder.Decoder", "init_args": network}
        if self.part == "extend" and arguments.get("weights"):
            source = read(Path(arguments["weights"]))
            self.length = source.about["network"]["init_args"]["length"]
        else:
            with torch.device("meta"):
                shapes = checkpoints.build(node).state_dict()
            source = Source(self.root, {"network": node}, shapes, "", {})
        for each in self.stages:
            each.to = further(each.to, source)
            try:
                made = planned(source, each)
            except ZooError as error:
                raise ZooError(f"{error}\n  Or train, and extend nothing:   Try:  --stages pretrain") from None
            source = Source(self.root, made.about, made.after.state_dict(), "", {})
            if each.finetune:
                self.window(each)

    def window(self, each: Extend) -> int:
        """Tokens of a block in a stage's fine-tuning."""
        tune, to = each.finetune, target(each.to)
        assert tune is not None
        size = target(tune.length) if tune.length is not None else to if tune.positions == "full" else self.length
        settings, placed = self.model["init_args"], tune.positions != "full"
        if placed and (settings.get("random_positions") or settings.get("within_documents")):
            raise ZooError(f"Positions by {tune.positions} go with neither random_positions nor within_documents.")
        if placed:
            Placement(tune.positions, size, to)
        if size > to:
            raise ZooError(f"A stage to {short(to)} is not trained on blocks of {size} tokens.   Try:  length: {to}")
        if tune.max_steps < 1 or (tune.batch or 1) < 1:
            raise ZooError(f"Fine-tuning takes at least 1 step of 1 block, and got {tune.max_steps} of {tune.batch}.")
        return size

    # What files say.

    def claim(self) -> None:
        """Write the recipe into the folder of the run, or raise ZooError where another recipe has written its own."""
        resume.claim_folder(self.root, unlock=self.unlock)
        path = self.root / "pipeline.json"
        own = ("unlock", FLAG)  # of the command, not of the run
        here = {"extend": self.asked, **{key: value for key, value in self.recipe.items() if key not in own}}
        begun = (
            any(self.root.glob("*/stage.json")) or any(self.root.glob("*/*.ckpt")) or any(self.root.glob("*/*/*.ckpt"))
        )
        if path.is_file() and begun:
            with reporting_damage(path):
                lines = list(departures(read_json(path), json.loads(json.dumps(here))))
            if lines:
                raise ZooError(
                    f"{self.root} holds the run of another recipe.\n  "
                    + "\n  ".join(lines)
                    + "\n  Continue that one, or start this one elsewhere:   Try:  --trainer.default_root_dir FOLDER"
                )
        keep(path, here)
        lock.remove_left_overs(self.root, recursive=True, earlier=True)

    def told(self, name: str) -> dict[str, Any]:
        """What is known of a stage: where its training ended, what was measured."""
        path = self.root / name / "stage.json"
        if not path.is_file():
            return {}
        found = read_json(path)
        if not isinstance(found, dict):
            raise ZooError(f"{path} is damaged: it holds no mapping.")
        return found

    # Stages.

    def train(self, name: str, recipe: Mapping[str, Any]) -> Path:
        """Run, or continue, the training of a stage, unless it is finished; its last checkpoint."""
        place = self.root / name
        folder = place / "checkpoints"
        last = folder / "last.ckpt"
        if "trained" not in self.told(name):
            found = resume.newest(folder)
            resume.say(name + (f" goes on from {found}" if found else ""))
            recipe = copy.deepcopy(dict(recipe)) | {"ckpt_path": str(found) if found else None}
            recipe["trainer"] |= {"default_root_dir": str(place), "logger": logged(self.trainer.get("logger"), place)}
            self.fit(recipe, folder)
            first(lambda: keep(place / "stage.json", {"trained": str(last)}))
        return last

    def extend(self, name: str, each: Extend, trained: Path, source: Path) -> Path:
        """Convert, fine-tune and measure, as far as that is not done; the checkpoint that it leaves."""
        place = self.root / name
        converted = place / "extended.ckpt"
        # All come to each exchange, whether the work is done or not: who is late may already see what it leaves.
        first(lambda: None if converted.is_file() else put(planned(read(source), each), converted), converted.is_file)
        result = self.train(name, self.tuned(each, converted)) if each.finetune else converted
        first(
            lambda: None if "measured" in self.told(name) else self.measure(name, each, trained, converted, result),
            lambda: "measured" in self.told(name),
        )
        rank_zero_only(print)(escape_controls(str(self.told(name)["measured"])))
        return result

    def tuned(self, each: Extend, converted: Path) -> dict[str, Any]:
        """The recipe of a stage's fine-tuning."""
        tune, recipe = each.finetune, copy.deepcopy(self.recipe)
        assert tune is not None
        settings = recipe["model"]["init_args"]
        free = {key: value for key, value in settings.items() if key in FREE}
        recipe["model"] = read_weights_section(lightning.load(converted)["zoo"], converted)
        recipe["model"]["init_args"] |= free | {"weights": str(converted)}
        if tune.lr is not None:
            recipe["model"]["init_args"]["optimizer"]["init_args"]["lr"] = tune.lr
        if free.get("schedule"):
            recipe["model"]["init_args"]["schedule"]["init_args"]["warmup"] = tune.warmup
        data, trainer, size = recipe["data"]["init_args"], recipe["trainer"], self.window(each)
        batch = tune.batch or max(1, data["batch"] * self.length // size)
        data |= {"length": size, "batch": batch, "positions": tune.positions}
        trainer |= {"max_steps": tune.max_steps, "max_epochs": -1, "min_steps": None, "min_epochs": None}
        every = trainer.get("val_check_interval")
        if isinstance(every, int) and trainer.get("check_val_every_n_epoch") is None:
            batches = tune.max_steps * (trainer.get("accumulate_grad_batches") or 1)
            trainer["val_check_interval"] = min(every, batches)
        return recipe

    def measure(self, name: str, each: Extend, trained: Path, converted: Path, result: Path) -> None:
        """Perplexity by length, before and after, on the same held-out documents."""
        from zoo.evaluate import Evaluation
        from zoo.evaluate.texts import held_out

        rows = {"as trained": trained, "extended": converted} | ({"fine-tuned": result} if each.finetune else {})
        sizes = [target(each.to)]
        while sizes[0] > self.length:
            sizes.insert(0, max(self.length, -(-sizes[0] // 2)))
        cuda = torch.cuda.is_available() and self.trainer.get("accelerator") in ("auto", "cuda", "gpu")
        told: dict[str, Any] = {}
        try:
            abouts = [checkpoints.read(path).about for path in (trained, result)]
            speaking = next((each for each in abouts if each.get("asked")), {})  # a folder of others names no data
            evaluation = Evaluation(
                [str(path) for path in rows.values()],
                files=held_out(speaking, opens=True),
                lengths=tuple(sizes),
                measures="perplexity",
                documents=DOCUMENTS,
                device="cuda" if cuda else "cpu",
            )
            told["results"] = list(evaluation.run())
            told["measured"] = table(name, list(rows), evaluation.document)
        except ZooError as error:
            told["measured"] = f"{name}: not measured. {str(error).partition('   Try:')[0]}"
        keep(self.root / name / "stage.json", self.told(name) | told)


def table(title: str, rows: list[str], document: Mapping[str, Any]) -> str:
    """Perplexity of some checkpoints by length, for a person."""
    names = [one["name"] for one in document["checkpoints"]]
    found = {(one["checkpoint"], one["length"]): one.get("value", {}).get("perplexity") for one in document["results"]}
    sizes = sorted({length for _, length in found})
    lines = [f"\n{title:<24}" + "".join(f"{short(size):>9}" for size in sizes)]
    for row, name in zip(rows, names, strict=True):
        figures = [found[name, size] for size in sizes]
        lines.append(f"  {row:<22}" + "".join(f"{each:>9.2f}" if each else f"{'-':>9}" for each in figures))
    text = document["text"]
    return "\n".join([*lines, f"  perplexity on {text['documents']} documents: {text['origin']}\n"])


def stage(node: Mapping[str, Any]) -> Extend:
    """A stage from plain data."""
    tune = node.get("finetune")
    return Extend(**{**node, "finetune": FineTune(**tune) if tune else None})


def plain(each: Extend) -> dict[str, Any]:
    """A stage as plain data."""
    return vars(each) | {"finetune": vars(each.finetune) if each.finetune else None}


def target(word: int | str) -> int:
    """A length as a number."""
    return length(str(word))


def further(word: int | str, source: Source) -> int | str:
    """A length; where it is written as 2x, so many times what a checkpoint reads."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)x", str(word))):
        return word
    arguments = source.about["network"]["init_args"]
    return int(float(match[1]) * (arguments.get("reach") or arguments["length"]))


def worded(arguments: Mapping[str, Any] | None) -> dict[str, str]:
    """A method's arguments as they are written on a command line."""
    return {key: each if isinstance(each, str) else json.dumps(each) for key, each in (arguments or {}).items()}


def planned(source: Source, each: Extend) -> Plan:
    """The extension of a stage."""
    method = each.method or usual(source.about["network"]["init_args"]["position"]["class_path"])
    return plan(source, target(each.to), method, worded(each.arguments))


def put(made: Plan, path: Path) -> None:
    """Write an extended checkpoint."""
    write(made, path, lambda how: "")


def departures(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each setting in which two recipes differ and that numbers depend on."""
    sides = []
    for recipe in (there, here):
        told = {key: {**(value or {})} if isinstance(value, Mapping) else value for key, value in recipe.items()}
        told["model"] = named(told["model"])
        told["trainer"] = {key: value for key, value in told["trainer"].items() if key not in MACHINE}
        own = {key: value for key, value in told["data"]["init_args"].items() if key not in MACHINE}
        told["data"] = {**told["data"], "init_args": own}
        sides.append(told)
    lines = differences(sides[0], sides[1], path="")
    return [line.lstrip(".").replace("in the checkpoint", "there") for line in lines]


def logged(logger: Any, place: Path) -> Any:
    """The logger of a stage: under its folder, and the same one when the stage goes on."""
    if logger in (True, None):
        names = ("lightning.pytorch.loggers.TensorBoardLogger", "zoo.loggers.AppendingCSVLogger")
        logger = [{"class_path": name, "init_args": {}} for name in names]
    if isinstance(logger, list):
        return [logged(each, place) for each in logger]
    if isinstance(logger, Mapping):
        own, fixed = dict(logger.get("init_args") or {}), {"save_dir": str(place)}
        if logger["class_path"].endswith(("TensorBoardLogger", "CSVLogger")):
            return {**logger, "init_args": own | fixed | {"name": "", "version": ""}}
        return {**logger, "init_args": own | {key: value for key, value in fixed.items() if key in own}}
    return logger


def keep(path: Path, told: Mapping[str, Any]) -> None:
    """Write a file of figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock.writing(path) as beside:
        beside.write_text(json.dumps(told, indent=1))


def first(work: Callable[[], None], stands: Callable[[], bool] = lambda: True) -> None:
    """Have the first process do a piece of work while all others wait for it.

    Once a trainer has run, the processes can tell each other; before, the others wait for what the work leaves.
    """
    told: list[str | None] = [None]
    if getattr(rank_zero_only, "rank", 0) == 0:
        try:
            work()
        except ZooError as error:
            told = [str(error)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told)
    if told[0] is not None:
        raise ZooError(told[0])
    while not stands():
        time.sleep(0.1)
