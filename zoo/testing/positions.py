"""The exam for position encodings: each check is one promise of the contract, tried on a small model.

Almost every check looks at attention weights rather than at what the encoding returns, so that it holds for
embeddings, rotations, biases and scales alike, and for whatever combines them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bias import Logits
from zoo.cache import Cache
from zoo.errors import ZooError
from zoo.kernel import Eager
from zoo.position import Encoding, Rotation
from zoo.testing.gradients import gradients, tensors
from zoo.testing.probe import (
    GEOMETRY,
    GRID,
    STD,
    Skip,
    Subject,
    build,
    check,
    close,
    content,
    decoder,
    encode,
    line,
    settle,
    title,
    trunk,
    weights,
)
from zoo.testing.settings import keywords, settings
from zoo.trunk import Trunk
from zoo.vit import ViT, grid

FAR, EXTENT = 32_000, 32_768
"""Where half precision has lost the positions: bf16 holds no odd integer beyond 256."""


def end(model: Trunk) -> tuple[int, int]:
    """The farthest position that is looked at, and the extent: the end of its table for an encoding that has one."""
    try:
        weights(model, line(2, FAR), EXTENT)
    except ZooError:
        return model.geometry.length[0] - 10, model.geometry.length[0]
    return FAR, EXTENT


@check
def precision(subject: Subject) -> None:
    """Cast to bfloat16, the module keeps float32 parameters and agrees with its float64 self at position 32 000."""
    half, exact = trunk(subject), trunk(subject).double()
    half.position.to(torch.bfloat16)
    for name, tensor in half.position.state_dict().items():
        assert tensor.dtype not in (torch.bfloat16, torch.float16), (
            f"{name} became {tensor.dtype}: leave `_apply` of PositionEncoding in place, it keeps them float32."
        )
    far, extent = end(half)
    positions = line(10, far)
    close(
        weights(half, positions, extent),
        weights(exact, positions.double(), extent),
        1e-2,
        f"Attention near position {far} changes when the module is cast to bfloat16: compute angles and distances in "
        "float32, whatever the model's precision.",
    )
    for model in (half, exact):  # the same garbage in both would agree
        near, there = (told_apart(model, start, extent) for start in (0, far))
        assert there or not near, (
            f"Positions {far} and {far + 1} get the same encoding, 0 and 1 do not: they were rounded on the way."
        )


def told_apart(model: Trunk, start: int, extent: int) -> bool:
    """Whether a query one token further on attends differently to the key at `start`."""
    same, next_ = (weights(model, torch.tensor([[start], [start + step]]).float(), extent) for step in (0, 1))
    return bool((same - next_).abs().max() > 1e-7)


@check
def decoding(subject: Subject) -> None:
    """Decoding token by token from a cache gives the logits of the full forward of the same extent."""
    tokens, parts = torch.arange(48).view(2, 24) * 7 % 32, (9, 1, 1, 5, 1, 7)
    for length in (16, 64):  # beyond its training length where it can go there
        model = decoder(subject, length=length)
        try:
            full = model(tokens, extent=24)
        except ZooError:
            continue
        cache = Cache(24)
        steps = torch.cat([model(part, cache=cache) for part in tokens.split(parts, 1)], 1)
        close(
            steps,
            full,
            1e-5,
            f"Logits of cached decoding are not those of the full forward (trained length {length}, extent 24): "
            "use the keys' own positions, choose by `extent` and not by the tokens at hand, keep content in `state`.",
        )


@check
def shift(subject: Subject) -> None:
    """Attention does not change when all positions move together, if and only if the encoding says `relative`."""
    model = trunk(subject)
    far, extent = end(model)
    moves = {17: 1e-4, 40: 1e-4, **({far - 1000: 1e-2} if far == FAR else {})}
    still = weights(model, line(16), extent)
    moved = {by: float((weights(model, line(16, by), extent) - still).abs().max()) for by in moves}
    name = title(subject)
    if model.position.relative:
        for by, tolerance in moves.items():
            assert moved[by] <= tolerance, (
                f"{name} claims to be relative, yet attention changes by {moved[by]:.2g} when all positions move "
                f"by {by}: set `relative = False`, or find what depends on the absolute position."
            )
    else:
        assert any(moved[by] > moves[by] for by in moves), (
            f"{name} does not claim to be relative, yet moving all positions changes nothing: say `relative = True`, "
            "or find where the positions get lost."
        )


@check
def growth(subject: Subject) -> None:
    """A token's attention does not change when later tokens arrive, as long as the extent stays the same."""
    model = trunk(subject)
    short, long = (weights(model, line(tokens), 64) for tokens in (12, 20))
    close(
        long[..., :12, :12],
        short,
        1e-6,
        "The attention of the first 12 tokens changes when 8 more follow: nothing may depend on the number of tokens "
        "at hand (use `extent`) or on later ones.",
    )


