"""What a command says where something fails that nobody foresaw: whose code it was, and what would help.

A user's mistake is a `ZooError`, and its sentence is all there is to say. Whatever else is raised is a defect of zoo's,
of a plugin's or of the user's own code, or there was too little memory. `ZOO_TRACEBACK=1` prints tracebacks.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import TracebackType

from zoo import __version__, plugins
from zoo.errors import escape_controls

OWN = ("zoo", "zoo_positions", "zoo_kernels")
"""Packages of this distribution."""
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory", re.I)
VARIABLE = "ZOO_TRACEBACK"


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def explain_failure(error: BaseException) -> tuple[str, int]:
    """The sentence for an exception that is no ZooError, and the exit status of the command.

    A traceback that points at a defect of zoo's is written to a file, which the sentence names.
    """
    if lacks_memory(error):
        return (
            "There is not enough memory for this.   Try:  a smaller --data.batch or --data.length, "
            "--model.checkpointing true, or --model.feed_forward_chunk 1024; evaluate and analyze take shorter lengths",
            2,
        )
    said = (str(error).strip().splitlines() or [""])[0][:300]
    what = escape_controls(f"{type(error).__name__}{': ' * bool(said)}{said}")
    owner = blame(error.__traceback__)
    if owner is not None:
        return (
            f"{owner} raised {what}.\n  It is not a part of zoo. {VARIABLE}=1 prints where.",
            1,
        )
    path = write_traceback(error)
    return f"{what}\n  The traceback is in {path}. Please report it with the command that led to it: this is a bug", 1


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it came of, says that memory is used up."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(str(error))):
            return True
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return False


def blame(where: TracebackType | None) -> str | None:
    """Whose code raised: the distribution or file of the innermost frame outside libraries; None for zoo's own."""
    for path in reversed(list(files_of(where))):
        package = package_of(path)
        if package in OWN:
            return None
        if package is None:
            if not in_libraries(path):
                return f"The file {path}"
        elif package in plugin_packages():
            return f"The plugin {', '.join(packages_distributions().get(package, [package]))}"
    return None


def files_of(where: TracebackType | None) -> Iterator[Path]:
    """The file of each frame, the outermost first."""
    for frame in traceback.extract_tb(where):
        if not frame.filename.startswith("<"):
            yield Path(frame.filename)


def package_of(path: Path) -> str | None:
    """The top-level package that a file belongs to, of those that are imported; None where it is of none."""
    for name in (*OWN, *plugin_packages()):
        module = sys.modules.get(name)
        found = getattr(module, "__file__", None)
        if found and (
            path == Path(found) or (Path(found).name == "__init__.py" and Path(found).parent in path.parents)
        ):
            return name
    return None


def plugin_packages() -> set[str]:
    """Top-level packages that bring plugins, zoo's own left out."""
    found = {row.target.partition(":")[0].partition(".")[0] for row in plugins.table()}
    return found - set(OWN)


def in_libraries(path: Path) -> bool:
    """Whether a file is of an installed distribution or of Python itself."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(root) in path.parents for root in roots if root) or "site-packages" in path.parts


def write_traceback(error: BaseException) -> Path:
    """Keep a traceback in a file, with what a report needs."""
    with tempfile.NamedTemporaryFile("w", prefix="zoo-traceback-", suffix=".txt", delete=False) as file:
        file.write(f"zoo {__version__}, Python {sys.version.split()[0]}\n{' '.join(sys.argv)}\n\n")
        file.write("".join(traceback.format_exception(error)))
    return Path(file.name)
