"""How far a model reads, as a curve over its training: perplexity at several lengths, at every validation.

The same tokens of the same held-out documents are cut into windows of each length, so that nothing but the context
differs between two figures. A recipe switches it on in one line of its trainer section:

    callbacks: [LengthGeneralisation]

The run goes on as it would have without it: nothing is drawn, nothing is kept in the checkpoint, and the loaders are
not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.data.tokens import Blocks
from zoo.decoder import Decoder
from zoo.errors import ZooError, listing
from zoo.tasks import LanguageModel


class LengthGeneralisation(Callback):
    """Logs `val/perplexity@N` at each validation for several lengths N.

    From each document as many tokens are read as the greatest length has, from its beginning; all of them but the first
    are scored at every length, each once, in windows that share one token with the next. The figure is the exponential
    of the mean loss over all of these tokens, in the precision of the run. Lengths that the encoding cannot read, or
    that no document has, are named once and left out.

    Every process of a distributed run measures all of it and gets the same figures: models that are spread over the
    processes need all of them for each step, and their mean is what is logged.

    Args:
        lengths: Tokens of a window (default: 1, 2, 4 and 8 times the length that the model is trained at).
        documents: Documents that are read at most, spread over those that are long enough.
    """

    def __init__(self, lengths: list[int] | None = None, documents: int = 8) -> None:
        if documents < 1 or min(lengths or [1]) < 1 or lengths == []:
            raise ZooError(
                f"LengthGeneralisation reads documents, 1 or more, at lengths of 1 or more; got {documents} and "
                f"{lengths}."
            )
        self.lengths, self.documents = lengths, documents
        self.chosen: tuple[list[int], Tensor] | None = None
        """Lengths, and tokens [documents, greatest length + 1]; known at the first validation."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, LanguageModel):
            raise ZooError(
                f"LengthGeneralisation measures language models, and this is an {type(pl_module).__name__}. "
                "Leave it out of trainer.callbacks."
            )
        self.chosen = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task = cast(LanguageModel, pl_module)
        if trainer.sanity_checking:
            return
        if self.chosen is None:
            self.chosen = self.choose(trainer, task)
        lengths, texts = self.chosen
        for length in lengths:
            total = 0.0
            for tokens in windows(texts.to(task.device), length):
                batch = {"tokens": tokens, "documents": torch.zeros_like(tokens, dtype=torch.int32)}
                # The way of `zoo predict`: whatever precision and strategy do to a step, they do to this one.
                losses = trainer.strategy.predict_step(batch, 0)
                total += float(losses.double().sum())
            mean = torch.tensor(total / texts[:, 1:].numel(), dtype=torch.float64)
            task.log(f"val/perplexity@{length}", mean.exp().float(), sync_dist=True)

    def choose(self, trainer: Trainer, task: LanguageModel) -> tuple[list[int], Tensor]:
        """The lengths that can be measured, and the text that they are measured on."""
        blocks = getattr(trainer.val_dataloaders, "dataset", None)
        if not isinstance(blocks, Blocks):
            raise ZooError("LengthGeneralisation reads the documents of zoo's Text.   Try:  --data Text")
        wanted = sorted(set(self.lengths or [task.length * times for times in (1, 2, 4, 8)]))
        refused = {length: reason for length in wanted if (reason := cast(Decoder, task.network).refusal(length))}
        starts = blocks.stored.starts.clip(min=blocks.gap)  # what stands before the gap was cut from training text
        sizes = np.diff(starts)
        longest = int(max(sizes, default=0))
        absent = [length for length in wanted if length not in refused and length >= longest]
        lengths = [length for length in wanted if length not in refused and length < longest]
        if refused:
            rank_zero_info(f"Perplexity at {words(refused)} is left out. {next(iter(refused.values()))}")
        if absent:
            rank_zero_info(
                f"Perplexity at {words(absent)} is left out: the longest of {len(sizes)} validation documents has "
                f"{longest} tokens, and one more than are read is needed."
            )
        longest = lengths[-1] if lengths else 0
        (found,) = np.nonzero(sizes > longest)
        picked = found[np.linspace(0, len(found) - 1, min(self.documents, len(found))).round().astype(int)]
        if lengths:
            rank_zero_info(
                f"Length generalisation: perplexity at {words(lengths)} on the first {longest} tokens of {len(picked)} "
                "validation documents"
            )
        rows = [blocks.stored.tokens[starts[n] : starts[n] + longest + 1].astype(np.int64) for n in picked]
        return lengths, torch.from_numpy(np.stack(rows)) if lengths else torch.empty(0, 1, dtype=torch.int64)


def windows(texts: Tensor, length: int) -> Iterator[Tensor]:
    """Texts [documents, tokens] as batches of windows of `length` + 1 tokens, each starting with the last token before.

    A batch is of one document. Where the length does not divide a document its last window is shorter.
    """
    for text in texts:
        whole = (len(text) - 1) // length
        if whole:
            yield text.unfold(0, length + 1, length)
        if len(text) - 1 > whole * length:
            yield text[None, whole * length :]


def words(lengths: Iterable[int]) -> str:
    """'128, 256 tokens'."""
    return f"{listing(map(str, lengths))} tokens"