@check
def registers(subject: Subject) -> None:
    """In a vision transformer registers have no position, and every patch of a grid that is not square has its own."""
    model, prefix = trunk(subject, GRID), GRID.prefix
    positions, x = grid(4, 6), content()[:1, : prefix + 24]
    order = torch.randperm(24)
    both = torch.cat((torch.arange(prefix), order + prefix))
    moved = weights(model, positions[order], 24, x[:, both])
    close(
        moved,
        weights(model, positions, 24, x)[..., both, :][..., both],
        1e-5,
        "Patches given in another order, with their positions, attend differently: read `queries` and `keys`, "
        "do not number the tokens.",
    )
    plain = weights(model, positions, 24, content()[:1, :1].expand(1, prefix + 24, -1))[0, :, prefix:].transpose(0, 1)
    gaps = (plain.unsqueeze(0) - plain.unsqueeze(1)).abs().flatten(2).amax(-1) + torch.eye(24)
    if gaps.triu(1).max() > 1e-7:  # it does tell positions
        first, second = divmod(int(gaps.argmin()), 24)
        assert gaps.min() > 1e-7, (
            f"On a grid of 4 x 6 the patches (row, column) {divmod(first, 6)} and {divmod(second, 6)} get the same "
            "encoding: use both axes, and each axis's own length."
        )
    vit = image_model(subject)
    image = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    logits = vit(image)
    with torch.no_grad():
        vit.prefix.copy_(vit.prefix[torch.tensor([2, 0, 1])])
    close(vit(image), logits, 1e-5, "Permuted registers change the result: they have no position.")
    try:
        turned = vit(image.mT)
    except ZooError:
        return  # it is bound to its grid, and says so
    assert turned.isfinite().all(), "An image of another shape gives results that are not finite."


def image_model(subject: Subject) -> ViT:
    """A vision transformer over 4 x 6 patches with three registers."""
    sizes: dict[str, Any] = {"classes": 5, "channels": 1, "size": (8, 12), "patch": 2, "pool": "mean", "registers": 3}

    def make(g: Any) -> ViT:
        return ViT(
            **sizes, dim=g.dim, heads=g.heads, kv_heads=g.kv_heads, layers=2, position=subject, kernel=Eager, std=STD
        )

    model: ViT = build(make, GRID)
    settle(model.trunk)
    nn.init.normal_(model.prefix)
    nn.init.normal_(model.head.weight)
    for part in (model.embedding, model.head):
        part.double()
    model.prefix.data = model.prefix.data.double()
    return model.eval()


@check
def storage(subject: Subject) -> None:
    """A state dict stores all that training or chance has set: loaded into another module it gives the same bits."""
    model, other, file = trunk(subject), trunk(subject, seed=5), io.BytesIO()
    torch.save(model.position.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.position.load_state_dict(state)
    for name, tensor in other.position.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} is not what was stored after loading a state dict."
    gap = weights(model, line(20), 64) - weights(other, line(20), 64)
    assert not gap.any(), (
        "A module loaded from a state dict does not give the same bits: something random is neither parameter nor "
        "persistent buffer, or a cache outlives the loading."
    )


