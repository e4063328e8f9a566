"""The Trainer's verbs: `zoo fit | validate | test | predict`, on LightningCLI.

What LightningCLI does in silence is said aloud here: the model that runs is printed once; a checkpoint whose model
differs from the one asked for stops the run and shows both sides; its tokenizer is the one that is used. A run from a
checkpoint's weights takes the checkpoint's model where nothing else is asked for, and says where it departs from it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo import checkpoints, failures, lock, plugins, resume
from zoo.callbacks import Averaging, NonFinite, Predictions, Preemption, Progress, Release, Throughput
from zoo.checkpoints import lightning as ckpt
from zoo.checkpoints import zero
from zoo.continuation import FLAG, check_continuation
from zoo.data import Images, Text
from zoo.data.tokenizer import Tokenizer
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.evaluate.callback import LengthGeneralisation
from zoo.loggers import both
from zoo.messages import Parser, buried
from zoo.pipeline import Extend, Pipeline
from zoo.recipe import check_recipe, differences, named, plain, refuse_nulls
from zoo.scale import ZeRO
from zoo.stored_sections import import_class, read_data_section, read_model_section, read_weights_section
from zoo.task import Task
from zoo.tasks import ImageClassifier, LanguageModel
from zoo.trunk import Trunk
from zoo.vit import ViT

__all__ = ["CLI", "ImageClassifier", "Images", "LanguageModel", "LengthGeneralisation", "Text", "main"]


RESTORE = os.path.join("connectors", "checkpoint_connector.py")
"""Where Lightning takes up what a checkpoint says."""
RESTORING = {"load_state_dict", "on_load_checkpoint", "_load_combined_loader_states", "restore"}
"""Functions that take up a part of it later."""


TRAINER_NUMBERS: Mapping[str, tuple[float, float]] = {
    **{name: (1, math.inf) for name in ("accumulate_grad_batches", "check_val_every_n_epoch")},
    **{name: (0, math.inf) for name in ("log_every_n_steps", "gradient_clip_val", "min_steps", "min_epochs")},
    **{name: (-1, math.inf) for name in ("max_steps", "max_epochs", "num_sanity_val_steps")},
}
"""Numbers of the trainer section, each with the least and the largest."""
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
"""Numbers of batches, or shares of all."""


def check_seed(seed: Any) -> None:
    """Raise ZooError for a seed that the generators do not take."""
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise ZooError(f"seed_everything takes a whole number from 0 to {2**32 - 1}, and got {seed}.")


class WholeCheckpoints(TorchCheckpointIO):
    """Training checkpoints that are whole or absent, and that are read without running anything in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        place = Path(path)
        left = place.is_dir() and zero.holds(place)  # by a run under ZeRO; no other folder is touched
        ckpt.save(checkpoint, place, replaces_folder=left)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        content = zero.content(Path(path)) if Path(path).is_dir() and zero.holds(Path(path)) else ckpt.load(path)
        forget_paths(content, Path(path))
        return content


PATHS_OF_STATE = ("best_model_path", "kth_best_model_path", "last_model_path")
"""What ModelCheckpoint remembers of files that it may delete."""


def forget_paths(content: dict[str, Any], path: Path) -> None:
    """Take out of the states of callbacks all files outside the folder of their checkpoint.

    ModelCheckpoint deletes what it has replaced, and a file could name any other.

    Args:
        content: Of the checkpoint.
        path: The checkpoint.
    """
    folder = path.absolute().parent

    def beside(named: object) -> bool:
        word = str(named)
        here = Path(word)
        return ":" not in word and ".." not in here.parts and here.absolute().parent == folder

    states = content.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if not isinstance(state, dict):
            continue
        for key in PATHS_OF_STATE:
            if key in state and not beside(state[key]):
                state[key] = ""
        if "best_k_models" in state:
            best = state["best_k_models"]
            kept = best.items() if isinstance(best, dict) else ()
            state["best_k_models"] = {name: score for name, score in kept if beside(name)}


