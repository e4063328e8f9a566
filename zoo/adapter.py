"""LoRA by peft: a run that trains small matrices beside frozen ones.

What it leaves holds both, so that it can go on. Whoever reads the weights gets their sum (`checkpoints.adapted`), and
so does the next run: only training needs peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Kernel

Target = Literal["qkv", "out", "up", "down"]
Whole = Literal["positions", "kernels", "norms", "embeddings"]


class Adapter:
    """Base class: what is trained in the place of all weights."""

    def inject(self, network: Decoder) -> None:
        """Freeze a network, in place, but for what is trained."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        raise NotImplementedError


class LoRA(Adapter):
    """Frozen matrices W, each with a trained one of low rank: W + alpha / rank B A (Hu et al. 2021, arXiv:2106.09685).

    B starts at 0, so a run starts from the model that it was given. Queries, keys and values are one matrix here, as
    are gate and value of a feed-forward layer, and share their A. Needs the extra `lora`.

    Args:
        rank: Rows of A and columns of B.
        alpha: Numerator of the factor on B A.
        dropout: Probability of dropping a channel of what A reads.
        targets: Matrices of each block: attention's input (qkv) and output (out), the feed-forward layer's (up, down).
        whole: What is trained as it is beside them, the encoding unless told otherwise. LongLoRA (Chen et al. 2023,
            arXiv:2309.12307), which makes a model read further, says: norms and embeddings.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[Target] = ("qkv", "out", "up", "down"),
        whole: Sequence[Whole] = ("positions",),
    ) -> None:
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise ZooError(
                "LoRA takes a rank of at least 1, an alpha above 0, and a dropout of at least 0 and below 1; got "
                f"{rank}, {alpha} and {dropout}."
            )
        if not targets:
            raise ZooError("LoRA without targets would train nothing of its own.   Try:  targets: [qkv, out]")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.targets, self.whole = tuple(dict.fromkeys(targets)), tuple(dict.fromkeys(whole))

    def inject(self, network: Decoder) -> None:
        """Freeze a network and put the matrices beside those of its blocks, in place.

        Raises ZooError without peft.
        """
        if find_spec("peft") is None:
            raise ZooError("LoRA is peft's, which is not installed.   Try:  pip install 'positionzoo[lora]'")
        from peft import LoraConfig, inject_adapter_in_model  # which takes seconds

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            target_modules=rf"trunk\.blocks\.\d+\.(attention|feed_forward)\.({'|'.join(self.targets)})",
        )
        inject_adapter_in_model(config, network)
        for module in self.others(network):
            module.requires_grad_()

    def others(self, network: Decoder) -> list[nn.Module]:
        """The modules that are trained whole."""
        modules = list(network.modules())
        found: dict[str, list[nn.Module]] = {
            "positions": [network.trunk.positions],
            "kernels": [each for each in modules if isinstance(each, Kernel)],
            "norms": [each for each in modules if isinstance(each, nn.RMSNorm | nn.LayerNorm)],
            "embeddings": [network.embedding],
        }
        return [module for name in self.whole for module in found[name]]

    def described(self) -> dict[str, Any]:
        lists = {"targets": list(self.targets), "whole": list(self.whole)}
        return {"method": "LoRA", "rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, **lists}
