"""The exam's question about the rung of a bias: whether kernels can carry it, gradients and single indices included."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bias import Bias, Logits, Pointwise
from zoo.testing.probe import GEOMETRY, GRID, Skip, Subject, check, close, encode, line, title, trunk
from zoo.vit import grid


@check
@torch.enable_grad()
def tensors(subject: Subject) -> None:
    """A rung names the tensors that it reads, computed in forward: no parameter, no module, nothing in a closure."""
    used = 0
    for geometry, positions in ((GEOMETRY, line(8)), (GRID, grid(4, 6))):
        try:
            model = trunk(subject, geometry)
        except Skip:
            continue
        encoding = encode(model.position, positions, 24)
        used += encoding.bias is not None
        if encoding.bias is not None:
            rung_holds(encoding.bias)
        if isinstance(encoding.bias, Pointwise):
            one_by_one(encoding.bias)
    if not used:
        raise Skip(f"{title(subject)} adds no bias.")


def rung_holds(bias: Bias) -> None:
    """Look for parameters and modules where none may be."""
    advice = "Gradients of what a rung does not name are lost when a kernel recomputes."
    for tensor in bias.tensors:
        assert isinstance(tensor, Tensor), f"`tensors` of the bias holds {type(tensor).__name__}, not only tensors."
        assert not (tensor.is_leaf and (tensor.requires_grad or isinstance(tensor, nn.Parameter))), (
            f"`tensors` of the bias holds a parameter {tuple(tensor.shape)} itself: hand over something computed from "
            f"it, at least `parameter * 1`. {advice}"
        )
    value = getattr(bias, "value", None)
    if value is not None:
        for path, thing in held(value, "value"):
            what = "a parameter" if isinstance(thing, nn.Parameter) else f"a {type(thing).__name__}"
            raise AssertionError(
                f"The bias's function keeps {what} in `{path}`: name the tensors that it reads in `tensors` and take "
                f"them as arguments. {advice}"
            )
    if not isinstance(bias, Logits):
        rows, columns = slice(0, bias.prefix + bias.queries), slice(0, bias.prefix + bias.keys)
        whole = bias.block(rows, columns)
        close(
            bias.heads(1, 3).block(rows, columns),
            whole[:, 1:3],
            1e-6,
            "Some heads of the bias are not those of the whole.",
        )


def one_by_one(bias: Pointwise) -> None:
    """FlexAttention calls the function with one index at a time."""
    whole = bias.values(slice(0, bias.queries), slice(0, bias.keys))
    for h, i, j in ((0, 0, 0), (1, bias.queries - 1, 2), (bias.count - 1, 3, 1)):
        one = bias.value(*(torch.tensor(index) for index in (0, h, i, j)), *bias.tensors)
        assert one.ndim == 0, f"Called with single indices, the bias's function gives the shape {tuple(one.shape)}."
        close(one, whole[0, h, i, j], 1e-6, "Called with single indices, the bias's function gives another value.")


def held(thing: Any, path: str, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Tensors and modules that a function keeps hold of, each with the way to it."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor | nn.Module):
        yield path, thing
    elif isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from held(part, path, seen)
    elif isinstance(thing, list | tuple | set):
        for part in thing:
            yield from held(part, path, seen)
    elif isinstance(thing, dict):
        for key, part in thing.items():
            yield from held(part, f"{path}[{key!r}]", seen)
    elif inspect.ismethod(thing):
        yield from held(thing.__self__, f"{path}.__self__", seen)
        yield from held(thing.__func__, path, seen)
    elif inspect.isfunction(thing):
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            try:
                yield from held(cell.cell_contents, name, seen)
            except ValueError:  # a name that was not assigned
                continue
        yield from held(thing.__defaults__ or (), f"a default of {thing.__name__}", seen)
        yield from held(thing.__kwdefaults__ or {}, f"a default of {thing.__name__}", seen)
