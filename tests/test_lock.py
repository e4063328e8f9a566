"""A run holds its folder, a second one is told which, and what dead processes left is removed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo import lock
from zoo.errors import ZooError

HOLDER = """
import sys, time
from pathlib import Path
from zoo import lock
lock.acquire_lock(Path(sys.argv[1]))
lock.part_path(Path(sys.argv[1]) / "x").write_text("half")
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*lock.RANKS, *(name for pair in lock.LAUNCHERS for name in pair if name)):
        monkeypatch.delenv(name, raising=False)
    yield
    lock.release_locks()


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder, and writes a file in it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def foreign(folder: Path, silence: float = 0, **changes) -> Path:
    """A lock of a process of another machine."""
    path = folder / lock.LOCK
    path.write_text(json.dumps(lock.describe_process() | {"host": "node7", "machine": "ab12", "pid": 4242} | changes))
    os.utime(path, (time.time() - silence,) * 2)
    return path


def test_a_second_process_is_told_which_holds_the_folder(tmp_path, other):
    for unlock in (False, True):
        with pytest.raises(ZooError) as error:
            lock.acquire_lock(tmp_path, unlock=unlock)
        for words in (
            f"{tmp_path} is the folder",
            f"process {other.pid} on {lock.host_name()}",
            "--trainer.default_root",
        ):
            assert words in str(error.value)
        assert "--unlock" not in str(error.value), "whether it runs is known here"
    assert len(list(tmp_path.iterdir())) == 2, "the lock and the other's file: nothing of the second is left"


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, other, reaped, capsys):
    other.kill()
    if reaped:
        other.wait()
    else:
        while lock.start_time(other.pid) is not None:
            time.sleep(0.01)
    lock.acquire_lock(tmp_path)
    assert f"process {other.pid} on {lock.host_name()}" in capsys.readouterr().err
    assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    lock.remove_left_overs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK]
    lock.release_locks()
    assert not list(tmp_path.iterdir())


def test_a_number_of_a_process_that_is_given_again_is_another_process(tmp_path):
    text = json.dumps(lock.describe_process() | {"pid": os.getppid(), "start": "1"})
    (tmp_path / lock.LOCK).write_text(text)
    lock.acquire_lock(tmp_path)


def test_another_machine_counts_by_its_signs_of_life(tmp_path, capsys):
    path = foreign(tmp_path, 590)
    with pytest.raises(ZooError, match=r"process 4242 on node7(.|\n)*last sign of life is 5[89]\d s(.|\n)*--unlock"):
        lock.acquire_lock(tmp_path)
    lock.acquire_lock(tmp_path, unlock=True)
    assert "is taken for ended" in capsys.readouterr().err
    lock.release_locks()
    foreign(tmp_path, 610)
    lock.acquire_lock(tmp_path)
    assert "gives no sign of life" in capsys.readouterr().err
    os.utime(path, (1, 1))
    lock.touch_held()
    assert time.time() - path.stat().st_mtime < 60


def test_a_job_that_its_launcher_has_started_again_takes_its_lock_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    foreign(tmp_path, job="SLURM_JOB_ID 77", restarts=0)
    with pytest.raises(ZooError, match="SLURM_JOB_ID 77"):
        lock.acquire_lock(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock.acquire_lock(tmp_path)


def test_a_lock_that_cannot_be_read_counts_by_its_age(tmp_path):
    path = tmp_path / lock.LOCK
    path.write_text('{"pid": ')
    with pytest.raises(ZooError, match="cannot be read"):
        lock.acquire_lock(tmp_path)
    os.utime(path, (1, 1))
    lock.acquire_lock(tmp_path)


def test_a_run_whose_lock_was_taken_says_so_and_leaves_it(tmp_path, capsys):
    lock.acquire_lock(tmp_path)
    path = foreign(tmp_path, 100)
    before = path.stat().st_mtime
    lock.touch_held()
    assert "another run has taken over" in capsys.readouterr().err
    lock.release_locks()
    assert path.stat().st_mtime == before


def test_without_hard_links_it_is_held_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    lock.acquire_lock(tmp_path)
    assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    lock.release_locks()
    foreign(tmp_path)
    with pytest.raises(ZooError, match="node7"):
        lock.acquire_lock(tmp_path)


def test_of_many_at_once_one_gets_a_stale_lock(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom zoo import lock\nfrom zoo.errors import ZooError\n"
        "sys.stdin.readline()\n"
        "for number in range(5):\n"
        "    folder = Path(sys.argv[1]) / str(number)\n"
        "    try:\n        lock.acquire_lock(folder)\n        print(number, flush=True)\n"
        "    except ZooError:\n        pass\n"
        "print('end', flush=True)\nsys.stdin.readline()\n"
    )
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        foreign(tmp_path / str(number), 700)
    every = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, stderr=-3, text=True)
        for _ in range(6)
    ]
    for process in every:
        process.stdin.write("\n")
        process.stdin.flush()
    got = [line.strip() for process in every for line in iter(process.stdout.readline, "end\n")]
    for process in every:
        process.communicate("\n")
    assert sorted(got) == [str(number) for number in range(5)], "each once"


def test_left_overs_of_the_living_stay(tmp_path, other):
    mine = lock.part_path(tmp_path / "mine")
    mine.mkdir()
    far = tmp_path / ".y.4242-17-ab12@node7.part"
    far.write_text("half")
    others = [tmp_path / name for name in (".bashrc.old", ".x.part", ".x.99999999.part", "y.part")]
    for path in others:
        path.write_text("a user's")
        os.utime(path, (1, 1))
    lock.remove_left_overs(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {mine.name, far.name, *(path.name for path in others)} < names
    assert any(f".{other.pid}-" in name for name in names)
    os.utime(far, (1, 1))
    lock.remove_left_overs(tmp_path, earlier=True)
    assert not far.exists()
    assert {path.name for path in others if path.exists()} == {".bashrc.old", "y.part"}, "by an earlier version's names"


def test_what_a_dead_process_had_set_aside_is_put_back(tmp_path):
    dead = f"{os.getpid()}-1-{lock.identify_machine()}@{lock.host_name()}"
    (tmp_path / f".gone.ckpt.{dead}.old").write_text("whole")
    (tmp_path / f".there.ckpt.{dead}.old").write_text("older")
    (tmp_path / "there.ckpt").write_text("newer")
    (tmp_path / f".zero.ckpt.{dead}.old").write_text("whole")
    (tmp_path / "zero.ckpt" / "step3").mkdir(parents=True)
    lock.remove_left_overs(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "gone.ckpt": "whole", "there.ckpt": "newer", "zero.ckpt": "whole",
    }  # fmt: skip


def test_only_the_first_process_of_a_run_needs_a_lock(monkeypatch):
    assert lock.is_first_process()
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert not lock.is_first_process()


def test_a_forked_process_does_not_give_the_lock_back(tmp_path):
    lock.acquire_lock(tmp_path)
    if (pid := os.fork()) == 0:
        lock.release_locks()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / lock.LOCK).exists()


def test_a_process_that_ends_at_once_leaves_nothing_unfinished(tmp_path):
    if (pid := os.fork()) == 0:
        lock.acquire_lock(tmp_path)
        with lock.writing(tmp_path / "whole") as beside:
            beside.write_text("whole")
        with lock.writing(tmp_path / "half") as beside:
            beside.write_text("half")
            lock.abandon_writing()
            os._exit(0)
    os.waitpid(pid, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_signals_are_those_of_this_system():
    assert lock.start_time(os.getpid()) == lock.start_time(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    assert lock.start_time(process.pid) is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.start_time(process.pid) is None