class CLI(LightningCLI):
    """LightningCLI with zoo's classes, defaults and answers."""

    stored: dict[str, Any] | None = None
    """What the checkpoint that is continued, or measured, says of itself."""
    stored_model: dict[str, Any] | None = None
    """The model section that is taken from it."""
    path: str | None = None
    """That checkpoint, `last` and `auto` resolved."""
    folder: Path | None = None
    """Where a stage of a pipeline keeps its checkpoints."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # LightningCLI's is static
        """The verb that runs, and what the parser leaves out of its arguments; those of the others take as long."""
        every = LightningCLI.subcommands()
        verb = "fit" if self.staged else sys.argv[1]
        return {verb: every[verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--extend", type=list[Extend] | None, default=None, help="What follows training, stage by stage."
        )
        parser.add_argument(
            "--stages",
            type=Literal["all", "pretrain", "extend"],
            default="all",
            help="Which part of a recipe with `extend` runs.",
        )
        for flag, what in (
            (FLAG, "Continue with other data, tokenizer or versions than the run began with."),
            ("unlock", "Take a folder over from a run on another machine that you know to have ended."),
        ):
            parser.add_argument(f"--{flag}", type=bool, nargs="?", const=True, default=False, help=what)
        model: dict[str, Any] = {
            "class_path": "zoo.tasks.LanguageModel",
            "init_args": {"position": "RoPE", "kernel": "Auto"},
        }
        data: dict[str, Any] = {"class_path": "zoo.data.Text"}
        if not self.staged:
            self.path, self.stored = self.source
            weights = resume.asked(sys.argv[1:], "model.weights")
            if self.stored is not None and self.stored.get("asked"):
                model = self.stored_model = read_model_section(self.stored, sys.argv[1:], self.path)
                data = read_data_section(self.stored, sys.argv[1:], self.path) or data
            elif self.stored is None and weights is not None:
                model = read_weights_section(checkpoints.read(weights).about, weights)
        parser.set_defaults({"model": model, "data": data})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if args is not None:
            self.config = parser.parse_object(args)
            return
        # A list of stages replaces an earlier one; the parser would merge two of equal length, stage by stage.
        words = list[str]()
        for word in sys.argv[1:]:
            words += ["--extend=null"] * bool(re.match(r"--extend(=|$)", word)) + [word]
        self.config = parser.parse_args(words)

    @cached_property
    def source(self) -> tuple[str | None, dict[str, Any] | None]:
        """The checkpoint that is continued, or measured, as flags or a recipe name it; looked for once."""
        return resume.chosen(sys.argv[1:])

    @property
    def staged(self) -> bool:
        """Whether this is one stage of a pipeline, whose recipe is complete."""
        return self.folder is not None

    def _parse_ckpt_path(self) -> None:
        """Compare instead of merging in silence."""
        sections = self.config[self.config.subcommand]
        if self.staged:
            self.stored = resume.stored(sections.get("ckpt_path"), "fit")
        else:
            sections["ckpt_path"] = self.path
        if self.stored is None and self.config.subcommand != "fit" and not sections.model.init_args.get("weights"):
            raise ZooError(
                f"There is nothing to {self.config.subcommand}: a fresh model has random weights.   "
                "Try:  --ckpt_path CKPT, or --model.weights CKPT"
            )
        self.parent = None if self.stored is not None else sections.model.init_args.get("weights")
        if self.stored is not None:
            sections.model.init_args["weights"] = None  # the checkpoint holds them; its parent may be gone
        if self.parent is not None:
            self.compare(checkpoints.read(self.parent).about, sections.model)
        if self.stored is None or not self.stored.get("asked"):
            return
        there = self.stored_model or self.stored["asked"]["model"]
        here = plain(self.config[self.config.subcommand].model)
        lines = list(differences(named(there), named(here)))
        if self.config.subcommand == "fit":
            before, after = (node["init_args"].get("adapter") for node in (there, here))
            lines += differences(before, after, "model.adapter")
        if lines:
            raise ZooError(
                "the checkpoint holds another model than the one asked for.\n  "
                + "\n  ".join(lines)
                + "\n  Leave these settings out to continue the checkpoint's model, or start a new run from its "
                "weights where the shapes allow it:  --model.weights CKPT"
            )
        own, asked = (node["init_args"].get("optimizer") for node in (there, here))
        for line in differences(own, asked, "model.optimizer") if self.config.subcommand == "fit" else []:
            resume.say(f"the optimizer goes on as it was: {line}")

    def compare(self, about: dict[str, Any], here: Any) -> None:
        """Say where a run departs from the model whose weights it starts from."""
        there = (
            self._parser(self.config.subcommand).parse_object({"model": read_weights_section(about, self.parent)}).model
        )
        lines = list(differences(named(plain(there)), named(plain(here))))
        if lines and about.get("extended"):
            raise ZooError(
                f"{self.parent} has been extended, and the recipe asks for another model than that.\n  "
                + "\n  ".join(lines)
                + "\n  Leave these settings out to train it further, or start from the checkpoint that it was made of."
            )
        for line in lines:
            rank_zero_only(print)(f"zoo: the run departs from {self.parent}: {line}", file=sys.stderr)

    @cached_property
    def pipeline(self) -> Pipeline | None:
        """What a recipe with `extend` asks for, instead of one run."""
        sections = self.config[self.config.subcommand]
        if self.config.subcommand != "fit" or self.staged or not (sections.extend or sections.stages != "all"):
            return None
        recipe = yaml.safe_load(self._parser("fit").dump(sections, skip_none=False))
        return Pipeline(recipe, stage)

    def instantiate_classes(self) -> None:
        if self.pipeline is not None:  # each of its stages makes its own
            return
        self.refuse_nulls()
        self.check_trainer_numbers()
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse has buried what the class said among the types that it is not
            raise ZooError(buried(str(error))) from error

    def check_trainer_numbers(self) -> None:
        """Raise ZooError for a number of the trainer section, or a seed, that Lightning would take or stumble over."""
        sections = self.config[self.config.subcommand]
        for name, (least, most) in TRAINER_NUMBERS.items():
            value = sections.trainer.get(name)
            if isinstance(value, bool) or value is None:
                continue
            if not isinstance(value, int | float) or not least <= value <= most:
                bounds = f"{least} or more" if math.isinf(most) else f"from {least} to {most}"
                raise ZooError(f"trainer.{name} takes a number, {bounds}, and got {value!r}.")
        for name in SHARES:
            value = sections.trainer.get(name)
            if isinstance(value, int | float) and not (value >= 0 and (value <= 1 or value == int(min(value, 2**62)))):
                raise ZooError(
                    f"trainer.{name} takes a number of batches, 0 or more, or a share from 0.0 to 1.0, and got "
                    f"{value!r}."
                )
        every = sections.trainer.get("val_check_interval")
        if (
            isinstance(every, int | float)
            and not isinstance(every, bool)
            and not (0 < every <= 1 or (every >= 1 and isinstance(every, int)))
        ):
            raise ZooError(
                "trainer.val_check_interval takes a number of batches, 1 or more, or a share of an epoch above 0.0 and "
                f"at most 1.0, and got {every!r}."
            )

    def _set_seed(self) -> None:
        check_seed(self._get(self.config, "seed_everything"))
        super()._set_seed()

    def refuse_nulls(self) -> None:
        """Raise ZooError where a setting of the model, the data or the trainer is null and has to be something."""
        sections = self.config[self.config.subcommand]
        refuse_nulls(vars(sections.trainer), (Trainer,), "trainer")
        for name in ("model", "data"):
            owner = import_class(sections[name].class_path)
            inner = [Decoder, Trunk] if issubclass(owner, LanguageModel) else []
            inner += [ViT, Trunk] if issubclass(owner, ImageClassifier) else []
            refuse_nulls(vars(sections[name].init_args), (owner, *inner), name)
            for key, node in vars(sections[name].init_args).items():
                if isinstance(node, Namespace) and "class_path" in node and "init_args" in node:
                    refuse_nulls(vars(node.init_args), (import_class(node.class_path),), f"{name}.{key}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer").get("plugins") or []
        given = given if isinstance(given, list) else [given]
        try:
            trainer = super().instantiate_trainer(plugins=[*given, WholeCheckpoints()], **kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ZooError(f"The trainer section does not fit: {error}") from None
        if getattr(trainer, "fast_dev_run", False):  # ModelCheckpoint would save at the end of a rehearsal too
            kept = [one for one in trainer.callbacks if not isinstance(one, ModelCheckpoint)]  # type: ignore[attr-defined]
            trainer.callbacks = kept  # type: ignore[attr-defined]
        for one in trainer.callbacks if self.folder is not None else []:  # type: ignore[attr-defined]
            if isinstance(one, ModelCheckpoint):
                one.dirpath = str(self.folder)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """With zoo's callbacks, unless the recipe has its own of the kind, and its loggers, unless it names others."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        bare = bool(config.get("barebones"))  # Lightning's mode without logs, checkpoints and displays
        watching = not any(isinstance(one, ProgressBar) for one in given) and not bare
        logs = config.get("logger") is not False and not bare and not config.get("fast_dev_run")
        saves = config.get("enable_checkpointing") is not False and not bare
        own: list[Callback] = [
            *([ModelCheckpoint(save_last=True, enable_version_counter=False)] if saves else []),
            *([LearningRateMonitor("step")] if logs else []),
            *([] if bare else [Throughput()]),
            NonFinite(),
            Preemption(partial(resume.again, tuple(sys.argv[1:]))),
            Release(publish=not bare),
            Predictions(),
            *([Progress()] if watching and config.get("enable_progress_bar") is not False else []),
        ]
        kinds = {type(one) for one in given} - {ModelCheckpoint, LearningRateMonitor}
        stateful = {one.state_key for one in given if isinstance(one, ModelCheckpoint)}
        own = [one for one in own if type(one) not in kinds and one.state_key not in stateful]
        config["callbacks"] = [Averaging(), *Averaging.order(given), *own]
        if not bare and config.get("logger") in (None, True):
            config["logger"] = both(config.get("default_root_dir") or resume.FOLDER)
        return super()._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        if (pipeline := self.pipeline) is not None:
            return pipeline.run()
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if is_lightning_refusal(error):
                raise ZooError(f"Lightning's trainer refuses this run: {' '.join(str(error).split())}") from error
            frames = traceback.extract_tb(error.__traceback__)
            restoring = any(frame.filename.endswith(RESTORE) or frame.name in RESTORING for frame in frames)
            if isinstance(error, ZooError | OSError) or not restoring or failures.lacks_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ZooError(
                f"{self.config[subcommand].get('ckpt_path')} is damaged: what it says of its run cannot be restored: "
                f"{type(error).__name__}: {reason}"
            ) from error

    def before_fit(self) -> None:
        """Hold the run's folder, and compare the run with the one that began, or with its pipeline's stage before."""
        sections = self.config["fit"]
        accept, unlock = sections[FLAG], sections.unlock
        sections[FLAG], sections.unlock = False, False  # of this command, not of the recipe that is kept
        resume.claim_run(self.trainer, unlock=unlock)
        path = self.config["fit"].get("ckpt_path") if self.stored is not None else self.parent
        before = self.folder is not None and self.folder.parent / "extended.ckpt" == Path(str(self.parent))
        if (self.stored is None and not before) or not lock.is_first_process():
            return
        about = self.stored if self.stored is not None else checkpoints.listed(str(path)).about
        check_continuation(about, path, self.datamodule, self.model.asked or {}, sys.argv[1:], accept=accept)

    def after_instantiate_classes(self) -> None:
        if self.pipeline is not None:
            return
        sections = self.config[self.subcommand]
        for task, kind in ((LanguageModel, Text), (ImageClassifier, Images)):
            other = Images if kind is Text else Text
            if isinstance(self.model, task) and isinstance(self.datamodule, other):
                raise ZooError(f"{task.__name__} does not learn from {other.__name__}.   Try:  --data {kind.__name__}")
        place = Path(sections.get("ckpt_path") or "")
        if self.subcommand == "fit" and self.stored and place.is_dir() and not isinstance(self.trainer.strategy, ZeRO):
            stage, _ = zero.cut_by(place)
            raise ZooError(
                f"{place} was left by ZeRO, whose processes held a part of the optimizer each, and this run is without "
                f"it.   Try:  --config recipes/scale/zero{stage}.yaml, or --model.weights {place}"
            )
        if self.subcommand != "fit":
            self.model.adapter = None  # what is measured is the sum, as others read it
        elif self.model.adapter is not None and self.model.weights is None and self.stored is None:
            raise ZooError(
                f"{type(self.model.adapter).__name__} trains beside weights that are there, and a fresh model has "
                "random ones.   Try:  --model.weights CKPT"
            )
        self.model.asked = {"model": plain(sections.model), "data": plain(sections.data)}
        self.model.asked["model"]["init_args"]["weights"] = None  # of which the description tells under `parent`
        self.model.asked["model"]["init_args"].pop("sequence_parallel", None)  # of the machine, not of the model
        show(self.model.asked["model"])
        self.model.rehearse(self.trainer.world_size)
        source = self.stored
        if source is None and self.model.weights is not None:
            source = checkpoints.read(self.model.weights).about
        if source is not None and isinstance(self.model, ImageClassifier) and self.model.size is None:
            # That of first training, which the encoding was built for; the images of this run may have another.
            self.model.size = tuple(source["network"]["init_args"]["size"])
        if source is not None and isinstance(self.model, LanguageModel) and self.model.vocabulary is None:
            self.model.vocabulary = source["network"]["init_args"]["vocabulary"]  # often more than the tokenizer has
        if source is not None and source.get("tokenizer") and isinstance(self.datamodule, Text):
            self.datamodule.use(Tokenizer.restore(source["tokenizer"]))
            rank_zero_only(print)(
                f"tokenizer: the checkpoint's ({source['tokenizer'].get('name', '')})", file=sys.stderr
            )


