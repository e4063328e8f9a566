"""What is trained, and on what loss: the LightningModules around a network.

A task builds its network in `configure_model`, when the data are known, so that what a recipe leaves open (vocabulary,
classes, image size) comes from the data and is then written into the checkpoint. Optimizer and schedule are injected.
A checkpoint also holds the states of the random generators, so that a resumed run repeats the dropout of an
uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

import zoo
from zoo import checkpoints
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.layers import Trunk
from zoo.loss import IGNORED, chunks, cross_entropy
from zoo.position import PositionEncoding
from zoo.schedules import Schedule
from zoo.vit import ViT


class UnknownError(ZooError):
    """Something that the data will tell has not been told yet."""


class Task(LightningModule):
    """What the tasks share: building the network, optimizing it, saving what it is.

    Args:
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings and encodings.
        schedule: Factor on the learning rate over the steps (default: constant).
        weights: Checkpoint whose weights the run starts from, with a fresh optimizer at step 0.
        compile: Run the network under torch.compile.
    """

    network: nn.Module | None

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule, self.weights = optimizer, schedule, weights
        self.compiled = compile
        self.network = None
        self.about: dict[str, Any] = {}
        self.asked: dict[str, Any] | None = None
        """The model and data sections of recipe and flags, where there were any; kept in the checkpoint."""
        self.generators: dict[str, Any] | None = None

    # What a subclass says.

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network, and the arguments that it was built from."""
        raise NotImplementedError

    def flops(self) -> int:
        """Floating-point operations of forward and backward for one token (or image)."""
        raise NotImplementedError

    # Building.

    def rehearse(self) -> None:
        """Build the network without memory or data, so that a mistake in its numbers is told before anything long."""
        try:
            with torch.device("meta"):
                self.build()
        except (UnknownError, NotImplementedError, RuntimeError):
            return  # the data will tell, or a plugin cannot be built without memory

    @property
    def trunk(self) -> Trunk:
        """The part of the network that has the slots."""
        return cast(Trunk, cast(nn.Module, self.network).trunk)

    def known(self, name: str, given: Any) -> Any:
        """`given`, or what the data say where a recipe leaves it open."""
        if given is not None:
            return given
        source = getattr(self._trainer, "datamodule", None) if self._trainer is not None else None
        value = getattr(source, name, None)
        if value is None:
            raise UnknownError(f"{type(self).__name__} needs `{name}`: set it, or train on data that tell it.")
        return value

    def configure_model(self) -> None:
        if self.network is not None:
            return
        network, arguments = self.build()
        self.network = network
        slots = {
            name: checkpoints.describe(getattr(self.trunk, name), arguments.get(name), group)
            for name, group in checkpoints.SLOTS.items()
        }
        node = {
            "class_path": f"{type(network).__module__}.{type(network).__qualname__}",
            "init_args": {**arguments, **slots},
        }
        self.about = {
            "format": checkpoints.FORMAT,
            "zoo": zoo.__version__,
            "task": type(self).__name__,
            "network": node,
            "plugins": checkpoints.owners(node),
        }
        if self.weights is not None:
            source = checkpoints.read(self.weights)
            checkpoints.fill(network, source.weights, self.weights)
            self.about["parent"] = str(self.weights)
        if self.compiled:
            network.compile()

    def verify(self) -> None:
        """Ask the kernel again, now that device and precision are known, before the first batch."""
        kind = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
        precision = str(self.trainer.precision).split("-")[0]
        self.trunk.check(
            device=self.device.type,
            dtype=kind.get(precision, torch.float32),
            training=self.trainer.training,
            mask=self.masks(),
            extent=self.extent(),
        )

    def masks(self) -> frozenset[str]:
        """Names of the mask's conditions."""
        return frozenset()

    def extent(self) -> int:
        """Tokens of one example."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        self.verify()

    def on_validation_start(self) -> None:
        if not self.trainer.training:
            self.verify()

    def on_test_start(self) -> None:
        self.verify()

    # Optimizing.

    def groups(self) -> list[dict[str, Any]]:
        """Parameters in two groups: matrices, which decay, and all others, which do not."""
        spared: set[int] = set()
        for module in self.modules():
            if isinstance(module, PositionEncoding | nn.Embedding):
                spared |= {id(parameter) for parameter in module.parameters()}
        wanted = [p for p in self.parameters() if p.requires_grad]
        decays = [p for p in wanted if p.ndim >= 2 and id(p) not in spared]
        rest = [p for p in wanted if p.ndim < 2 or id(p) in spared]
        groups: list[dict[str, Any]] = [{"params": decays}, {"params": rest, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(cast(Iterable[nn.Parameter], self.groups()))
        if self.schedule is None:
            return optimizer
        schedule, total = self.schedule, int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Saving and resuming.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {"steps": self.trainer.global_step, "epochs": self.trainer.current_epoch}
        about = {**self.about, "asked": self.asked, "trained": trained}
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is not None and not isinstance(tokenizer, str):
            about["tokenizer"] = tokenizer.describe()
        checkpoint["zoo"] = about
        checkpoint["generators"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": random.getstate(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.generators = checkpoint.get("generators")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.generators is None:
            return
        # Only now: set-up and sanity checks have drawn what an uninterrupted run did not.
        torch.set_rng_state(self.generators["torch"].cpu())
        if self.generators["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in self.generators["cuda"]])
        version, state, gauss = self.generators["python"]
        random.setstate((version, tuple(state), gauss))
        self.generators = None


class LanguageModel(Task):
    """Next-token prediction with a decoder.

    Args:
        vocabulary: Number of token ids (default: the tokenizer's).
        length: Tokens of a sequence at first training; it never changes afterwards.
        chunk: Tokens whose logits are held at once.
        within_documents: Tokens see their own document only, and positions start anew in each.
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings and encodings.
        schedule: Factor on the learning rate over the steps (default: constant).
        weights: Checkpoint whose weights the run starts from, with a fresh optimizer at step 0.
        compile: Run the network under torch.compile.
        **decoder: The decoder, its position encoding and its kernel.
    """

    def __init__(
        self,
        *,
        vocabulary: int | None = None,
        length: int = 1024,
        chunk: int = 8192,
        within_documents: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        compile: bool = False,
        **decoder: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, weights=weights, compile=compile)
        if chunk < 1:
            raise ZooError(f"chunk is a number of tokens, at least 1, and got {chunk}.")
        self.vocabulary, self.length, self.chunk = vocabulary, length, chunk
        self.within_documents = within_documents
        self.decoder = decoder  # alone on its line: this is how the command line finds the decoder's own arguments
        self.perplexity = Perplexity(ignore_index=IGNORED)

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        vocabulary = self.known("vocabulary", self.vocabulary)
        if vocabulary < 1:
            raise ZooError(f"The vocabulary needs at least 1 token, and got {vocabulary}.")
        network = Decoder(vocabulary=vocabulary, length=self.length, **self.decoder)
        return network, {"vocabulary": vocabulary, "length": self.length, **self.decoder}

    def flops(self) -> int:
        """6 per weight that multiplies, and 12 x layers x width x tokens for attention (PaLM, arXiv:2204.02311, B)."""
        network, geometry = cast(Decoder, self.network), self.trunk.geometry
        matrices = sum(p.numel() for block in self.trunk.blocks for p in block.parameters() if p.ndim == 2)
        width = geometry.heads * geometry.head_dim
        return 6 * (matrices + network.head.weight.numel()) + 12 * geometry.layers * width * self.extent()

    def extent(self) -> int:
        length = getattr(getattr(self.trainer, "datamodule", None), "length", None)
        return length or self.length

    def masks(self) -> frozenset[str]:
        window = self.decoder.get("window") is not None
        return frozenset(
            {"causal"} | ({"window"} if window else set()) | ({"document"} if self.within_documents else set())
        )

    def rehearse(self) -> None:
        given = self.vocabulary
        self.vocabulary = given or 2  # any will do; only the data know
        try:
            super().rehearse()
        finally:
            self.vocabulary = given

    def read(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and targets of a batch of tokens [batch, length + 1]."""
        tokens, documents = batch["tokens"], batch["documents"]
        targets = tokens[:, 1:]
        context: dict[str, Any] = {}
        if self.within_documents:
            context["documents"] = documents[:, :-1]
            targets = targets.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
        return cast(Decoder, self.network).hidden(tokens[:, :-1], **context), targets

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden, targets = self.read(batch)
        loss = cross_entropy(hidden, targets, cast(Decoder, self.network).head, self.chunk)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def measure(self, batch: dict[str, Tensor], stage: str) -> None:
        hidden, targets = self.read(batch)
        for part, target in chunks(hidden, targets, self.chunk):
            self.perplexity.update(cast(Decoder, self.network).head(part).float()[None], target[None])
        self.log(f"{stage}/perplexity", self.perplexity, prog_bar=True)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of each token in nats, [batch, length]; 0 where it does not count."""
        hidden, targets = self.read(batch)
        head = cast(Decoder, self.network).head
        losses = [
            functional.cross_entropy(head(part).float(), target, ignore_index=IGNORED, reduction="none")
            for part, target in chunks(hidden, targets, self.chunk)
        ]
        return torch.cat(losses).view_as(targets)


class ImageClassifier(Task):
    """Classification of images with a vision transformer.

    Args:
        classes: Number of classes (default: the data's).
        channels: Channels of an image (default: the data's).
        size: Height and width at first training, in pixels (default: the data's).
        smoothing: Label smoothing.
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings and encodings.
        schedule: Factor on the learning rate over the steps (default: constant).
        weights: Checkpoint whose weights the run starts from, with a fresh optimizer at step 0.
        compile: Run the network under torch.compile.
        **vit: The vision transformer, its position encoding and its kernel.
    """

    def __init__(
        self,
        *,
        classes: int | None = None,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        smoothing: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        compile: bool = False,
        **vit: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, weights=weights, compile=compile)
        self.classes, self.channels, self.size, self.smoothing = classes, channels, size, smoothing
        self.vit = vit  # alone on its line, as above
        self.accuracy: nn.Module | None = None

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        classes, channels = self.known("classes", self.classes), self.known("channels", self.channels)
        size = tuple(self.known("shape", self.size))
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        network = ViT(classes=classes, channels=channels, size=size, **self.vit)
        return network, {"classes": classes, "channels": channels, "size": list(size), **self.vit}

    def flops(self) -> int:
        """As for a decoder, per image."""
        geometry, tokens = self.trunk.geometry, self.extent()
        matrices = sum(p.numel() for block in self.trunk.blocks for p in block.parameters() if p.ndim == 2)
        width = geometry.heads * geometry.head_dim
        return tokens * (6 * matrices + 12 * geometry.layers * width * tokens)

    def extent(self) -> int:
        height, width = cast(ViT, self.network).grid
        return height * width + self.trunk.geometry.prefix

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = cast(nn.Module, self.network)(batch["images"]).float()
        loss = functional.cross_entropy(logits, batch["labels"], label_smoothing=self.smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def measure(self, batch: dict[str, Tensor], stage: str) -> None:
        logits = cast(nn.Module, self.network)(batch["images"]).float()
        self.log(f"{stage}/loss", functional.cross_entropy(logits, batch["labels"]), batch_size=len(logits))
        accuracy = cast(MulticlassAccuracy, self.accuracy)
        accuracy(logits, batch["labels"])
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(logits))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Probability of each class, [batch, classes]."""
        return cast(nn.Module, self.network)(batch["images"]).float().softmax(-1)
