"""DeepSpeed's ZeRO directories, stages 1 to 3: every process left what it held, and a model is put together from that.

The layout is that of Rajbhandari et al. 2019 (arXiv:1910.02054) as DeepSpeed 0.19 writes it; Lightning's
DeepSpeedStrategy saves one where others save a .ckpt. `latest` names the folder of the last step, in which there are

    mp_rank_00_model_states.pt             buffers, frozen weights, names and shapes, and what the run says of itself;
    zero_pp_rank_N_mp_rank_00_...          at stage 3 one for each process, with its part of the frozen weights
    [bf16_]zero_pp_rank_N_mp_rank_00_optim_states.pt     process N's part of the float32 weights, and of Adam's moments

At stages 1 and 2 the weights of a parameter group stand in one row, which is cut into as many parts as there are
processes. At stage 3 every single weight is cut so, the last part filled up, and a process's parts stand in a row. No
order or shape is in the row itself: the model's file tells both. Weights are float32 where the optimizer had them so.

The files need classes of DeepSpeed, which is no reason to run it: these names alone are let in, and empty classes stand
for them. DeepSpeed itself opens its files without such a look, so `checked` is to be asked before a run is resumed.
"""

from __future__ import annotations

import functools
import math
import pickle
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints import adapted, archive, lightning
from zoo.checkpoints.archive import Archive
from zoo.checkpoints.description import Checkpoint
from zoo.checkpoints.stored import Held, Listing, Run, Stored, Weights, cut
from zoo.errors import ZooError


class Stage(int):
    """Stands for DeepSpeed's enumeration of the stages."""


class Absent:
    """Stands for an object of DeepSpeed of which nothing is asked."""


