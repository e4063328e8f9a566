"""The Trainer's verbs: `zoo fit | validate | test | predict`, on LightningCLI.

What LightningCLI does in silence is said aloud here: the model that runs is printed once; a checkpoint whose model
differs from the one asked for stops the run and shows both sides; its tokenizer is the one that is used.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo import checkpoints, plugins
from zoo.callbacks import Predictions, Release, Throughput
from zoo.checkpoints import lightning as ckpt
from zoo.checkpoints import zero
from zoo.data import Images, Text
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ZooError
from zoo.evaluate.callback import LengthGeneralisation
from zoo.messages import Parser, buried
from zoo.task import Task
from zoo.tasks import ImageClassifier, LanguageModel

__all__ = ["CLI", "ImageClassifier", "Images", "LanguageModel", "LengthGeneralisation", "Text", "main"]

FREE = {"optimizer", "schedule", "weights", "compile", "chunk", "smoothing", "checkpointing"}
"""Arguments of a task that a checkpoint's weights do not depend on."""


class WholeCheckpoints(TorchCheckpointIO):
    """Training checkpoints that are whole or absent, and that are read without running anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        ckpt.save(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return ckpt.load(path)


class CLI(LightningCLI):
    """LightningCLI with zoo's classes, defaults and answers."""

    stored: dict[str, Any] | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        model: dict[str, Any] = {
            "class_path": "zoo.tasks.LanguageModel",
            "init_args": {"position": "RoPE", "kernel": "Auto"},
        }
        self.stored = self.stored or stored(option(sys.argv[1:], "--ckpt_path"), sys.argv[1])
        data: dict[str, Any] = {"class_path": "zoo.data.Text"}
        if self.stored is not None and self.stored.get("asked"):
            model, data = named(self.stored["asked"]["model"]), self.stored["asked"]["data"]
        parser.set_defaults({"model": model, "data": data})

    def _parse_ckpt_path(self) -> None:
        """Compare instead of merging in silence."""
        sections = self.config[self.config.subcommand]
        if self.stored is None:  # the path may stand in a recipe
            self.stored = stored(sections.get("ckpt_path"), self.config.subcommand)
        if self.stored is None and self.config.subcommand != "fit" and not sections.model.init_args.get("weights"):
            raise ZooError(
                f"There is nothing to {self.config.subcommand}: a fresh model has random weights.   "
                "Try:  --ckpt_path CKPT, or --model.weights CKPT"
            )
        if self.stored is not None:
            sections.model.init_args["weights"] = None  # the checkpoint holds them; its parent may be gone
        if self.stored is None or not self.stored.get("asked"):
            return
        here = plain(self.config[self.config.subcommand].model)
        lines = list(differences(named(self.stored["asked"]["model"]), named(here)))
        if lines:
            raise ZooError(
                "the checkpoint holds another model than the one asked for.\n  "
                + "\n  ".join(lines)
                + "\n  Leave these settings out to continue the checkpoint's model, or start a new run from its "
                "weights where the shapes allow it:  --model.weights CKPT"
            )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse has buried what the class said among the types that it is not
            raise ZooError(buried(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer").get("plugins") or []
        given = given if isinstance(given, list) else [given]
        try:
            trainer = super().instantiate_trainer(plugins=[*given, WholeCheckpoints()], **kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise ZooError(f"The trainer section does not fit: {error}") from None
        if getattr(trainer, "fast_dev_run", False):  # ModelCheckpoint would save at the end of a rehearsal too
            kept = [one for one in trainer.callbacks if not isinstance(one, ModelCheckpoint)]  # type: ignore[attr-defined]
            trainer.callbacks = kept  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        sections = self.config[self.subcommand]
        for task, kind in ((LanguageModel, Text), (ImageClassifier, Images)):
            other = Images if kind is Text else Text
            if isinstance(self.model, task) and isinstance(self.datamodule, other):
                raise ZooError(f"{task.__name__} does not learn from {other.__name__}.   Try:  --data {kind.__name__}")
        self.model.asked = {"model": plain(sections.model), "data": plain(sections.data)}
        show(self.model.asked["model"])
        self.model.rehearse()
        source = self.stored
        if source is None and self.model.weights is not None:
            source = checkpoints.read(self.model.weights).about
        if source is not None and isinstance(self.model, ImageClassifier) and self.model.size is None:
            # That of first training, which the encoding was built for; the images of this run may have another.
            self.model.size = tuple(source["network"]["init_args"]["size"])
        if source is not None and source.get("tokenizer") and isinstance(self.datamodule, Text):
            self.datamodule.use(Tokenizer.restore(source["tokenizer"]))
            rank_zero_only(print)(
                f"tokenizer: the checkpoint's ({source['tokenizer'].get('name', '')})", file=sys.stderr
            )


def plain(section: Any) -> dict[str, Any]:
    """A parsed section as dictionaries, lists and numbers, classes by the names that a recipe uses."""
    return simplified(section.as_dict() if hasattr(section, "as_dict") else section)


def simplified(value: Any) -> Any:
    """`value` in containers, numbers and strings only."""
    if isinstance(value, Mapping):
        return {key: simplified(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [simplified(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def differences(there: Any, here: Any, path: str = "model") -> Iterator[str]:
    """A line for each argument that differs and that the weights depend on."""
    if path == "model.init_args.kernel" and alike(there, here):
        return
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            if not (path == "model.init_args" and key in FREE):
                yield from differences(there.get(key), here.get(key), f"{path}.{key}")
    elif there != here and not (there in (None, {}) and here in (None, {}, 0)):  # an argument of a later version is 0
        yield f"{path.replace('.init_args', '')}: {there} in the checkpoint, {here} asked for"


def named(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model section with its plugins named by the registry: import paths change from version to version."""
    return {**model, "init_args": renamed(model["init_args"], checkpoints.SLOTS)}


def renamed(arguments: Mapping[str, Any], slots: Mapping[str, str]) -> dict[str, Any]:
    """Arguments with the plugins in these slots named by the registry, and those among their arguments."""
    found = dict(arguments)
    for slot, group in slots.items():
        node = found.get(slot)
        if isinstance(node, Mapping):
            name = str(node.get("class_path", "")).rpartition(".")[2]
            inner = renamed(node.get("init_args") or {}, checkpoints.NESTED)
            path = name if name in plugins.names(group) else node.get("class_path")
            found[slot] = {**node, "class_path": path, **({"init_args": inner} if inner else {})}
    return found


def alike(there: Any, here: Any) -> bool:
    """Whether two kernels are implementations of one form, so that either continues the other's model."""
    names = [(node or {}).get("class_path", "").rpartition(".")[2] for node in (there, here)]
    return all(names) and len({plugins.load("zoo.kernels", name).form for name in names}) == 1


@rank_zero_only
def show(section: dict[str, Any]) -> None:
    """Print the model that runs, once: a later file that changes a class drops the earlier one's arguments."""

    def short(node: Any) -> Any:
        if isinstance(node, Mapping) and "class_path" in node:
            name, arguments = node["class_path"].rpartition(".")[2], short(node.get("init_args") or {})
            return {name: arguments} if arguments else name
        if isinstance(node, Mapping):
            return {key: short(value) for key, value in node.items() if value not in (None, False)}
        return node

    print(yaml.safe_dump({"model": short(section)}, sort_keys=False).rstrip(), file=sys.stderr)


def option(argv: list[str], name: str) -> str | None:
    """Value of `--name value` or `--name=value`."""
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def stored(path: str | None, verb: str) -> dict[str, Any] | None:
    """What the checkpoint that is to be continued, or measured, says of itself."""
    if path is None or path in ("last", "best", "hpc", "registry", "null"):
        return None
    if Path(path).is_dir() and zero.holds(Path(path)):
        return zero.described(Path(path))  # which looks at the files before DeepSpeed opens them
    content = ckpt.load(path)
    about = ckpt.told(content, Path(path))
    if "optimizer_states" not in content and verb == "fit":
        raise ZooError(
            f"{path} has no optimizer state, so a run cannot be continued from it. "
            f"Start one from its weights:  --model.weights {path}"
        )
    return about


def main(argv: list[str]) -> None:
    """Run one of the Trainer's verbs."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own business with torch
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    plugins.load_all()
    sys.argv[1:] = argv
    CLI(
        Task,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_class=Trainer,
        trainer_defaults={
            "default_root_dir": str(Path("runs")),
            "use_distributed_sampler": False,  # zoo.data shards by itself, so that a resumed run keeps its order
            "callbacks": [
                ModelCheckpoint(save_last=True),
                LearningRateMonitor("step"),
                Throughput(),
                Release(),
                Predictions(),
            ],
        },
    )
