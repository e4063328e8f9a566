"""The exam for position encodings: each check is one promise of the contract, tried on a small model.

Almost every check looks at attention weights rather than at what the encoding returns, so that it holds for
embeddings, rotations, biases and scales alike, and for whatever combines them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bias import Logits
from zoo.errors import ZooError
from zoo.kernel import Eager
from zoo.position import Encoding, Rotation
from zoo.testing.gradients import checkpointing, compiled, gradients, mixed
from zoo.testing.probe import (
    GEOMETRY,
    GRID,
    STD,
    Skip,
    Subject,
    apart,
    blame,
    build,
    check,
    close,
    content,
    deterministic,
    encode,
    line,
    models,
    settle,
    size,
    some,
    title,
    trunk,
    weights,
)
from zoo.testing.rungs import tensors
from zoo.testing.sequences import decoding, packing, rows
from zoo.testing.settings import keywords, settings
from zoo.trunk import Trunk
from zoo.vit import ViT, grid

FAR, EXTENT = 32_000, 32_768
"""Where half precision has lost the positions: bf16 holds no odd integer beyond 256."""


def end(model: Trunk) -> tuple[int, int]:
    """The farthest position that is looked at, and the extent: the end of its table for an encoding that has one."""
    text = model.geometry.axes == 1
    try:
        weights(model, some(model, FAR), EXTENT if text else size(model))
    except ZooError:
        return size(model) - 12 if text else 0, size(model)
    return FAR, EXTENT if text else size(model)


@check
def precision(subject: Subject) -> None:
    """Cast to bfloat16, the module keeps float32 parameters and agrees with its float64 self at position 32 000."""
    for half, exact in zip(models(subject), models(subject), strict=True):
        half.position.to(torch.bfloat16)
        exact.double()
        for name, tensor in half.position.state_dict().items():
            assert tensor.dtype not in (torch.bfloat16, torch.float16), (
                f"{name} became {tensor.dtype}: leave `_apply` of PositionEncoding in place, it keeps them float32."
            )
        far, extent = end(half)
        close(
            weights(half, some(half, far), extent),
            weights(exact, some(half, far).double(), extent),
            1e-2,
            f"Attention near position {far} changes when the module is cast to bfloat16: compute angles and distances "
            "in float32, whatever the model's precision.",
        )
        for model in (half, exact):  # the same garbage in both would agree
            near, there = (told_apart(model, start, extent) for start in (0, far))
            assert (there | ~near).all(), (
                f"Positions from {far} on get the same encoding where those from 0 on do not: they were rounded on the "
                "way."
            )


def told_apart(model: Trunk, start: int, extent: int) -> Tensor:
    """Which neighbours the last token tells apart, of tokens that are alike but for their positions."""
    positions = some(model, start)
    x = content()[:1, :1].expand(1, model.geometry.prefix + len(positions), -1)
    row = weights(model, positions, extent, x)[0, :, -1, model.geometry.prefix :]
    return row.diff().abs().amax(0) > 1e-7


@check
def shift(subject: Subject) -> None:
    """Attention does not change when all positions move together, if and only if the encoding says `relative`."""
    name = title(subject)
    for model in models(subject, image=replace(GRID, prefix=0)):  # registers stay where they are, which is nowhere
        last, extent = end(model.double())
        at, moved = (apart(model, extent) if last == FAR else some(model)), {}
        still = weights(model, at, extent)
        for move in (17, 40, FAR - 1000) if model.geometry.axes == 1 else ((0, 2), (1, 0), (17, 40)):
            try:
                there = weights(model, at + torch.tensor(move), extent)
            except ZooError:
                continue  # beyond its table
            moved[move] = float((there - still).abs().max())
        if not moved:
            continue
        if model.position.relative:
            move, most = max(moved.items(), key=lambda pair: pair[1])
            assert most <= 1e-6, (
                f"{name} claims to be relative, yet attention changes by {most:.2g} when all positions move by {move}: "
                "set `relative = False`, or find what depends on the absolute position."
            )
        else:
            assert max(moved.values()) > 1e-6, (
                f"{name} does not claim to be relative, yet moving all positions changes nothing: say `relative = "
                "True`, or find where the positions get lost."
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


def shuffled(model: Trunk, positions: Tensor) -> None:
    """In a model that looks both ways, tokens given in another order attend as before."""
    prefix, count = model.geometry.prefix, len(positions)
    order, x = torch.randperm(count), content()[:1, : prefix + count]
    both = torch.cat((torch.arange(prefix), order + prefix))
    close(
        weights(model, positions[order], count, x[:, both]),
        weights(model, positions, count, x)[..., both, :][..., both],
        1e-5,
        "Tokens given in another order, with their positions, attend differently: read `queries` and `keys`, do not "
        "number the tokens.",
    )


@check
def bidirectional(subject: Subject) -> None:
    """In a model that looks both ways it is refused, or it tells keys ahead of a query as it tells those behind."""
    model, positions = trunk(subject, replace(GEOMETRY, causal=False, prefix=1)), line(21)
    shuffled(model, positions)
    middle = weights(model, positions, 21, content()[:1, :1].expand(1, 22, -1))[0, :, 11, 1:]
    behind, ahead = (float((part.amax(-1) - part.amin(-1)).max()) for part in (middle[:, :10], middle[:, 11:]))
    assert ahead > 1e-7 or behind <= 1e-7, (
        "In a model that is not causal, keys before a query are told apart by their distance and keys after it are "
        "not: refuse geometry.causal = False, or serve negative distances (a table's `lowest` is 1 - extent then)."
    )


@check
def registers(subject: Subject) -> None:
    """In a vision transformer registers have no position, and every patch of a grid that is not square has its own."""
    model, prefix, positions = trunk(subject, GRID), GRID.prefix, grid(4, 6)
    shuffled(model, positions)
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
    (model, *_), (other, *_), file = models(subject), models(subject, seed=5), io.BytesIO()
    torch.save(model.position.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.position.load_state_dict(state)
    for name, tensor in other.position.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} is not what was stored after loading a state dict."
    positions, extent = some(model), size(model)
    assert torch.equal(weights(model, positions, extent), weights(other, positions, extent)), (
        "A module loaded from a state dict does not give the same bits: something random is neither parameter nor "
        "persistent buffer, or a cache outlives the loading."
    )
    with blame("Built under torch.device('meta'), as sharded training does,"):
        with torch.device("meta"):
            bare = build(subject, model.geometry)
        with deterministic():  # memory that nobody has written to is NaN
            bare.to_empty(device="cpu")
        bare.load_state_dict(state)
    other.positions[0] = bare
    assert torch.equal(weights(model, positions, extent), weights(other, positions, extent)), (
        "Built under torch.device('meta') and loaded, it does not give the same bits: a constant that is in no state "
        "dict has to be computed anew when the module moves (override `_apply`)."
    )


@check
def geometry(subject: Subject) -> None:
    """A geometry that it cannot serve is refused with a ZooError when it is built; others give finite numbers."""
    cases: dict[str, Any] = {
        "the usual decoder": {},
        "a vision transformer": {"length": (4, 6), "prefix": 3, "causal": False},
        "heads of odd width": {"head_dim": 7},
        "heads of width 1": {"head_dim": 1},
        "heads of width 2": {"head_dim": 2},
        "heads of width 6 in 2-D": {"head_dim": 6, "length": (4, 6), "causal": False},
        "an odd width": {"dim": 63},
        "three axes": {"length": (2, 3, 4), "causal": False},
        "a grid of one row": {"length": (1, 6), "causal": False},
        "a causal grid": {"length": (4, 6)},
        "a single head": {"heads": 1, "kv_heads": 1},
        "three heads": {"heads": 3, "kv_heads": 3},
        "one key head": {"kv_heads": 1},
        "a length of 1": {"length": (1,)},
        "a length of 2": {"length": (2,)},
        "an encoder of text": {"causal": False},
        "an encoder of text with a class token": {"causal": False, "prefix": 1},
    }
    served, reason = 0, ""
    for case, change in cases.items():
        g = replace(GEOMETRY, **change)
        trained = torch.Size(g.length).numel()
        positions = torch.cartesian_prod(*(torch.arange(min(n, 8)) for n in g.length)).float().view(-1, g.axes)
        for extent in (trained, 4 * trained):
            position = None
            try:
                with blame(f"What it cannot serve it must refuse with a ZooError that says why. For {case} ({g})"):
                    position = subject(g)
                    encoding = encode(position, positions, extent)
            except ZooError as error:
                reason = str(error)
                assert reason, f"For {case} the refusal is empty: say what was asked, why not, and what would work."
                assert position is None or extent > trained, (
                    f"For {case} it is built, and then refuses the very length that it was built for ({reason}): "
                    "what the geometry decides is refused in __init__."
                )
                continue
            served += 1
            for name, tensor in parts(encoding):
                assert tensor.isfinite().all(), f"For {case} the {name} is not finite: refuse it, or repair it."
            if encoding.bias is not None and not isinstance(encoding.bias, Logits):
                tokens = slice(0, g.prefix + len(positions))
                found, shape = encoding.bias.block(tokens, tokens).shape[1:], (g.heads, tokens.stop, tokens.stop)
                assert found == shape, (
                    f"For {case} the bias is {tuple(found)}, and [heads, queries, keys] are {shape}, prefix "
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
    served = 0
    for model in models(subject):
        plain = [*parts(encode(model.position, some(model), size(model)))]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = [*parts(encode(model.position, some(model), size(model)))]
        served += len(plain)
        for (name, tensor), (_, found) in zip(plain, mixed, strict=True):
            assert found.dtype == torch.float32, f"Under autocast the {name} is {found.dtype}, not float32."
            close(
                found,
                tensor,
                1e-5 * (1 + float(tensor.abs().max())),
                f"Under autocast the {name} is computed in half precision: switch autocast off around it.",
            )
    if not served:
        raise Skip(f"{title(subject)} returns no tensors.")


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
    bidirectional,
    tensors,
    gradients,
    checkpointing,
    mixed,
    compiled,
    autocast,
    storage,
)
