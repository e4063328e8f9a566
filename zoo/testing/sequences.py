"""The exam's questions about how sequences are fed: token by token from a cache, packed into one, padded into rows.

Each must give what a plain forward pass gives. That takes encoding and kernel together, since one counts positions and
the other buffer indices, so it is asked through every installed kernel that does not refuse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from itertools import pairwise

import torch

from zoo import plugins
from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.errors import ZooError
from zoo.kernel import Eager
from zoo.testing.probe import Skip, Subject, blame, check, close, content, decoder, line, models, size, some, weights


def everywhere(
    subject: Subject,
    kind: str,
    length: int,
    ask: Callable[[Decoder, str, float], None],
    kernels: Collection[str] | None = None,
) -> None:
    """Ask a decoder with each kernel, in float64 where the kernel has that, about sequences under a kind of mask.

    Eager must answer. Another kernel may refuse, even as late as when it is called.

    Args:
        subject: The position encoding or kernel under examination.
        kind: Of mask, beside causal.
        length: The trained length.
        ask: What is asked of a decoder, with the name of its kernel and the tolerance.
        kernels: Names of those that are tried beside Eager (default: all that are installed).
    """
    ask(decoder(subject, length=length), "Eager", 1e-5)
    mask = frozenset({"causal", kind})
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in plugins.classes("zoo.kernels").items():
            if kernels is not None and name not in kernels:
                continue
            for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)) if kernel is not Eager else ():
                try:
                    model = decoder(subject, length=length, kernel=kernel).to(dtype)
                    model.trunk.check(device="cpu", dtype=dtype, training=False, mask=mask, extent=24)
                    with blame(f"Through the kernel {name}"):
                        ask(model, name, tolerance)
                except (Skip, ZooError):
                    continue
                break


@check
def decoding(subject: Subject, kernels: Collection[str] | None = None) -> None:
    """Decoding token by token from a cache gives the logits of the full forward of the same extent, on any kernel."""
    tokens, parts = torch.arange(48).view(2, 24) * 7 % 32, (9, 1, 1, 5, 1, 7)
    padding = torch.tensor([4, 0])

    def ask(model: Decoder, kernel: str, tolerance: float) -> None:
        try:
            full = model(tokens, extent=24, padding=padding)
        except ZooError:
            return  # a table may end before
        cache = Cache(24)
        steps = torch.cat([model(part, cache=cache, padding=padding) for part in tokens.split(parts, 1)], 1)
        for row, hidden in enumerate(padding):
            close(
                steps[row, hidden:],
                full[row, hidden:],
                tolerance,
                f"Logits of cached decoding are not those of the full forward (kernel {kernel}, trained length "
                f"{model.length}, extent 24): use the keys' own positions, choose by `extent` and not by the tokens at "
                "hand, keep content in `state`.",
            )

    for length in (16, 64):  # beyond its training length where it can go there
        everywhere(subject, "padding", length, ask, kernels)


@check
def packing(subject: Subject) -> None:
    """Documents packed into one sequence give the logits that each of them gives alone, on any kernel."""
    tokens = torch.arange(48).view(2, 24) * 5 % 32
    ends = (0, 5, 14, 24), (0, 11, 12, 24)
    documents = torch.stack([torch.bucketize(torch.arange(24), torch.tensor(e[1:-1]), right=True) for e in ends])

    def ask(model: Decoder, kernel: str, tolerance: float) -> None:
        together = model(tokens, documents=documents, extent=24)
        for row, borders in enumerate(ends):
            for start, stop in pairwise(borders):
                close(
                    together[row, start:stop],
                    model(tokens[row : row + 1, start:stop], extent=24)[0],
                    tolerance,
                    f"The document at {start}..{stop} of row {row} gives other logits when packed with others (kernel "
                    f"{kernel}): positions start anew in each document, and nothing may be counted across.",
                )

    everywhere(subject, "document", 64, ask)


@check
def rows(subject: Subject) -> None:
    """Positions that differ between the rows of a batch, as with padding, give what each row gives alone."""
    for model in models(subject):
        cases = [line(12), line(12, 5), torch.cat((line(7), line(5)))]
        if model.geometry.axes == 2:
            cases = [some(model)[order] for order in (torch.arange(12), torch.arange(12).flip(0), torch.randperm(12))]
        together = weights(model, torch.stack(cases), size(model))
        for number, positions in enumerate(cases):
            x = content()[number : number + 1, : model.geometry.prefix + 12]
            close(
                together[number],
                weights(model, positions, size(model), x)[0],
                1e-5,
                f"Row {number} of a batch with positions [batch, tokens, axes] attends differently than alone.",
            )
    words = decoder(subject)
    tokens, padding = torch.arange(40).view(2, 20) * 7 % 32, torch.tensor([6, 0])
    close(
        words(tokens, padding=padding, extent=20)[0, 6:],
        words(tokens[:1, 6:], extent=20)[0],
        1e-5,
        "A row with padding to its left gives other logits than the row without it.",
    )
