"""The two tasks: next-token prediction with a decoder, classification with a vision transformer."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, distributed, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from zoo.adapter import Adapter
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.loss import IGNORED, chunks, cross_entropy, surprises
from zoo.metrics import MeanLoss, Perplexity
from zoo.scale import sequence
from zoo.schedules import Schedule
from zoo.task import Task
from zoo.vit import ViT

MOST = 2**24
"""Positions are float32, which holds every whole number up to here."""

__all__ = ["ImageClassifier", "LanguageModel", "Task"]


class LanguageModel(Task):
    """Next-token prediction with a decoder.

    Args:
        vocabulary: Number of token ids (default: the tokenizer's).
        length: Tokens of a sequence at first training; it never changes afterwards.
        chunk: Tokens whose logits are held at once.
        within_documents: Tokens see their own document only, and positions start anew in each.
        random_positions: Train on sorted positions drawn below this number, a new draw for each batch
            (Ruoss et al. 2023, arXiv:2305.16843); validation and test count from 0 (default: always count).
        sequence_parallel: Neighbouring processes that share each sequence, so that it may be as many times longer in
            the same memory (DeepSpeed-Ulysses, arXiv:2309.14509). Of the machine, not of the model: no checkpoint
            keeps it, and a run may be continued with another number.
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings, encodings, kernels.
        schedule: Factor on the learning rate over the steps (default: constant).
        weights: Checkpoint whose weights the run starts from, with a fresh optimizer at step 0.
        compile: Run the network under torch.compile.
        adapter: What is trained beside frozen weights, in their place (default: all weights are trained).
        **decoder: The decoder, its position encoding and its kernel.
    """

    def __init__(
        self,
        *,
        vocabulary: int | None = None,
        length: int = 1024,
        chunk: int = 8192,
        within_documents: bool = False,
        random_positions: int | None = None,
        sequence_parallel: int = 1,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        weights: str | None = None,
        compile: bool = False,
        adapter: Adapter | None = None,
        **decoder: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, weights=weights, compile=compile, adapter=adapter)
        if chunk < 1:
            raise ZooError(f"chunk is a number of tokens, at least 1, and got {chunk}.")
        if random_positions is not None and not length <= random_positions <= MOST:
            raise ZooError(
                f"{length} tokens cannot have different positions below {random_positions}: it takes {length} to "
                f"{MOST}, where float32 still tells them apart.   Try:  --model.random_positions {4 * length}"
            )
        if sequence_parallel < 1:
            raise ZooError(f"sequence_parallel is a number of processes, at least 1, and got {sequence_parallel}.")
        if within_documents and decoder.get("sinks"):
            raise ZooError("The sinks of packed documents would be those of the first one: leave out --model.sinks.")
        self.vocabulary, self.length, self.chunk = vocabulary, length, chunk
        self.within_documents, self.random_positions = within_documents, random_positions
        self.sequence_parallel = sequence_parallel
        self.parallel: sequence.Slice | None = None
        """This process's share of each sequence, where several have one."""
        self.decoder = decoder  # alone on its line: this is how the command line finds the decoder's own arguments
        self.perplexity, self.mean_loss = Perplexity(), MeanLoss()

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        vocabulary = self.known("vocabulary", self.vocabulary)
        ids = getattr(getattr(self._trainer, "datamodule", None), "vocabulary", 1)
        if vocabulary < ids:
            raise ZooError(f"A vocabulary of {vocabulary} is too small: the tokenizer has {ids} ids.")
        network = Decoder(vocabulary=vocabulary, length=self.length, **self.decoder)
        if self.sequence_parallel > 1:
            sequence.fit(self.sequence_parallel, network.trunk.position, network.trunk.kernel)
        if self.random_positions is not None:  # an encoding that ends before them says so now
            at = torch.zeros(1, 1)
            hidden = torch.zeros(1, 1, network.trunk.geometry.dim)
            network.trunk.position(at, at, self.random_positions, hidden)
        return network, {"vocabulary": vocabulary, "length": self.length, **self.decoder}

    def configure_model(self) -> None:
        if self.sequence_parallel > 1 and self.parallel is None:
            self.parallel = sequence.join(self.sequence_parallel)
        super().configure_model()

    def verify(self) -> None:
        if self.extent() % self.sequence_parallel:
            raise ZooError(sequence.uneven(self.extent(), self.sequence_parallel))
        super().verify()

    def flops(self) -> int:
        """6 per weight that multiplies, and 12 x layers x width x tokens for attention (PaLM, arXiv:2204.02311, B).

        A frozen weight, which has no gradient of its own, takes 4.
        """
        network, geometry = cast(Decoder, self.network), self.trunk.geometry
        matrices = [p for block in self.trunk.blocks for p in block.parameters() if p.ndim == 2]
        weights = sum((6 if p.requires_grad else 4) * p.numel() for p in [*matrices, network.head.weight])
        width = geometry.heads * geometry.head_dim
        return weights + 12 * geometry.layers * width * self.extent()

    def extent(self) -> int:
        length = getattr(getattr(self.trainer, "datamodule", None), "length", None)
        return length or self.length

    @property
    def reach(self) -> int:
        """Tokens that the model reads: those of first training, or what it has been extended to."""
        return self.decoder.get("reach") or self.length

    def on_fit_start(self) -> None:
        size, data = self.extent(), getattr(self.trainer, "datamodule", None)
        if size > self.reach and self.reach > self.length:
            raise ZooError(
                f"Blocks of {size} tokens do not fit a model that has been extended to {self.reach}.   "
                f"Try:  --data.length {self.reach}, or zoo extend --to {size}"
            )
        if size != self.length and self.reach == self.length:
            raise ZooError(
                f"Blocks of {size} tokens do not fit a model of length {self.length}, which is its length at "
                f"first training.   Try:  --model.length {size}, or leave --data.length out"
            )
        placed = getattr(data, "positions", "full")
        if placed != "full" and (self.random_positions is not None or self.within_documents):
            other = "within_documents" if self.within_documents else "random_positions"
            raise ZooError(
                f"{other} decides on the positions, and so does --data.positions {placed}. Leave one of the two out."
            )
        if placed == "full" and size < self.reach:
            rank_zero_only(print)(
                f"zoo: blocks of {size} tokens train the first of the {self.reach} positions that this model reads.   "
                f"For all:  --data.length {self.reach}, or --data.positions pose",
                file=sys.stderr,
            )
        super().on_fit_start()

    def tuning(self) -> dict[str, Any]:
        placed = getattr(getattr(self.trainer, "datamodule", None), "positions", "full")
        return {**super().tuning(), "length": self.extent(), "positions": placed}

    def draws(self) -> bool:
        return super().draws() or self.random_positions is not None

    def masks(self) -> frozenset[str]:
        window = self.decoder.get("window") is not None
        return frozenset(
            {"causal"} | ({"window"} if window else set()) | ({"document"} if self.within_documents else set())
        )

    def rehearse(self, processes: int = 1) -> None:
        sequence.enough(self.sequence_parallel, processes)
        given = self.vocabulary
        self.vocabulary = given or 2  # any will do; only the data know
        try:
            super().rehearse(processes)
        finally:
            self.vocabulary = given

    def read(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states and targets of a batch of tokens [batch, length + 1]: this process's, where several share it.

        The extent is that of the blocks; where the data place them over the model's reach it is the reach.
        """
        tokens, documents = batch["tokens"], batch["documents"]
        targets = tokens[:, 1:]
        context: dict[str, Any] = {}
        if self.training and self.random_positions is not None:
            drawn = torch.randperm(self.random_positions)[: targets.shape[1]].to(tokens.device)
            if self.parallel is not None:
                drawn = self.parallel.alike(drawn)
            if self.within_documents:  # sorted by document first, so that each has its share of all that was drawn
                drawn = drawn + documents[:, :-1].long() * self.random_positions
            drawn = drawn.sort(-1).values % self.random_positions
            context = {"positions": drawn, "extent": self.random_positions}
        elif "positions" in batch:  # spread over the reach, which a dynamic method is then told, as it will be in use
            context = {"positions": batch["positions"], "extent": self.reach}
        if self.within_documents:
            context["documents"] = documents[:, :-1]
            targets = targets.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
        if not self.training:  # what is there for other processes' sake
            targets = targets.masked_fill(documents[:, 1:] < 0, IGNORED)
        if self.parallel is not None:
            context["parallel"], targets = self.parallel, self.parallel.tokens(targets)
        return cast(Decoder, self.network).hidden(tokens[:, :-1], **context), targets

    def count(self, targets: Tensor) -> Tensor:
        """How many targets an average process has that count.

        Strategies average gradients over all processes, as logging does losses. Sums over this many targets have the
        average that one process would find for all tokens, however they are spread.
        """
        count = (targets != IGNORED).sum()
        if not self.within_documents or not distributed.is_initialized():  # all targets count, everywhere as many
            return count.clamp(min=1)
        distributed.all_reduce(count)
        return count.clamp(min=1) / distributed.get_world_size()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden, targets = self.read(batch)
        loss = cross_entropy(hidden, targets, cast(Decoder, self.network).head, self.chunk, self.count(targets))
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def measure(self, batch: dict[str, Tensor], stage: str) -> None:
        hidden, targets = self.read(batch)
        with torch.no_grad():
            for part, target in chunks(hidden, targets, self.chunk):
                counts = target != IGNORED
                # As float32 the logits may be those that the head gave: `surprises` overwrites them.
                losses = surprises(cast(Decoder, self.network).head(part).float(), target)
                total = torch.where(counts, losses, 0.0).sum()
                for metric in (self.perplexity, self.mean_loss):
                    metric.update(total, counts.sum())
        self.log(f"{stage}/loss", self.mean_loss)
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
        found = torch.cat(losses).view_as(targets)
        return found if self.parallel is None else self.parallel.gather(found)


class ImageClassifier(Task):
    """Classification of images with a vision transformer.

    Args:
        classes: Number of classes (default: the data's).
        channels: Channels of an image (default: the data's).
        size: Height and width at first training, in pixels (default: the data's).
        smoothing: Label smoothing.
        optimizer: Optimizer and its own arguments; weight decay spares norms, biases, embeddings, encodings, kernels.
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
        logits, labels = cast(nn.Module, self.network)(batch["images"]).float(), batch["labels"]
        counts = labels != IGNORED  # others are there for other processes' sake
        logits, labels = logits[counts], labels[counts]
        loss = functional.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        accuracy = cast(MulticlassAccuracy, self.accuracy)
        if len(labels):
            accuracy.update(logits, labels)
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(batch["labels"]))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.measure(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Probability of each class, [batch, classes]."""
        return cast(nn.Module, self.network)(batch["images"]).float().softmax(-1)
