"""`--method auto`: which extension, by measurement and not by folklore.

Every method that an encoding owns is tried without training, on the same documents, at the length of training and at
the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from zoo import plugins
from zoo.errors import Unfit, ZooError, listing
from zoo.evaluate import Setting
from zoo.evaluate.perplexity import perplexity
from zoo.evaluate.reader import Reader
from zoo.extend.choice import TOLERANCE, Row, Trial, choose, heading, line
from zoo.extend.family import Family, affordable, text
from zoo.extend.methods import GROUP, known, owned, untrained
from zoo.extend.rewrite import Plan, described, plan
from zoo.extend.source import Source
from zoo.lengths import short

DOCUMENTS = 32
"""Documents that are read at most."""


def tried(encoding: str) -> list[str]:
    """The methods that are tried: those of use before training, and none that works upon another."""
    return [name for name in untrained(encoding) if "extension" not in known(plugins.load(GROUP, name))]


def candidates(source: Source, to: int, trained: int | None = None) -> tuple[dict[str, Plan], dict[str, str]]:
    """The methods that fit, as plans, and why others do not; raises ZooError where none does."""
    plans, refused = {}, {}
    encoding = described(source)["init_args"]["position"]["class_path"]
    for name in tried(encoding):
        try:
            plans[name] = plan(source, to, name, {}, trained)
        except ZooError as error:
            refused[name] = error
    if not plans:
        if refused:
            raise next(iter(refused.values()))
        raise ZooError(
            f"Every method that extends {encoding} needs training, so none can be chosen by trying.   "
            f"Try:  --method with one of {listing(owned(encoding))}"
        )
    return plans, {name: str(error).partition("   Try:")[0] for name, error in refused.items()}


def auto(
    source: Source,
    plans: Mapping[str, Plan],
    refused: Mapping[str, str],
    *,
    budget: int,
    tolerance: float = TOLERANCE,
    files: list[str] | None = None,
    measured: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Trial:
    """Measure the untouched model and every plan, and choose.

    Args:
        source: The checkpoint.
        plans: What to try, by method.
        refused: Methods that do not fit, and why.
        budget: Tokens that may be read.
        tolerance: Share of perplexity that may be lost at the length of training.
        files: Texts to read (default: what the checkpoint's run validated on).
        measured: The result will be measured on the same files.
        say: Told what will be read before it is, and then the table, row by row.
    """
    first = next(iter(plans.values()))
    length, to = first.about["extended"]["length"], first.step["to"]
    near = max(length, 2)
    passes, each = 2 * (1 + len(plans)), (1 + len(plans)) * (to // near * near + to)
    most = affordable(budget, each, DOCUMENTS, f"To measure {len(plans)} methods and the untouched model at {to}")
    family = Family(source.path)
    read = text(family, files, to, most, measured)
    tokens = each * len(read.used.texts)
    say(
        f"auto: {1 + len(plans)} models read {read} in windows of {short(near)} and of {short(to)} tokens: "
        f"{passes} passes, {tokens} tokens (--budget {budget})\n\n{heading(near, to)}"
    )

    def models() -> Iterator[tuple[str, Reader]]:
        yield family.untouched.name, family.untouched
        for name, each in plans.items():
            yield name, family.child(each, name)

    setting = Setting(lengths=(near, to), long=read.used.texts)
    rows = []
    for name, reader in models():
        rows.append(measure(name, reader, setting))
        say(line(rows[-1], rows[0], tolerance))
    for name, why in refused.items():
        rows.append(Row(name, None, None, why))
        say(line(rows[-1], rows[0], tolerance))
    return Trial(near, to, tolerance, read, passes, tokens, rows, choose(rows, tolerance, near, to))


def measure(name: str, reader: Reader, setting: Setting) -> Row:
    """Perplexity of a model at both lengths."""
    found: list[float | None] = []
    reason = ""
    for length in setting.lengths:
        try:
            value = perplexity(reader, length, setting)["perplexity"]
        except Unfit as error:
            value, reason = None, reason or str(error)
        found.append(value if value is not None and math.isfinite(value) else None)
    return Row(name, found[0], found[1], reason)