ALLOWED: tuple[tuple[type, str], ...] = (
    (Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (Absent, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (Absent, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),  # its sibling, of runs in float16
    (Absent, "deepspeed.utils.tensor_fragment.fragment_address"),
)
"""Names beyond torch's own that a file may need."""
MODEL = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_optim_states\.pt")
INTERNAL = {
    *("module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments"),
    *("shared_params", "lr_scheduler", "data_sampler", "random_ltd", "sparse_tensor_module_names", "ds_config"),
    *("skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size", "ds_version"),
}
"""What DeepSpeed says in the model's file for itself."""
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)

Runs = tuple[Run | Held, ...]


def holds(path: Path) -> bool:
    """Whether a folder is such a directory, or the folder of a step in one."""
    return whole(path) or bool(unnamed(path))


def whole(path: Path) -> bool:
    """Whether a save has come to its end in a folder: only then is it named."""
    return (path / "latest").is_file() or bool(found(path, MODEL) or found(path, OPTIMIZER))


def unnamed(path: Path) -> list[str]:
    """Saves in a directory that have not come to their end."""
    latest = (path / "latest").read_text(errors="replace").strip() if (path / "latest").is_file() else ""
    inner = sorted(each for each in path.iterdir() if each.is_dir() and each.name != latest)
    return [each.name for each in inner if found(each, MODEL) or found(each, OPTIMIZER)]


def found(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a folder with such names, in the order of the processes."""
    matches = [(match, file) for file in path.iterdir() if (match := pattern.fullmatch(file.name))]
    if any(int(match["part"]) for match, _ in matches):
        raise ZooError(f"{path} holds a model whose layers were spread over processes (tensor parallelism).")
    return [file for _, file in sorted(matches, key=lambda item: int(item[0]["rank"] or 0))]


def step(path: Path) -> Path:
    """The folder of the last step."""
    if not (path / "latest").is_file():
        if whole(path):
            return path
        raise ZooError(f"{path} holds a save that did not come to its end ({', '.join(unnamed(path))}), and no other.")
    tag = (path / "latest").read_text(encoding="utf-8", errors="replace").strip()
    if not tag or Path(tag).name != tag or not (path / tag).is_dir():
        raise ZooError(f"{path} is damaged: its file `latest` names the folder {tag[:80]!r}, which is not there.")
    return path / tag


def checked(path: Path) -> list[Path]:
    """All files of a checkpoint that hold more than bytes, once none is known to need a name that is not let in."""
    place = step(path)
    if place != path and (left := unnamed(path)):
        note(f"zoo: {path}: the save {', '.join(left)} did not come to its end; {place.name} is read")
    files = [*found(place, MODEL), *found(place, OPTIMIZER)]
    if not files:
        raise ZooError(f"{place} has none of the files of a DeepSpeed checkpoint (*_model_states.pt).")
    for file in files:
        archive.check_archive(file)
        try:
            with torch.serialization.safe_globals(list(ALLOWED)):
                unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise ZooError(f"{file} is truncated or is not a checkpoint ({reason}).") from None
        if unsafe:
            raise ZooError(
                f"{file} was not opened: it needs {' and '.join(sorted(unsafe)[:3])}, and DeepSpeed's files need no "
                "code beyond its own classes for the stage, the loss scale and the fragments."
            )
    return files


def read(path: Path) -> Checkpoint:
    """The network of a ZeRO run; each weight is put together when it is asked for."""
    listing = listed(path)
    return Checkpoint(path, listing.about, Weights(listing.weights))


@functools.cache
def note(line: str) -> None:
    """Say something once."""
    from lightning.pytorch.utilities import rank_zero_only  # which takes seconds, and most commands do without

    rank_zero_only(print)(line, file=sys.stderr)


def cut_by(path: Path) -> tuple[int, int]:
    """The stage of a save, and the number of processes that wrote it."""
    files = found(step(path), OPTIMIZER)
    stage = archive.load(files[0], ALLOWED, map_location="meta")["optimizer_state_dict"]["zero_stage"]
    return int(stage), len(files)


def groups(path: Path) -> list[dict[str, Any]]:
    """The optimizer's numbers for each group of weights: learning rate, decay, ..."""
    told = archive.load(found(step(path), OPTIMIZER)[0], ALLOWED, map_location="meta")["optimizer_state_dict"]
    inner = told.get("base_optimizer_state") or told.get("optimizer_state_dict")
    return [{key: value for key, value in group.items() if key != "params"} for group in inner["param_groups"]]


def content(path: Path) -> dict[str, Any]:
    """A checkpoint as a .ckpt would hold it, its weights put together, without the state of an optimizer."""
    listing = listed(path)
    told = archive.load(found(step(path), MODEL)[0], ALLOWED, map_location="cpu")
    weights = {f"{lightning.PREFIX}{name}": weight for name, weight in Weights(listing.weights).items()}
    return {key: value for key, value in told.items() if key not in INTERNAL} | {"state_dict": weights}


def described(path: Path) -> dict[str, Any]:
    """What the run of a checkpoint says of itself, every file of which is `checked`."""
    content = archive.load(checked(path)[0], ALLOWED, map_location="meta")
    return lightning.told(content if isinstance(content, dict) else {}, path, "DeepSpeed")


def listed(path: Path) -> Listing:
    """What a ZeRO run left; its weights stay on the disk."""
    checked(path)
    place = step(path)
    models = [Archive(file, ALLOWED) for file in found(place, MODEL)]
    optimizers = [Archive(file, ALLOWED) for file in found(place, OPTIMIZER)]
    if not models or not optimizers:
        kind = "model" if not models else "optim"
        raise ZooError(f"{place} is not the whole of a ZeRO checkpoint: it has no *_{kind}_states.pt.")
    content = models[0].content
    about = lightning.told(content if isinstance(content, dict) else {}, path, "DeepSpeed")
    try:
        states = [each.content["optimizer_state_dict"] for each in optimizers]
        stage, count = int(states[0]["zero_stage"]), states[0]["partition_count"]
        count = max(count) if isinstance(count, list | tuple) else int(count)
        if count != len(optimizers):
            raise ZooError(
                f"{place} is not the whole of a ZeRO checkpoint: {count} processes wrote it, and the files of "
                f"{len(optimizers)} are there."
            )
        weights = scattered(models, optimizers) if stage == 3 else rows(models[0], optimizers)
        for same, name in (content.get("shared_params") or {}).items():
            if name in weights:
                weights[same] = weights[name]
        weights = {name: weights[name] for name in content["module"] if name in weights} | weights
    except MALFORMED as error:
        raise ZooError(f"{place} is damaged: {type(error).__name__}: {str(error)[:160]}.") from None
    return Listing(path, about, adapted.summed(lightning.own(weights), about, path), lightning.kept(content))


def rows(model: Archive, optimizers: list[Archive]) -> dict[str, Stored]:
    """The weights at stages 1 and 2: all of the model's file, those that were trained in the optimizer's precision."""
    weights = {name: model.stored(tensor) for name, tensor in model.content["module"].items()}
    states = [each.content["optimizer_state_dict"] for each in optimizers]
    paddings = states[0].get("param_alignment_paddings")
    for group, shapes in enumerate(model.content["param_shapes"]):
        row, dtype = joined(
            [
                each.stored(state["single_partition_of_fp32_groups"][group])
                for each, state in zip(optimizers, states, strict=True)
            ]
        )
        start, fill = 0, paddings[group] if paddings else [0] * len(shapes)
        for (name, shape), more in zip(shapes.items(), fill, strict=True):
            size = math.prod(shape) * dtype.itemsize
            weights[name] = Stored(dtype, tuple(shape), cut(row, start, size))
            start += size + more * dtype.itemsize
        # The row was filled up to a multiple of twice the processes, and what that needed was cut off again.
        unit = 2 * len(optimizers)
        needed, there = start // dtype.itemsize, sum(run.size for run in row) // dtype.itemsize
        if -(-needed // unit) != -(-there // unit):
            raise ValueError(f"the row of group {group} has {there} numbers, and its weights need {needed}")
    return weights


def scattered(models: list[Archive], optimizers: list[Archive]) -> dict[str, Stored]:
    """The weights at stage 3, of each of which every process has a part."""
    first = models[0].content
    if first.get("frozen_param_shapes") and len(models) != len(optimizers):
        raise ValueError(f"the frozen weights are in {len(optimizers)} files, {len(models)} of which are there")
    weights, held = fixed(models), []
    for each in optimizers:
        groups = each.content["optimizer_state_dict"]["fp32_flat_groups"]
        held.append(joined([each.stored(tensor) for tensor in groups]))
    dtype, start = held[0][1], 0
    for shapes in first["param_shapes"]:
        for name, shape in shapes.items():
            part = -(-math.prod(shape) // len(held)) * dtype.itemsize
            row = sum((cut(runs, start, part) for runs, _ in held), ())
            weights[name] = Stored(dtype, tuple(shape), cut(row, 0, math.prod(shape) * dtype.itemsize))
            start += part
    for runs, _ in held:
        if sum(run.size for run in runs) != start:
            raise ValueError(f"a process has {sum(run.size for run in runs)} bytes, and the weights need {start}")
    return weights


def fixed(models: list[Archive]) -> dict[str, Stored]:
    """Buffers and frozen weights at stage 3; of a weight every process has a part."""
    first = models[0].content
    buffers = (name for name in first["buffer_names"] if name in first["module"])
    weights = {name: models[0].stored(first["module"][name]) for name in buffers}
    for name, shape in (first.get("frozen_param_shapes") or {}).items():
        row, dtype = joined(each.stored(each.content["frozen_param_fragments"][name]) for each in models)
        weights[name] = Stored(dtype, tuple(shape), cut(row, 0, math.prod(shape) * dtype.itemsize))
    return weights


def unoptimized(path: Path, stage: int) -> dict[str, Stored]:
    """What no optimizer has, by the names of the run: buffers and frozen weights."""
    models = [Archive(file, ALLOWED) for file in found(step(path), MODEL)]
    if stage == 3:
        return fixed(models)
    content = models[0].content
    trained = {name for group in content["param_shapes"] for name in group}
    rest = {name: tensor for name, tensor in content["module"].items() if name not in trained}
    return {name: models[0].stored(tensor) for name, tensor in rest.items()}


def joined(parts: Iterable[Stored]) -> tuple[Runs, torch.dtype]:
    """Several stored rows of one type as one."""
    whole = list(parts)
    kinds = {part.dtype for part in whole}
    if len(kinds) != 1:
        raise ValueError(f"the parts are of types {sorted(map(str, kinds))}")
    return sum((part.runs for part in whole), ()), kinds.pop()