@check
def rows(subject: Subject) -> None:
    """Positions that differ between the rows of a batch, as with padding, give what each row gives alone."""
    model, cases = trunk(subject), [line(12), line(12, 5), torch.cat((line(7), line(5)))]
    together = weights(model, torch.stack(cases), 64)
    for number, positions in enumerate(cases):
        close(
            together[number],
            weights(model, positions, 64, content()[number : number + 1, :12])[0],
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


@check
def packing(subject: Subject) -> None:
    """Documents packed into one sequence give the logits that each of them gives alone."""
    model = decoder(subject)
    tokens = torch.arange(48).view(2, 24) * 5 % 32
    ends = (0, 5, 14, 24), (0, 11, 12, 24)
    documents = torch.stack([torch.bucketize(torch.arange(24), torch.tensor(e[1:-1]), right=True) for e in ends])
    together = model(tokens, documents=documents, extent=24)
    for row, borders in enumerate(ends):
        for start, stop in pairwise(borders):
            close(
                together[row, start:stop],
                model(tokens[row : row + 1, start:stop], extent=24)[0],
                1e-5,
                f"The document at {start}..{stop} of row {row} gives other logits when packed with others: positions "
                "start anew in each document, and nothing may be counted across.",
            )


@check
def geometry(subject: Subject) -> None:
    """A geometry that it cannot serve is refused with a ZooError, one that it serves gives finite numbers."""
    cases: dict[str, Any] = {
        "the usual decoder": {},
        "a vision transformer": {"length": (4, 6), "prefix": 3, "causal": False},
        "heads of odd width": {"head_dim": 7},
        "heads of width 2": {"head_dim": 2},
        "heads of width 6 in 2-D": {"head_dim": 6, "length": (4, 6), "causal": False},
        "three axes": {"length": (2, 3, 4), "causal": False},
        "a single head": {"heads": 1, "kv_heads": 1},
        "three heads": {"heads": 3, "kv_heads": 3},
        "one key head": {"kv_heads": 1},
        "a length of 1": {"length": (1,)},
        "an encoder of text with a class token": {"causal": False, "prefix": 1},
    }
    served, reason = 0, ""
    for case, change in cases.items():
        g = replace(GEOMETRY, **change)
        for extent in (g.length[0], 4 * g.length[0]):
            axes = [torch.arange(min(size, 8)) for size in g.length]
            positions = torch.cartesian_prod(*axes).float().view(-1, g.axes)
            try:
                encoding = encode(subject(g), positions, extent)
                found = [*parts(encoding)]
            except ZooError as error:
                reason = str(error)
                assert reason, f"For {case} the refusal is empty: say what was asked, why not, and what would work."
                continue
            except Exception as error:
                raise AssertionError(
                    f"For {case} ({g}) it raises {type(error).__name__}: {error}. What it cannot serve it must refuse "
                    "with a ZooError that says why."
                ) from error
            served += 1
            for name, tensor in found:
                assert tensor.isfinite().all(), f"For {case} the {name} is not finite: refuse it, or repair it."
            if encoding.bias is not None and not isinstance(encoding.bias, Logits):
                tokens = slice(0, g.prefix + len(positions))
                found_shape, shape = encoding.bias.block(tokens, tokens).shape[1:], (g.heads, tokens.stop, tokens.stop)
                assert found_shape == shape, (
                    f"For {case} the bias is {tuple(found_shape)}, and [heads, queries, keys] are {shape}, prefix "
                    "included: give the rung prefix=geometry.prefix."
                )
    assert served, f"It refuses every geometry that was tried. The last reason: {reason}"


def parts(encoding: Encoding) -> Iterator[tuple[str, Tensor]]:
    """The floating tensors of an encoding, by the place that they serve."""
    if encoding.embedding is not None:
        yield "embedding", encoding.embedding
    if isinstance(encoding.rotation, Rotation):
        yield "rotation's cos", encoding.rotation.cos
        yield "rotation's sin", encoding.rotation.sin
    if encoding.bias is not None:
        yield from (("bias", tensor) for tensor in encoding.bias.tensors if tensor.is_floating_point())
    if isinstance(encoding.scale, Tensor):
        yield "scale", encoding.scale


@check
def autocast(subject: Subject) -> None:
    """Under bf16 autocast it computes in float32, and returns float32."""
    model = trunk(subject)
    positions = line(16, 40)
    plain = dict(enumerate(parts(encode(model.position, positions, 64))))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = dict(enumerate(parts(encode(model.position, positions, 64))))
    if not plain:
        raise Skip(f"{title(subject)} returns no tensors.")
    for number, (name, tensor) in plain.items():
        found = mixed[number][1]
        assert found.dtype == torch.float32, f"Under autocast the {name} is {found.dtype}, not float32."
        close(
            found,
            tensor,
            1e-5 * (1 + float(tensor.abs().max())),
            f"Under autocast the {name} is computed in half precision: switch autocast off around it.",
        )


CHECKS = (
    keywords,
    geometry,
    settings,
    precision,
    shift,
    growth,
    decoding,
    rows,
    packing,
    registers,
    tensors,
    gradients,
    autocast,
    storage,
)