def is_lightning_refusal(error: Exception) -> bool:
    """Whether an exception is a sentence of Lightning's about how it is used, as that a monitored metric is missing."""
    if isinstance(error, MisconfigurationException):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    refusal = isinstance(error, RuntimeError | ValueError) and not isinstance(error, torch.OutOfMemoryError)
    return refusal and raised_in.startswith(("lightning.pytorch.", "lightning.fabric."))


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


def main(argv: list[str]) -> None:
    """Run one of the Trainer's verbs."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own business with torch
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    plugins.load_all()
    for flag, value in resume.given(argv):
        if flag in ("config", "c") and Path(value).is_file():
            check_recipe(Path(value))
    sys.argv[1:] = argv
    command(CLI)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # whose threads may otherwise abort a process that ends well


def stage(recipe: dict[str, Any], folder: Path) -> None:
    """Run one stage of a pipeline, a whole recipe by itself, whose checkpoints go to a folder."""
    command(type("Stage", (CLI,), {"folder": folder}), {"subcommand": "fit", "fit": recipe})


def command(cli: type[CLI], args: dict[str, Any] | None = None) -> None:
    """Read the command line, or a complete recipe, and run it."""
    with lock.releasing_locks(), resume.reporting_interruptions(sys.argv[1:]):
        start(cli, args)


def start(cli: type[CLI], args: dict[str, Any] | None) -> None:
    """Have LightningCLI read the command line, or a complete recipe, and run it."""
    cli(
        Task,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        seed_everything_default=0,
        args=args,
        save_config_kwargs={"overwrite": True},
        trainer_class=Trainer,
        trainer_defaults={
            "default_root_dir": resume.FOLDER,
            "use_distributed_sampler": False,  # zoo.data shards by itself, so that a resumed run keeps its order
        },
    )
