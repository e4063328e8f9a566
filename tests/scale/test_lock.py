"""Several processes are one run: the first holds the folder, and a second run of as many is told so."""

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from together import begin, fit, furnish

from zoo import checkpoints, lock

deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
OVERLAYS = pytest.mark.parametrize("overlay", ["ddp", pytest.param("zero2", marks=deepspeed)])
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def stop(processes):
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.slow
@OVERLAYS
def test_a_second_run_of_two_processes_is_told_of_the_first(tmp_path, overlay):
    place = furnish(tmp_path / "x")
    first = begin(place, 2, "--trainer.max_steps=99999", overlay=overlay)
    while not list(place.rglob("last.ckpt")):
        assert all(process.exitcode is None for process in first)
        time.sleep(0.05)
    second = begin(place, 2, "--ckpt_path=auto", overlay=overlay)
    second[0].join(60)
    assert second[0].exitcode == 2
    stop(second)
    assert f"process {first[0].pid} on {lock.host_name()}" in (place / "log-0.txt").read_text()
    assert all(process.exitcode is None for process in first), "the first one goes on"
    stop(first)
    told = fit(
        place, 2, "--ckpt_path=auto", "--trainer.max_steps=99999", "--trainer.max_time=00:00:00:03", overlay=overlay
    )
    assert f"process {first[0].pid} on {lock.host_name()}" in told
    assert "this run takes over run" in told
    assert not list(place.rglob(lock.LOCK))


@pytest.mark.slow
@OVERLAYS
def test_a_disk_that_fills_ends_all_processes(tmp_path, overlay):
    place = furnish(tmp_path / "x")
    fit(place, 2, "--trainer.max_steps=5", overlay=overlay)
    processes = begin(place, 2, "--ckpt_path=auto", overlay=overlay, before=FULL)
    processes[0].join(60)
    status = processes[0].exitcode
    stop(processes)
    told = (place / "log-0.txt").read_text()
    assert status == 2, told
    assert "Traceback" not in told
    assert "was not written" in told
    assert checkpoints.listed(next(place.rglob("last.ckpt"))).about["trained"]["steps"] == 5
    assert not list(place.rglob(".*"))
