"""Who writes into a folder: a lock for runs, and names of unfinished files that say which process writes them.

A run holds a lock on its folder: a file that names the host, the process, the time at which the process was started,
and the launcher's job. Of a process of this machine it is known whether it still runs, by its number *and* its start.
Another machine's process shows that it runs by touching the file each minute; the clock that counts is that of the file
system. The lock is made by a hard link, which is atomic on NFS too. Unfinished files carry the process in their names,
so the next command that writes there can remove those of dead processes and leave those of living ones.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, escape_controls

LOCK = ".run.lock"
"""The file in a run's folder."""
SILENCE = 600.0
"""Seconds without a sign of life after which another machine's process is taken for dead."""
BEAT = 60.0
"""Seconds between two signs of life."""
LAUNCHERS = (
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    ("PBS_JOBID", ""),
    ("LSB_JOBID", ""),
)
"""Variables with a launcher's job, and with the number of its restarts."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "NODE_RANK", "GROUP_RANK")
"""Variables that are not 0 in all processes of a run but the first."""
OWNED = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<start>\w+)-(?P<machine>\w+)@(?P<host>[\w.-]+)\.(part|old|gguf)")
"""Names of unfinished files."""
EARLIER = re.compile(r"\..+?(\.(?P<pid>\d+))?\.part")
"""Such names as earlier versions gave, which do not tell the host; they are looked for in folders of runs only."""

_held: dict[Path, str] = {}
"""Locks of this process, and what is written in them."""
_unfinished: set[Path] = set()
"""Files that this process is writing."""
_touched: set[Path] = set()
"""Unfinished files of this process that show a sign of life."""
_beating: list[threading.Thread] = []


# Processes.


@cache
def identify_machine() -> str:
    """What tells apart machines, boots and containers of one host name: numbers of processes are only unique within."""
    words = [_read(Path("/proc/sys/kernel/random/boot_id"))]
    with suppress(OSError):
        words.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


@cache
def host_name() -> str:
    """The name of this host, as it stands in names of files."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:60] or "unknown"


def start_time(pid: int) -> str | None:
    """When a process of this machine was started, as a word to compare; None where there is none that runs."""
    text = _read(Path(f"/proc/{pid}/stat"))
    if text:
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X", "x") else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return re.sub(r"\W", "", told) or None


def describe_process() -> dict[str, Any]:
    """This process, for a lock."""
    job, restarts = next(
        ((f"{name} {os.environ[name]}", os.environ.get(count, "0")) for name, count in LAUNCHERS if named(name)),
        (None, "0"),
    )
    return {
        "host": host_name(),
        "machine": identify_machine(),
        "pid": os.getpid(),
        "start": start_time(os.getpid()) or "0",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "job": job,
        "restarts": int(restarts) if restarts.isdigit() else 0,
        "command": shlex.join(["zoo", *sys.argv[1:]])[:300],
    }


def named(variable: str) -> bool:
    """Whether a launcher says which job this is; torchrun's number without a rendezvous is `none`."""
    return os.environ.get(variable, "none") not in ("", "none")


