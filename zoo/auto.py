"""Auto: the kernel that chooses among the installed kernels of the softmax form when the request is known."""

from __future__ import annotations

import logging
from functools import cache
from typing import cast

import torch
from torch import Tensor

from zoo import plugins
from zoo.bias import Bias, Logits, carries, rung
from zoo.errors import ZooError
from zoo.kernel import Kernel, Mask, Request
from zoo.position import Geometry

log = logging.getLogger(__name__)

DENSE = 2**20
"""Logits of one example up to which, on a CPU, a fixed bias and a mask are faster as tensors (measured: the two meet
between 2^19 and 2^21). A bias that learns leaves torch's fused kernels, and gets a quarter of it."""

NAMES = ("SDPA", "Flex", "Tiled", "Eager")
"""Among whom it chooses."""


class Auto(Kernel):
    """The fastest installed kernel of the softmax form that serves the request, chosen when the request is known.

    It logs its choice once and says why faster kernels were passed over. Order: without a bias SDPA; with one, on CUDA,
    Flex, then SDPA; elsewhere SDPA while bias and mask are small, else Tiled; Eager last.
    """

    fuses = Logits

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.kernels: dict[tuple[object, ...], Kernel] = {}
        """What was chosen, by all that a choice depends on."""
        self.built: dict[str, Kernel | ZooError] = {}
        """What there is to choose from, or why it cannot be built."""

    def ready(self) -> None:
        """Build all that there is to choose from: torch.compile cannot, and imports take their time elsewhere."""
        self.built = {name: self.build(name) for name in NAMES}

    def build(self, name: str) -> Kernel | ZooError:
        """A kernel by its name, or why there is none."""
        try:
            return cast(Kernel, plugins.load("zoo.kernels", name)(self.geometry))
        except ZooError as error:
            return error

    @staticmethod
    def order(request: Request) -> tuple[str, ...]:
        """Names of kernels, the fastest first."""
        if request.rung is None and request.mask <= {"causal"}:
            return "SDPA", "Tiled", "Eager"
        if request.device == "cuda":
            return "Flex", "SDPA", "Tiled", "Eager"
        if small(request.size or 0, bool(request.learned)):
            return "SDPA", "Tiled", "Eager"
        return "Tiled", "SDPA", "Eager"

    def choose(self, request: Request) -> Kernel:
        """The kernel for a request; a sentence where none serves it."""
        passed: list[str] = []
        for name in self.order(request):
            if name not in self.built:
                self.built[name] = self.build(name)
            kernel = self.built[name]
            if isinstance(kernel, ZooError):
                passed.append(f"{name}: {kernel}")
                continue
            reasons = kernel.refuses(request)
            if not carries(kernel.fuses, request.rung):
                reasons = [f"does not carry a {request.rung.__name__} bias" if request.rung else "", *reasons]
            if not reasons:
                if not torch.compiler.is_compiling():  # it has been said when a run was set up
                    say(f"kernel: Auto chose {name} on {request.device}" + "".join(f"; not {line}" for line in passed))
                return kernel
            passed.append(f"{name} ({reasons[0].rstrip('.')})")
        raise ZooError("No installed kernel serves this model. " + " ".join(f"Not {line}." for line in passed))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Bias | None = None, mask: Mask | None = None, scale: float = 1.0
    ) -> Tensor:
        mask = mask or Mask()
        size, training = q.shape[1] * q.shape[2] * k.shape[2], torch.is_grad_enabled() and q.requires_grad
        learned = torch.is_grad_enabled() and bias is not None and any(t.requires_grad for t in bias.tensors)
        # A tuple is cheaper than a request, and this happens for every token.
        few = small(size, learned)
        key = type(bias), mask.kinds, q.shape[-1], v.shape[-1], q.device, q.dtype, training, learned, few
        kernel = self.kernels.get(key)
        if kernel is None:
            request = Request(
                rung=rung(bias),
                mask=mask.kinds,
                head_dim=q.shape[-1],
                value_dim=v.shape[-1],
                device=q.device.type,
                dtype=q.dtype,
                training=training,
                learned=learned,
                size=size,
            )
            kernel = self.choose(request)
            if not torch.compiler.is_compiling():  # which chooses once, and may not write into what it did not make
                self.kernels[key] = kernel
        if kernel.share != self.share:
            kernel.share = self.share
        return kernel(q, k, v, bias=bias, mask=mask, scale=scale)


def small(size: int, learned: bool) -> bool:
    """Whether so many logits of one example are few enough for a dense bias."""
    return size <= (DENSE // 4 if learned else DENSE)


@cache
def say(line: str) -> None:
    """Log a line once, however many blocks and steps repeat it."""
    log.info(line)
