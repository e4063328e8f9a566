"""Runs commands of zoo in forked processes, each watched: what it imports, starts, opens and how much it needs.

The parent imports everything once, so a case costs little more than the command itself. A child has an audit hook that
records what an input might have chosen: modules, processes, libraries, sockets, and files outside its folder.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SLOW = 20.0
"""Seconds in which a refusal is to be there."""
KILLED = 60
"""Seconds after which a case is ended."""
SPARE = 512 << 20
"""Bytes that a refusal may need above the memory after imports, beside four times the size of its input."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


@dataclass
class Case:
    """A command to run on an input.

    Args:
        kind: What was mutated.
        seed: Of the mutation, so that it can be made again.
        folder: Where the command runs, and where its input lies.
        command: Its words after `zoo`.
        size: Bytes of the input.
    """

    kind: str
    seed: int
    folder: Path
    command: list[str]
    size: int


@dataclass
class Outcome:
    """What became of a case; `memory` in bytes above that of the parent."""

    case: Case
    status: int
    seconds: float
    memory: int
    output: str
    violations: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words; empty where nothing is."""
        chosen = [] if self.case.kind == "recipe" else self.violations  # a recipe is the user's: any class, any file
        found = [f"chosen by the input: {each}" for each in chosen]
        if "Traceback (most recent call last)" in self.output or "this is a bug" in self.output:
            found.append("a traceback")
        ended = self.case.kind == "recipe" and self.status == -9  # it is being trained: what is valid has no time limit
        if self.status not in (0, 2) and not ended and not (self.status == 1 and self.case.command[0] == "check"):
            found.append(f"status {self.status}")
        if self.status == 2 and self.seconds > SLOW:
            found.append(f"refused after {self.seconds:.0f} s")
        if self.status != 0 and not ended and self.memory > SPARE + 4 * self.case.size:
            found.append(f"{self.memory >> 20} MiB")
        return found


def prepare() -> None:
    """Import all that commands need, so that children do not."""
    import torch

    torch.set_num_threads(1)
    import zoo.analyze.charts
    import zoo.analyze.run
    import zoo.analyze.subject
    import zoo.analyze.summary
    import zoo.evaluate.command
    import zoo.export.command
    import zoo.export.gate
    import zoo.export.write
    import zoo.extend.command
    import zoo.extend.compared
    import zoo.generate
    import zoo.hub.gguf
    import zoo.train
    from zoo import plugins

    plugins.load_all()
    zoo.hub.gguf.file.library()


def run(case: Case) -> Outcome:
    """Run one case in a child, and wait for it."""
    output, noted = case.folder / "output.txt", case.folder / "violations.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    before, start = resident(), time.monotonic()
    child = os.fork()
    if not child:
        act(case, output, noted)
    status, used = wait(child, start)
    told = output.read_text(errors="replace") if output.is_file() else ""
    violations = noted.read_text().splitlines() if noted.is_file() else []
    return Outcome(case, status, time.monotonic() - start, used - before, told, violations)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def wait(child: int, start: float) -> tuple[int, int]:
    """Exit status and peak of memory of a child, which is ended where it takes too long."""
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024
        if time.monotonic() - start > KILLED:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


def act(case: Case, output: Path, noted: Path) -> None:
    """Be the child: run the command, and end."""
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(case.folder)
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
        sys.path.insert(0, str(case.folder))
        watch(case.folder, noted)
        sys.argv = ["zoo", *case.command]
        from zoo import cli

        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def watch(folder: Path, noted: Path) -> None:
    """Note what the input might have chosen, from here on."""
    known = set(sys.modules)
    roots = [str(Path(path).resolve()) for path in sys.path if path and Path(path) != folder]
    may_write = [str(folder.resolve()), os.environ.get("ZOO_CACHE", ""), "/dev/", "/proc/self/", "/tmp/"]
    log = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(line: str) -> None:
        os.write(log, (line.replace("\n", " ")[:300] + "\n").encode(errors="replace"))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import":
            name = str(arguments[0])
            if name not in known and name.split(".")[0] in ("hostile_module", "this", "antigravity"):
                note(f"import {name}")
        elif event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
            note(f"{event} {arguments[0]!r}")
        elif event == "subprocess.Popen":
            words = (
                [str(word) for word in arguments[1]] if isinstance(arguments[1], list | tuple) else [str(arguments[1])]
            )
            if words[:1] != [sys.executable] or "-c" not in words[:3]:
                note(f"process {words[:4]!r}")
        elif event == "ctypes.dlopen":
            if arguments[0] and str(folder) in str(arguments[0]):
                note(f"library {arguments[0]!r}")
        elif event == "socket.connect":
            note(f"connection {arguments[1]!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.endswith("nobodys-secret"):
                note(f"file {path}")
            elif isinstance(arguments[2], int) and arguments[2] & WRITING:
                inside = any(root and path.startswith(root) for root in may_write) or any(map(path.startswith, roots))
                if not inside:
                    note(f"written file {path}")

    sys.addaudithook(hook)
