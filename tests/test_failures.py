"""Whatever is raised that nobody foresaw ends in a sentence that says whose code it was."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo import cli, failures
from zoo.errors import ZooError
from zoo.position import Geometry


def caught(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def end(capsys, monkeypatch, error, words=("plugins",)):
    """Status and words of a command in which something is raised."""

    def fails(argv):
        raise error

    monkeypatch.setattr(cli, "run", fails)
    monkeypatch.setattr(sys, "argv", ["zoo", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr().err


def test_a_defect_of_ours_says_so_and_keeps_the_traceback(capsys, monkeypatch):
    error = caught(lambda: Geometry(dim=None, heads=1, kv_heads=1, head_dim=1, length=(1,)))
    assert not isinstance(error, ZooError)
    status, told = end(capsys, monkeypatch, error)
    assert status == 1
    assert told.strip().splitlines()[-1].endswith("this is a bug")
    assert "Traceback" not in told
    path = next(word for word in told.split() if word.endswith(".txt.")).rstrip(".")
    assert "Traceback (most recent call last)" in Path(path).read_text()


def test_the_code_of_others_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import json\ndef fail(): json.loads('{')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    told, status = failures.explain_failure(caught(mine.fail))
    assert status == 1
    assert told.startswith(f"The file {tmp_path / 'mine.py'} raised JSONDecodeError")
    monkeypatch.setattr(failures, "plugin_packages", lambda: {"mine"})
    assert failures.explain_failure(caught(mine.fail))[0].startswith("The plugin mine raised")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_where_memory_is_used_up_it_says_what_to_lower(error, capsys, monkeypatch):
    status, told = end(capsys, monkeypatch, error)
    assert status == 2
    assert "--data.batch" in told
    wrapped = ValueError("while that was handled")
    wrapped.__cause__ = error
    assert failures.lacks_memory(wrapped)
    assert not failures.lacks_memory(RuntimeError("shapes do not fit"))


def test_authors_get_tracebacks(monkeypatch):
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    monkeypatch.setattr(cli, "run", lambda argv: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_terminal_of_ascii_and_closed_streams():
    zoo = [sys.executable, "-c", "import sys; from zoo.cli import main; main()"]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "LANG": "C"}
    done = subprocess.run([*zoo, "check", "caf\u00e9\u4f4d"], capture_output=True, env=environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"caf\\xe9\\u4f4d" in done.stderr
    script = '"$0" -c "from zoo.cli import main; main()" generate nowhere --prompt - <&-'
    closed = subprocess.run(["/bin/sh", "-c", script, sys.executable], capture_output=True)
    assert closed.returncode == 2
    assert b"Traceback" not in closed.stderr
