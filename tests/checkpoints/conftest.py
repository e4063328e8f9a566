"""ZeRO directories by hand, as DeepSpeed lays them out and without it: torch.save, and classes with its names."""

import contextlib
import enum
import math
import sys
import types

import pytest
import torch

NAMES = {
    "ZeroStageEnum": "deepspeed.runtime.zero.config",
    "LossScaler": "deepspeed.runtime.fp16.loss_scaler",
    "DynamicLossScaler": "deepspeed.runtime.fp16.loss_scaler",
    "fragment_address": "deepspeed.utils.tensor_fragment",
}


@contextlib.contextmanager
def classes():
    """Importable under DeepSpeed's names for as long as something is pickled."""
    made, before = {}, dict(sys.modules)
    for name, module in NAMES.items():
        if name == "ZeroStageEnum":
            made[name] = enum.Enum(name, {f"stage{n}": n for n in range(4)}, module=module, type=int)
        else:
            made[name] = type(name, (), {"__module__": module, "__init__": lambda self: self.__dict__.update(a=1)})
        words = module.split(".")
        for end in range(1, len(words) + 1):
            sys.modules.setdefault(".".join(words[:end]), types.ModuleType(words[end - 1]))
        setattr(sys.modules[module], name, made[name])
    try:
        yield types.SimpleNamespace(**made)
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] == "deepspeed":
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name.startswith("deepspeed")})


def write(
    path, weights, *, stage, world=2, groups=1, frozen=(), buffers=(), shared=None, half=True, client=None, **how
):
    """A directory of which `weights` is the truth in float32.

    Args:
        path: The directory.
        weights: Parameters and buffers by name.
        stage: 1, 2 or 3.
        world: Processes.
        groups: Parameter groups that the trained ones are dealt to.
        frozen: Names that no optimizer has.
        buffers: Names that are no parameters.
        shared: Names that stand for others.
        half: Whether the network was in bfloat16, and only the optimizer in float32.
        client: What the program says of its run.
        how: `align`: numbers at whose multiples weights begin in a row; `most`: weights in a flat group at stage 3;
            `scaler`: class of the loss scale; `prefix`: of the optimizer's files; `extra`: into every optimizer's file.
    """
    shared = shared or {}
    trained = [name for name in weights if name not in {*frozen, *buffers, *shared}]
    dealt = [trained[number::groups] for number in range(groups)]
    rough = {name: value.bfloat16() if half and value.is_floating_point() else value for name, value in weights.items()}
    place = path / "global_step7"
    place.mkdir(parents=True)
    (path / "latest").write_text("global_step7\n")
    (path / "zero_to_fp32.py").write_text("raise SystemExit\n")

    def part(flat, rank):
        size = math.ceil(flat.numel() / world)
        padded = torch.cat((flat, torch.full((size * world - flat.numel(),), 9e9, dtype=flat.dtype)))
        return padded[rank * size : (rank + 1) * size].clone()

    rows, paddings = [], []
    for names in dealt:
        row, fills = [], []
        for name in names:
            flat = weights[name].flatten()
            fill = -flat.numel() % how.get("align", 1) if name != names[-1] else 0
            row += [flat, torch.full((fill,), 9e9)]
            fills.append(fill)
        rows.append(torch.cat(row))
        paddings.append(fills)
    with classes() as made:
        for rank in range(world):
            state = {
                "zero_stage": made.ZeroStageEnum(stage),
                "loss_scaler": getattr(made, how.get("scaler", "LossScaler"))(),
            }
            if stage == 3:
                queue = [part(weights[name].flatten(), rank) for names in dealt for name in names]
                most = how.get("most", 10**9)
                flats = [torch.cat(queue[start : start + most]) for start in range(0, len(queue), most)]
                state |= {"fp32_flat_groups": flats, "partition_count": world}
                moments = flats
            else:
                unit = 2 * world
                flats = []
                for row in rows:
                    size = math.ceil(row.numel() / unit) * unit // world
                    fill = size * world - row.numel()
                    padded = torch.cat((row, torch.full((fill,), 9e9)))
                    mine = padded[rank * size : (rank + 1) * size]
                    flats.append(mine[: size - fill].clone() if rank == world - 1 else mine.clone())
                state |= {"single_partition_of_fp32_groups": flats, "partition_count": [world] * groups}
                state["param_slice_mappings"] = [{"network.x": made.fragment_address()}]
                if "align" in how:
                    state["param_alignment_paddings"] = paddings
                moments = flats
            state["base_optimizer_state"] = {
                "state": {0: {"exp_avg": [m * 0 for m in moments], "v": [m + 1 for m in moments]}}
            }
            content = {"optimizer_state_dict": state, "ds_config": {"train": None}, "ds_version": "0"} | how.get(
                "extra", {}
            )
            torch.save(content, place / f"{how.get('prefix', '')}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        for rank in range(world if stage == 3 else 1):
            module = dict(rough)
            fragments = {name: rough[name] for name in frozen}
            if stage == 3:
                module = {name: rough[name] if name in buffers else torch.zeros(0).bfloat16() for name in rough}
                fragments = {name: part(rough[name].flatten(), rank) for name in frozen}
            saved = stage > 1
            content = {
                "module": module,
                "buffer_names": list(buffers),
                "optimizer": None,
                "param_shapes": [{name: weights[name].shape for name in names} for names in dealt],
                "frozen_param_shapes": {name: weights[name].shape for name in frozen} if saved else None,
                "frozen_param_fragments": fragments if saved else None,
                "shared_params": shared if rank == 0 else {},
                "ds_config": {"zero_optimization": {"stage": stage}},
                **(client or {}),
            }
            each = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(content, place / f"{each}mp_rank_00_model_states.pt")
    return path


@pytest.fixture
def zero_directory():
    """The writer."""
    return write
