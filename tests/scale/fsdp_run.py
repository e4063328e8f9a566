"""Two processes over gloo train divided models, and each beside it the whole one by itself; run by test_overlays.py.

python fsdp_run.py FOLDER [CASE ...]
"""

import json
import sys
import traceback
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication

from zoo import plugins
from zoo.decoder import Decoder
from zoo.loss import cross_entropy
from zoo.scale.fsdp import average, divide, gathered, share
from zoo.vit import ViT

WORLD, STEPS = 2, 3
DECODER = {"vocabulary": 33, "length": 24, "dim": 32, "layers": 2, "heads": 4}
CASES = {
    "RoPE": {},
    "FIRE": {"position": "FIRE", "tied": False, "head_bias": True},
    "CoPE": {"position": "CoPE", "norm_at": "before", "checkpointing": True},
    "FoX": {"position": "FoX", "qk_norm": "head", "norm": "LayerNorm", "qkv_bias": True},
    "Learned": {"position": "Learned", "norm_at": "after", "feed_forward_chunk": 5, "checkpointing": "offload"},
    "post-norm": {"position": "FoX", "norm_at": "stream", "norm": "LayerNorm", "feed_forward": "ReLU"},
    "T5": {"position": "T5", "kernel": "Tiled", "parallel": True, "feed_forward_bias": True},
    "Sink": {"kernel": "Sink", "kv_heads": 2},
    "kept": {"reshard": False, "position": "PoPE"},
    "ViT": {"classes": 3, "size": (16, 16), "patch": 4, "registers": 1, "dim": 32, "layers": 2, "heads": 4},
}


def build(case):
    torch.manual_seed(0)
    own = {key: value for key, value in case.items() if key != "reshard"}
    for slot, group in (("position", "zoo.positions"), ("kernel", "zoo.kernels")):
        if slot in own:
            own[slot] = plugins.load(group, own[slot])
    network = ViT(**own) if "classes" in own else Decoder(**{**DECODER, **own})
    with torch.no_grad():
        for parameter in network.parameters():  # so that nothing is 0, and every gradient large enough to compare
            parameter += 0.05 * torch.randn_like(parameter)
    return network.train()


def loss(network, part):
    if isinstance(network, ViT):
        images = torch.randn(WORLD * 2, 3, 16, 16, generator=torch.Generator().manual_seed(3))[part]
        return nn.functional.cross_entropy(network(images), torch.arange(WORLD * 2)[part] % 3)
    tokens = torch.randint(0, 33, (WORLD * 2, 25), generator=torch.Generator().manual_seed(3))[part]
    return cross_entropy(network.hidden(tokens[:, :-1]), tokens[:, 1:], network.head, 20)


def optimizer(network):
    return torch.optim.AdamW(network.parameters(), lr=1e-2, eps=1e-3)  # so that it does not make much of small errors


def compare(case, rank):
    """How far weights, moments, gradients and read-outs of the divided model are from those of the whole one."""
    whole, network = build(case), build(case)
    mesh = init_device_mesh("cpu", (WORLD,))
    kept = divide(network, network.trunk, mesh, case.get("reshard", True))
    alone, shared = optimizer(whole), optimizer(network)
    cut = sum(isinstance(parameter, DTensor) for parameter in network.parameters())
    found = {"cut": cut, "kept": len(kept), "gradient": 0.0, "norm": 0.0}
    half = slice(rank * 2, rank * 2 + 2)
    for step in range(STEPS):
        loss(whole, slice(None)).backward()
        for part in (half,) if step else (slice(half.start, half.start + 1), slice(half.start + 1, half.stop)):
            count = 1 if step else 2  # the first step's gradient adds up over two batches
            (loss(network, part) / count).backward()
            average(parameter.grad for parameter in kept if parameter.grad is not None)
        theirs = [parameter.grad for parameter in whole.parameters()]
        mine = [parameter.grad for parameter in network.parameters()]
        assert [g is None for g in mine] == [g is None for g in theirs]
        for one, other in zip(mine, theirs, strict=True):
            if one is not None:
                one = one.full_tensor() if isinstance(one, DTensor) else one
                size = float(other.abs().max()) + 1e-4  # some are 0 but for rounding, as a shift of all logits
                found["gradient"] = max(found["gradient"], float((one - other).abs().max()) / size)
        norm = nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
        with implicit_replication():
            here = nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            shared.step()
        here = here.full_tensor() if isinstance(here, DTensor) else here
        found["norm"] = max(found["norm"], float((here - norm).abs() / norm))
        alone.step()
        alone.zero_grad()
        shared.zero_grad()
    with torch.no_grad():  # after which the outer matrices are still gathered
        found["loss"] = abs(float(loss(network.eval(), half)) - float(loss(whole.eval(), half)))
    state = gathered(network.state_dict(), True)
    found["weights"] = max(float((state[key] - value).abs().max()) for key, value in whole.state_dict().items())
    assert list(state) == list(whole.state_dict())
    moments, expected = gathered(shared.state_dict(), True)["state"], alone.state_dict()["state"]
    found["moments"] = max(
        float((moments[number][key] - value).abs().max())
        for number in expected
        for key, value in expected[number].items()
    )
    state = {name: value.clone() for name, value in state.items()}
    here = network.state_dict()
    network.load_state_dict({name: share(value + 2, here[name]) for name, value in state.items()})
    loaded = gathered(network.state_dict(), True)
    found["loaded"] = max(float((loaded[name] - value - 2).abs().max()) for name, value in state.items())
    return found


def run(rank, folder, names):
    """One of the processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found = {}
    for name in names or CASES:
        try:
            found[name] = compare(CASES[name], rank)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    everyone = [None] * WORLD
    distributed.all_gather_object(everyone, found)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(everyone))
    distributed.destroy_process_group()


if __name__ == "__main__":
    plugins.load_all()
    torch.multiprocessing.start_processes(run, (sys.argv[1], sys.argv[2:]), nprocs=WORLD, start_method="fork")
