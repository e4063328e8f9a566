"""Trains a small network for three steps with DeepSpeed on two CPU processes, saves it, and what DeepSpeed reads of it.

python zero_run.py STAGE DIRECTORY PORT
"""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn

WORLD = 2
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # which would compile for minutes


class Network(nn.Module):
    """Odd sizes, tied, frozen and normalised weights, buffers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 7)
        self.inner, self.frozen, self.norm = nn.Linear(7, 5), nn.Linear(5, 7), nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("waves", torch.arange(3.0) / 7)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)

    def forward(self, x):
        return self.head(self.frozen(torch.tanh(self.inner(self.embedding(x)))))


class Task(nn.Module):
    """As a LightningModule has it: the network under a name."""

    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, x):
        return self.network(x).float().logsumexp(-1).mean()


def run(rank, stage, path, port):
    """One process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = port
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "sub_group_size": 60}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True},
    }
    with deepspeed.zero.Init(enabled=stage == 3, config_dict_or_path=config):
        task = Task()
    wanted = [p for p in task.parameters() if p.requires_grad]
    matrices = [p for p in wanted if len(getattr(p, "ds_shape", p.shape)) > 1]
    rest = [p for p in wanted if len(getattr(p, "ds_shape", p.shape)) < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": rest, "weight_decay": 0.0}], lr=1e-2)
    engine, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=config, dist_init_required=False)
    for _ in range(3):
        engine.backward(engine(torch.randint(0, 13, (2, 6))))
        engine.step()
    engine.save_checkpoint(path, client_state={"zoo": {"format": 1}, "epoch": 1, "global_step": 3}, tag="checkpoint")
    torch.distributed.barrier()
    if rank == 0:
        torch.save(dict(get_fp32_state_dict_from_zero_checkpoint(path)), os.path.join(path, "read.pt"))


if __name__ == "__main__":
    torch.multiprocessing.spawn(run, (int(sys.argv[1]), *sys.argv[2:]), nprocs=WORLD)
