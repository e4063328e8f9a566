"""Commands of zoo on damaged input: `python tests/fuzz --checkpoints 2000 --recipes 1000`, or `--share` for a small part.

Each case is an ordinary command on a mutated checkpoint or recipe, in a process of its own. There must be no traceback,
no refusal that takes over 20 s or 512 MiB and four times the size of the input, and nothing that the input chose.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import server

import checkpoints
import recipes

MAKERS = {"checkpoints": checkpoints.make, "recipes": recipes.make}


def work(what: str, whole: Path, place: Path, seeds: list[int], until: float, answers) -> None:  # type: ignore[no-untyped-def]
    """Run cases one after the other, and tell of each; a worker forks once a case."""
    os.environ.setdefault("ZOO_CACHE", str(place / "cache"))
    server.prepare()
    for seed in seeds:
        if time.monotonic() > until:
            break
        folder = place / f"{what}-{seed}"
        try:
            outcome = server.run(MAKERS[what](whole, folder, seed))
        except BaseException as error:
            answers.put(("harness", seed, [f"the harness failed: {type(error).__name__}: {error}"], 0.0, 0, 0, ""))
            raise
        answers.put(
            (
                outcome.case.kind, seed, outcome.faults, outcome.seconds, outcome.memory, outcome.status,
                outcome.output[-1500:] if outcome.faults else "",
            )
        )  # fmt: skip
        if not outcome.faults:
            shutil.rmtree(folder, ignore_errors=True)
    answers.put(None)


def main() -> None:
    """Run what is asked for; exit status 1 where a case is at fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=2000, help="cases of damaged checkpoints (%(default)s)")
    parser.add_argument("--recipes", type=int, default=1000, help="cases of damaged recipes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--share", action="store_true", help="a part that takes at most 3 minutes on two cores")
    parser.add_argument("--keep", type=Path, help="a folder for the cases at fault")
    options = parser.parse_args()
    if options.share:
        options.seconds = 120.0
    os.environ["HF_HUB_OFFLINE"] = "1"
    place = options.keep or Path(tempfile.mkdtemp(prefix="zoo-fuzz-"))
    whole = place / "whole"
    context = get_context("spawn")
    first = context.Process(target=checkpoints.furnish, args=(whole,))
    first.start()
    first.join()
    if first.exitcode:
        sys.exit("The whole checkpoints could not be made.")
    answers, start = context.Queue(), time.monotonic()
    workers = []
    for what, count in (("checkpoints", options.checkpoints), ("recipes", options.recipes)):
        jobs = max(1, options.jobs // 2)
        for job in range(jobs if count else 0):
            seeds = list(range(options.seed + job, options.seed + count, jobs))
            words = (what, whole, place, seeds, start + options.seconds, answers)
            workers.append(context.Process(target=work, args=words))
    for worker in workers:
        worker.start()
    kinds, faulty, slowest, largest, left = Counter[str](), 0, 0.0, 0, len(workers)
    faults = Counter[str]()
    while left:
        answer = answers.get()
        if answer is None:
            left -= 1
            continue
        kind, seed, wrong, seconds, memory, status, output = answer
        kinds[kind.partition("/")[0]] += 1
        if status == 2:
            slowest, largest = max(slowest, seconds), max(largest, memory)
        if wrong:
            faulty += 1
            faults.update(each.partition(" ")[0] if each[0].isdigit() else each for each in wrong)
            print(f"FAIL {kind} seed {seed}: {'; '.join(wrong)}\n{output}\n", flush=True)
        if kind == "harness":
            left -= 1
    print(f"cases: {', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}")
    print(
        f"slowest refusal {slowest:.1f} s, largest {largest >> 20} MiB above the imports; {time.monotonic() - start:.0f} s in all"
    )
    for fault, count in faults.most_common():
        print(f"{count} x {fault}")
    print(f"{sum(kinds.values()) - faulty} passed, {faulty} failed")
    if not options.keep:
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    main()
