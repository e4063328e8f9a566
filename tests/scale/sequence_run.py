"""Four processes share sequences by two and by four, and each case is compared with one process on the whole batch.

python sequence_run.py FOLDER [CASE ...]    writes FOLDER/found.json: for each case what differs, and by how much

All cases run in the same processes, which are forked, since starting is what takes long. One process's loss is torch's
own cross-entropy over logits in float64; its gradients and its AdamW steps are those of that loss.
"""

import functools
import json
import sys
import traceback
from pathlib import Path

import torch
from cases import CASES, LENGTH, VOCABULARY, Plain
from torch import distributed
from torch.nn import functional

from zoo import plugins
from zoo.loss import IGNORED
from zoo.scale.sequence import join
from zoo.tasks import LanguageModel

WORLD, STEPS = 4, 3
SMALL = {
    "vocabulary": VOCABULARY,
    "length": LENGTH,
    "dim": 32,
    "layers": 2,
    "heads": 4,
    "hidden": 48,
    "std": 0.2,
    "chunk": 7,
}


def build(position="RoPE", kernel="Eager", settings=None, model=None, share=1, **rest):
    """A task with its network in float64, the same weights in each process and with every share."""
    torch.manual_seed(0)
    slots = {"position": slot("zoo.positions", position, settings), "kernel": slot("zoo.kernels", kernel)}
    task = LanguageModel(**{**SMALL, **slots, **(model or {}), "sequence_parallel": share})
    task.log = lambda *words, **more: None
    task.parallel = join(share) if share > 1 else None
    task.network = network = task.build()[0].double()
    with torch.no_grad():  # encodings that start as none, and heads that start alike, would show nothing
        for name, parameter in network.named_parameters():
            if "positions" in name or "kernel" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    return task.train()


def slot(group, name, settings=None):
    kind = Plain if name == "Plain" else plugins.load(group, name)
    settings = dict(settings or {})
    if "extension" in settings:
        extension, more = settings["extension"]
        settings["extension"] = functools.partial(plugins.load("zoo.extensions", extension), **more)
    return functools.partial(kind, **settings)


def batches(readers, positions=None, documents=False, **rest):
    """For each step a global batch, one row a reader, and documents that are cut elsewhere in each row and step."""
    draw = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        batch = {"tokens": torch.randint(VOCABULARY, (readers, LENGTH + 1), generator=draw)}
        cuts = torch.randint(1, LENGTH, (readers, 1 + 2 * step), generator=draw)
        cuts[0] = cuts[0, 0]  # so that readers have unequal numbers of targets
        batch["documents"] = (torch.arange(LENGTH + 1)[None, :, None] >= cuts[:, None]).sum(-1).int()
        if positions:
            drawn = torch.randperm(positions, generator=draw)[: readers * LENGTH].view(readers, LENGTH)
            batch["positions"] = drawn.sort(-1).values
        yield batch


def alone(task, batch):
    """The loss of one process, by definition."""
    hidden, targets = task.read(batch)
    logits = task.network.head(hidden).double()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def compare(case, rank):
    """Largest differences, relative to the largest number: of losses, gradients, weights after three steps."""
    share = case.get("share", 2)
    together, one = build(**{**case, "share": share}), build(**{**case, "share": 1})
    reader, readers = rank // share, WORLD // share
    steps = [torch.optim.AdamW(task.parameters(), lr=1e-2, eps=1e-5) for task in (together, one)]
    found = {"loss": 0.0, "gradients": 0.0, "weights": 0.0, "which": "", "touched": 0}
    for number, batch in enumerate(batches(readers, **case)):
        torch.manual_seed(
            number + 100 * (rank % share) * case.get("astray", 0)
        )  # processes whose generators went apart
        loss = together.training_step({name: rows[reader : reader + 1] for name, rows in batch.items()}, 0)
        loss.backward()
        torch.manual_seed(number)
        right = alone(one, batch)
        right.backward()
        for (name, mine), theirs in zip(together.network.named_parameters(), one.network.parameters(), strict=True):
            if not mine.requires_grad:
                continue
            gradient = torch.zeros_like(mine) if mine.grad is None else mine.grad
            distributed.all_reduce(gradient)
            mine.grad = gradient / WORLD  # what DDP and ZeRO do
            other = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            gap = float((mine.grad - other).abs().max() / other.abs().max().clamp(min=1e-3))
            if gap > found["gradients"]:
                found |= {"gradients": gap, "which": name}
            found["touched"] += bool(other.abs().max() > 1e-6)
        total = loss.detach().double()
        distributed.all_reduce(total)
        found["loss"] = max(found["loss"], abs(float(total / WORLD - right.detach())))
        for step in steps:
            step.step()
            step.zero_grad()
    pairs = zip(together.parameters(), one.parameters(), strict=True)
    found["weights"] = max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)
    together.eval()
    batch = next(batches(readers, **case))
    row = {name: rows[reader : reader + 1] for name, rows in batch.items()}
    with torch.no_grad():
        together.measure(row, "val")
        hidden, targets = one.eval().read(batch)
        nats = functional.cross_entropy(one.network.head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        found["perplexity"] = abs(float(together.perplexity.compute() / nats.exp()) - 1)
        told = together.predict_step(row, 0)[0]
        known = functional.cross_entropy(one.network.head(hidden)[reader], targets[reader], reduction="none")
        found["predicted"] = float((told - known).abs().max())
    return found


def run(rank, folder, names):
    """One process of the four."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found = {}
    for name in names or CASES:
        try:
            found[name] = compare(CASES[name], rank)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
        errors = [None] * WORLD
        distributed.all_gather_object(errors, found[name])  # also so that nobody runs ahead of one that failed
        found[name] = next((one for one in errors if "error" in one), {**found[name], "all": errors})
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    plugins.load_all()
    torch.multiprocessing.start_processes(run, (sys.argv[1], sys.argv[2:]), nprocs=WORLD, start_method="fork")