def is_first_process() -> bool:
    """Whether this is the first process of its run, as the launcher's variables say before any other is known."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def has_ended(owner: Mapping[str, Any], silence: float) -> bool:
    """Whether a process is gone.

    Args:
        owner: Its host, machine, pid and start.
        silence: Seconds since its last sign of life, which count for processes of other machines.
    """
    if owner.get("host") == host_name() and owner.get("machine") == identify_machine():
        return start_time(int(owner["pid"])) != owner.get("start")
    return silence > SILENCE


# The lock of a run's folder.


def acquire_lock(folder: Path, *, unlock: bool = False) -> None:
    """Hold the lock on a folder until `release_locks`, or the end of the process.

    Raises ZooError, which names the other run, where that holds it and may still go on.

    Args:
        folder: A run's folder, which is made where there is none.
        unlock: Take the lock of a process of another machine whose last sign of life is recent.
    """
    path = Path(os.path.realpath(folder)) / LOCK
    own = describe_process()
    if path in _held and json.loads(_held[path])["pid"] == own["pid"] and _read(path) == _held[path]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, text = part_path(path), json.dumps(own)
    try:
        beside.write_text(text, encoding="utf-8")
        with _alone(path.parent):
            while not _link(beside, path):
                _clear_way(path, beside, folder, own, unlock=unlock)
    finally:
        beside.unlink(missing_ok=True)
    _held[path] = text
    _start_beating()


def _clear_way(path: Path, beside: Path, folder: Path, own: Mapping[str, Any], *, unlock: bool) -> None:
    """Set a lock aside whose process is gone; ZooError where it may still go on."""
    text = _read(path)
    try:
        there = dict(json.loads(text))
        int(there["pid"])
    except (ValueError, TypeError, KeyError):
        there = {}  # damaged: only its age is known
    os.utime(beside)
    try:
        silence = beside.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return  # it has been released
    same = all(there.get(key) == own[key] for key in ("host", "machine", "pid", "start"))
    restarted = own["job"] is not None and there.get("job") == own["job"] and own["restarts"] > _count(there)
    remote = (there.get("host"), there.get("machine")) != (own["host"], own["machine"])
    if not (same or restarted or has_ended(there, silence) or (unlock and remote)):
        raise ZooError(_refusal(folder, there, silence, remote=remote))
    old = part_path(path, "old")
    with suppress(FileNotFoundError):
        os.rename(path, old)
    if _read(old) not in (text, ""):  # another process has taken it meanwhile: give it back
        with suppress(OSError):
            os.link(old, path)
    elif not same:
        reason = "has ended" if not remote else "gives no sign of life" if silence > SILENCE else "is taken for ended"
        print(f"zoo: {escape_controls(_name(there))} {reason}; this run takes over {folder}", file=sys.stderr)
    old.unlink(missing_ok=True)


def _count(there: Mapping[str, Any]) -> int:
    return there["restarts"] if isinstance(there.get("restarts"), int) else 0


def _name(there: Mapping[str, Any]) -> str:
    """A run, for a sentence."""
    if not there:
        return "a run whose lock cannot be read"
    job = f", {there['job']}" if there.get("job") else ""
    return f"the run of process {there['pid']} on {there.get('host')}{job}, begun {there.get('since')}"


def _refusal(folder: Path, there: Mapping[str, Any], silence: float, *, remote: bool) -> str:
    """What a second run is told."""
    lines = [f"{folder} is the folder of another run: {_name(there)}."]
    if there.get("command"):
        lines.append(f"  It was started by:  {there['command']}")
    if remote:
        lines.append(
            f"  That process is not one of this machine; its last sign of life is {max(0, round(silence))} s old, and "
            f"after {SILENCE:.0f} s it is taken for ended. Where you know that it has ended:  --unlock"
        )
    lines.append("  Wait for its end, or run elsewhere:   Try:  --trainer.default_root_dir FOLDER")
    return "\n".join(lines)


def _link(beside: Path, path: Path) -> bool:
    """Give a written file its name, unless another has it; whether that was done."""
    try:
        os.link(beside, path)
    except FileExistsError:
        return beside.stat().st_nlink == 2  # the answer of an NFS server may have been lost, and the link be there
    except OSError:  # a file system without links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(beside.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have processes of this machine look at a lock one after the other; elsewhere the checks after a rename count."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS locks no folders
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def release_locks(kept: Sequence[Path] = ()) -> None:
    """Give back the locks of this process, but for some that it keeps."""
    for path in [path for path in _held if path not in kept]:
        text = _held.pop(path)
        if json.loads(text)["pid"] == os.getpid() and _read(path) == text:  # not those that a forked process inherits
            with suppress(OSError):
                path.unlink()


atexit.register(release_locks)


@contextmanager
def releasing_locks() -> Iterator[None]:
    """Give back, at the end, the locks that were acquired within."""
    before = list(_held)
    try:
        yield
    finally:
        release_locks(before)


def _start_beating() -> None:
    if not (_beating and _beating[0].is_alive()):
        _beating[:] = [threading.Thread(target=_beat, name="zoo: signs of life", daemon=True)]
        _beating[0].start()


def _beat() -> None:
    """Show signs of life for all that this process holds."""
    while True:
        time.sleep(BEAT)
        touch_held()


def touch_held() -> None:
    """Show a sign of life; a lock that another run has taken is no longer held."""
    for path, text in list(_held.items()):
        if _read(path) == text:
            with suppress(OSError):
                os.utime(path)
        elif _held.pop(path, None) and path.exists():
            there = escape_controls(_read(path)[:300])
            print(f"zoo: another run has taken over {path.parent}, while this one goes on: {there}", file=sys.stderr)
    for path in list(_touched):
        with suppress(OSError):
            os.utime(path)


# Unfinished files.


def part_path(path: Path, kind: str = "part") -> Path:
    """The hidden name beside a file or folder under which this process writes it.

    Args:
        path: The final name.
        kind: part, for what is being written; old, for what stood there before and is put back where nothing does.
    """
    return path.with_name(f".{path.name}.{_token()}.{kind}")


@cache
def _token_of(pid: int) -> str:
    return f"{pid}-{start_time(pid) or 0}-{identify_machine()}@{host_name()}"


def _token() -> str:
    return _token_of(os.getpid())


@contextmanager
def showing_life(path: Path) -> Iterator[None]:
    """Touch an unfinished file each minute, while others read it or its content is computed."""
    _touched.add(path)
    _start_beating()
    try:
        yield
    finally:
        _touched.discard(path)


@contextmanager
def writing(path: Path, *, replaces_folder: bool = False) -> Iterator[Path]:
    """A name for what is written, which takes its place at the end, and is removed where anything goes wrong.

    Args:
        path: The final name.
        replaces_folder: Whether a folder that stands there is replaced by a file.
    """
    beside = part_path(path)
    _unfinished.add(beside)
    try:
        yield beside
        if replaces_folder:
            put_in_place(beside, path)
        else:
            os.replace(beside, path)
    finally:
        remove_path(beside)
        _unfinished.discard(beside)


def abandon_writing() -> None:
    """Remove what this process is writing, and release its locks, where it ends without running to its end."""
    for path in list(_unfinished):
        remove_path(path)
    release_locks()


def remove_left_overs(folder: Path, *, recursive: bool = False, earlier: bool = False) -> None:
    """Remove unfinished files of processes that are gone, and put back what they had set aside.

    What processes of other machines write is left where it was written to, or touched, within ten minutes.

    Args:
        folder: Where to look; there may be none.
        recursive: Look in folders below too.
        earlier: Remove files by the names that earlier versions gave them; only in a run's own folder.
    """
    for path in sorted(folder.glob("**/.*" if recursive else ".*")):
        if not is_left_over(path, earlier=earlier):
            continue
        target = path.with_name(owned["name"]) if (owned := OWNED.fullmatch(path.name)) else None
        if path.suffix == ".old" and target is not None:
            torn = path.is_file() and target.is_dir() and not (target / "latest").is_file()
            if torn:  # a save of ZeRO's that was not finished, in the place of a file
                shutil.rmtree(target, ignore_errors=True)
            if torn or not (target.exists() or target.is_symlink()):
                with suppress(OSError):
                    os.rename(path, target)
                continue
        remove_path(path)


def is_left_over(path: Path, *, earlier: bool = False) -> bool:
    """Whether a name is that of an unfinished file whose process is gone."""
    owned = OWNED.fullmatch(path.name)
    match = owned or (EARLIER.fullmatch(path.name) if earlier else None)
    if match is None:
        return False
    try:
        every = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        silence = time.time() - max(each.lstat().st_mtime for each in every)
    except OSError:
        return False  # it is being written, or renamed
    if owned:
        return has_ended({**owned.groupdict(), "pid": int(owned["pid"])}, silence)
    return silence > SILENCE and (match["pid"] is None or start_time(int(match["pid"])) is None)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def put_in_place(beside: Path, target: Path) -> None:
    """Rename; a folder that stands there is set aside before, and put back should that fail."""
    if not target.is_dir() or target.is_symlink():
        os.replace(beside, target)
        return
    old = part_path(target, "old")
    os.replace(target, old)
    try:
        os.replace(beside, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


# Disks.

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says of a disk, a share of one or a file that takes no more."""
WRITER = re.compile(r"PytorchStreamWriter|inline_container.*(unexpected pos|write)", re.DOTALL)
"""What torch's writer of archives says where it writes to the disk by itself, and the disk takes no more."""


def find_os_error(error: BaseException | None) -> OSError | None:
    """What the system said, among the errors that came of it: torch's writer of archives raises others over it."""
    seen, wrote = set[int](), False
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        wrote = wrote or (isinstance(error, RuntimeError) and WRITER.search(str(error)) is not None)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return OSError(errno.ENOSPC, "torch could not write all of it, so the disk is probably full") if wrote else None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a disk that takes no more is the reason of an error."""
    found = find_os_error(error)
    return found is not None and found.errno in FULL


def _read(path: Path) -> str:
    """A small file; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
