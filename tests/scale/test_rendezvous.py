"""Processes that find each other, and what is said by those that do not."""

import os
import re
import socket
import subprocess
import sys
import threading

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from zoo.errors import ZooError
from zoo.scale import DDP
from zoo.scale.rendezvous import meet


def free():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Machine(LightningEnvironment):
    def __init__(self, rank, world, port, address="127.0.0.1"):
        super().__init__()
        self._global_rank, self._world_size = rank, world
        self.port, self.address = port, address

    main_port = property(lambda self: self.port)
    main_address = property(lambda self: self.address)


def together(*machines, patience):
    """What each of them says."""
    said = {}

    def go(number, machine):
        try:
            said[number] = meet(machine, patience)
        except ZooError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=go, args=each) for each in enumerate(machines)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return [said[number] for number in range(len(machines))]


def test_all_who_come_meet():
    port = free()
    said = together(*(Machine(rank, 3, port) for rank in (2, 0, 1)), patience=30)
    assert all(isinstance(each, torch.distributed.TCPStore) for each in said)


def test_one_who_does_not_come_is_told_of_by_all_others():
    port = free()
    said = together(*(Machine(rank, 4, port) for rank in (0, 1, 3)), patience=1.5)
    assert said == [said[0]] * 3
    assert said[0].startswith(f"3 of 4 processes have come to 127.0.0.1:{port} within 1.5 s.   Try:")


def test_a_first_process_that_is_not_there():
    port = free()
    with pytest.raises(ZooError, match=rf"Process 1 of 2 finds no first process at 127.0.0.1:{port}.*MASTER_ADDR"):
        meet(Machine(1, 2, port), 1)


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ZooError, match=rf"first of 2 processes cannot listen at 127.0.0.1:{port}.*MASTER_PORT"):
            meet(Machine(0, 2, port), 1)


def test_an_address_that_does_not_exist():
    with pytest.raises(ZooError, match=r"no first process at nowhere\.invalid:29500"):
        meet(Machine(1, 2, 29500, "nowhere.invalid"), 1)


def test_one_process_meets_nobody():
    assert meet(Machine(0, 1, 1), 0) is None


def test_its_settings_are_lightnings_and_its_own():
    strategy = DDP(patience=5, find_unused_parameters=True)
    assert strategy.patience == 5
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}


RUN = """
import sys
from zoo.cli import main
main()
"""


def fit(place, port, *flags, **more):
    (place / "run.py").write_text(RUN)
    (place / "recipe.yaml").write_text("trainer: {strategy: {class_path: zoo.scale.DDP}}")
    (place / "texts").mkdir(exist_ok=True)
    for number in range(4):
        (place / "texts" / f"{number}.txt").write_text(" ".join(str(number * 7919 + i * i) for i in range(110)))
    words = [
        sys.executable, "run.py", "fit", "--model.length=16", "--model.dim=32", "--model.layers=1", "--model.heads=2",
        "--data.files=texts", "--data.tokenizer=bytes", "--data.batch=4", "--data.workers=0", "--data.cache=cache",
        "--trainer.accelerator=cpu", "--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--data.valid=0",
        "--data.test=0", "--trainer.enable_progress_bar=false", "--config=recipe.yaml", *flags,
    ]  # fmt: skip
    env = os.environ | {"MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1"} | more
    return subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    run = fit(tmp_path, free(), "--trainer.devices=2")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Starting with 2 processes" in run.stderr
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1


@pytest.mark.slow
def test_a_machine_that_never_comes(tmp_path):
    port = free()
    run = fit(
        tmp_path, port, "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy.patience=2", NODE_RANK="0"
    )
    assert run.returncode == 2, run.stderr[-3000:]
    assert re.search(rf"zoo: 1 of 2 processes have come to 127.0.0.1:{port} within 2 s", run.stderr)
    assert "Traceback" not in run.stderr
