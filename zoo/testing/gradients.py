"""The exam's questions about gradients: every parameter of an encoding gets the right one, however it is trained.

What finite differences find in float64 is the truth; kernels, recomputation, torch.compile and autocast are held to it.
A gradient that gets lost raises no error anywhere: the parameter just does not learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoo import plugins
from zoo.errors import ZooError
from zoo.kernel import Eager, Mask
from zoo.position import Geometry
from zoo.testing.probe import GEOMETRY, GRID, Skip, Subject, blame, check, content, installed, line, title, trunk
from zoo.trunk import Trunk
from zoo.vit import grid

Gradients = dict[str, Tensor]
Places = tuple[tuple[Geometry, Tensor], ...]

WITHIN: Places = ((GEOMETRY, line(20)), (GRID, grid(4, 6)))
BEYOND: Places = ((replace(GEOMETRY, length=(12,)), line(20)), (GRID, grid(5, 7)))
"""Models and positions: as at first training, and longer."""


def learners(subject: Subject, places: Places = WITHIN) -> Iterator[tuple[Callable[..., Trunk], Tensor]]:
    """Makers of a float64 model, with positions, wherever the encoding serves; Skip where nothing learns."""
    found = 0
    for geometry, positions in places:

        def make(kernel: Subject = Eager, *, geometry: Geometry = geometry, **options: Any) -> Trunk:
            return trunk(subject, geometry, kernel=kernel, **options).double()

        try:
            loss(model := make(), positions)
        except (Skip, ZooError):
            continue
        if learned(model):
            found += 1
            yield make, positions
    if not found:
        raise Skip(f"{title(subject)} has no trainable parameters.")


def learned(model: Trunk) -> dict[str, Tensor]:
    """The trainable parameters of a model's encodings."""
    named = model.named_parameters()
    return {name: each for name, each in named if each.requires_grad and name.startswith("positions.")}


def loss(model: Trunk, positions: Tensor) -> Tensor:
    """A number that depends on all of the model's attention."""
    x = content()[:, : model.geometry.prefix + len(positions)].to(next(model.blocks.parameters()).dtype)
    out = model(x[:2], positions, positions, len(positions), Mask(causal=model.geometry.causal))
    return (out * x[2:]).sum()


def pull(model: Trunk, positions: Tensor, how: str, forward: AbstractContextManager[Any] | None = None) -> Gradients:
    """The gradient of each trainable parameter of the encoding; none may be missing."""
    model.zero_grad()
    with blame(how):
        with forward or nullcontext():
            value = loss(model, positions)
        value.backward()
    found = {}
    for name, parameter in learned(model).items():
        assert parameter.grad is not None, (
            f"{how} the parameter {name} gets no gradient: it was detached, or does not reach the logits, or is not "
            "among the `tensors` of the bias. Freeze it with requires_grad_(False) if that is meant."
        )
        assert parameter.grad.abs().max() > 0, f"{how} the gradient of the parameter {name} is zero everywhere."
        found[name] = parameter.grad.clone()
    return found


def same(found: Gradients, expected: Gradients, tolerance: float, how: str) -> None:
    """Compare gradients by their norms; what is tiny beside the others may be rounding about zero."""
    most = max(float(right.norm()) for right in expected.values())
    for name, right in expected.items():
        gap, size = float((found[name].double() - right.double()).norm()), float(right.norm())
        assert gap <= tolerance * (size + most / 100), (
            f"{how} the gradient of the parameter {name} is wrong by {gap:.2g}, where its norm is {size:.2g}: part of "
            "it is lost on the way. Compute in forward all that is learned, and name it in `tensors` of the bias."
        )


@check
@torch.enable_grad()
def gradients(subject: Subject) -> None:
    """In float64 every trainable parameter gets the gradient that finite differences find, through every kernel."""
    for make, positions in learners(subject, (*WITHIN, *BEYOND)):
        model = make()
        expected = pull(model, positions, "Through Eager")
        differences(model, positions, expected)
        for name, kernel in plugins.classes("zoo.kernels").items():
            if kernel.form == Eager.form and kernel is not Eager:
                try:
                    other = make(kernel)
                    other.check(device="cpu", dtype=torch.float64, training=True, mask=frozenset(), extent=20)
                except (Skip, ZooError):
                    continue
                if other.geometry == model.geometry:
                    same(pull(other, positions, f"Through {name}"), expected, 1e-6, f"Through {name}")


def differences(model: Trunk, positions: Tensor, expected: Gradients) -> None:
    """Compare gradients with central differences along random directions."""
    for name, parameter in learned(model).items():
        for _ in range(3):
            step = torch.randn_like(parameter)
            step *= 1e-6 * parameter.detach().norm().clamp(min=1e-2) / step.norm()
            values = []
            with torch.no_grad():
                for sign in (1, -2, 1):
                    parameter.add_(sign * step)
                    values.append(float(loss(model, positions)))
            found, said = (values[0] - values[1]) / 2, float((expected[name] * step).sum())
            room = 1e-5 * float(expected[name].norm() * step.norm()) + 1e-13 * (1 + abs(values[0]))
            assert abs(found - said) <= room, (
                f"The gradient of the parameter {name} is wrong: a step changes the loss by {found:.4g}, the gradient "
                f"says {said:.4g}. Part of it is detached, or a module in float64 does not compute in float64."
            )


@check
@torch.enable_grad()
def checkpointing(subject: Subject) -> None:
    """Where blocks are recomputed in backward, parameters get the gradients that they get without."""
    for make, positions in learners(subject):
        for name in ("Eager", "Tiled"):
            how, kernel = f"With activation checkpointing, through {name},", installed(name) or Eager
            expected = pull(make(kernel, layers=2), positions, f"Through {name}")
            same(pull(make(kernel, layers=2, checkpointing=True), positions, how), expected, 1e-9, how)


@check
@torch.enable_grad()
def mixed(subject: Subject) -> None:
    """Under bf16 autocast parameters get the gradients of float64, as far as bfloat16 goes."""
    for make, positions in learners(subject):
        expected = pull(make(layers=2), positions, "Through Eager")
        within = torch.autocast("cpu", torch.bfloat16)
        found = pull(make(layers=2).float(), positions, "Under bf16 autocast", within)
        same(found, expected, 0.1, "Under bf16 autocast")


@check
@torch.enable_grad()
def compiled(subject: Subject, backend: str = "aot_eager", kernels: tuple[str, ...] = ("Eager",)) -> None:
    """Inside a compiled model parameters get the gradients that they get in eager mode."""
    make, positions = next(learners(subject))
    for name in kernels:
        how, model = f"In a model compiled by {backend}, through {name},", make(installed(name) or Eager)
        expected = pull(model, positions, f"Through {name}")
        torch.compiler.reset()  # or torch would stop compiling after some models, and nothing would be compared
        model.compile(backend=backend)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(pull(model, positions, how), expected, 1e-6, how)
