"""A run that continues, compared with the run that began: data, tokenizer, versions of zoo and of plugins.

Each of these decides which numbers a run computes. A checkpoint records them; where one differs from what the run would
go on with, the run stops and shows both sides, unless the user accepts the changes. What an older checkpoint does not
record, or cannot be looked at, is named in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zoo
from zoo import checkpoints, plugins, resume
from zoo.checkpoints.description import named as list_plugins
from zoo.data.tokenizer import Tokenizer, load
from zoo.errors import ZooError, listing
from zoo.recipe import named

FLAG = "accept_changes"
"""The flag that accepts all of them."""
WORDS = {
    "corpus": "the corpus",
    "split": "what is held out of the corpus",
    "files": "the files of the data set",
    "revision": "the revision of the data set",
    "compared": "how the corpus is known",
}
"""Parts of a data module's identity."""


def check_continuation(
    about: Mapping[str, Any],
    path: object,
    datamodule: object,
    asked: Mapping[str, Any],
    argv: Sequence[str] = (),
    *,
    accept: bool,
) -> None:
    """Raise ZooError where a run would continue with other data, another tokenizer or other versions.

    Args:
        about: What the checkpoint says of itself.
        path: The checkpoint.
        datamodule: That of the run that continues.
        asked: The `model` and `data` sections of that run, as plain data.
        argv: What the user typed.
        accept: Print the differences instead.
    """
    lines, unknown = list[str](), list[str]()
    for compared in (
        compare_data(about, datamodule),
        compare_tokenizer(about, asked, argv),
        compare_versions(about, asked.get("model") or {}),
    ):
        for kind, line in compared:
            (lines if kind == "differs" else unknown).append(line)
    if unknown:
        resume.say(f"not compared with what {path} began with: {listing(unknown)}")
    if lines and not accept:
        raise ZooError(
            f"the run would go on with other things than {path} began with, and with other numbers.\n  "
            + "\n  ".join(lines)
            + f"\n  Restore them, or go on all the same:   Try:  --{FLAG} true"
        )
    for line in lines:
        resume.say(f"a change is accepted: {line}")


def compare_data(about: Mapping[str, Any], datamodule: object) -> Iterator[tuple[str, str]]:
    """Differences between the data that a run began with and those that it has; ("differs" or "unknown", a line)."""
    there, here = about.get("data_identity"), getattr(datamodule, "identity", None)
    if not isinstance(there, Mapping):
        yield "unknown", "the data, which the checkpoint does not record"
        return
    if not isinstance(here, Mapping):
        yield "unknown", f"the data, since {type(datamodule).__name__} has no identity"
        return
    for key in dict.fromkeys([*there, *here]):
        if there.get(key) != here.get(key):
            yield "differs", f"{WORDS.get(key, key)}: {briefly(there.get(key), here.get(key))}"
    if "names" in (there.get("compared"), here.get("compared")):
        yield "unknown", "the contents of the stream, of which only names are known"


def compare_tokenizer(
    about: Mapping[str, Any], asked: Mapping[str, Any], argv: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Differences between the tokenizer that a run began with and the one that its recipe asks for.

    The tokenizer that is used is always the checkpoint's. One that is trained on the corpus is the same where the
    corpus is; one that came with the weights that a run started from is not asked for by the data section.
    """
    stored = about.get("tokenizer")
    then, now = ((each.get("data") or {}).get("init_args") or {} for each in (about.get("asked") or {}, asked))
    if stored is None or "tokenizer" not in now:
        return
    if "tokenizer" not in then:
        yield "unknown", "the tokenizer that was asked for, which the checkpoint does not record"
        return
    for key in ("tokenizer", "vocabulary"):
        if then.get(key) != now.get(key) and (key == "tokenizer" or now["tokenizer"] == "bpe"):
            if resume.asked(argv, f"data.{key}") is not None:  # a default asks for nothing
                yield "differs", f"data.{key}: {briefly(then.get(key), now.get(key))}"
            return
    if now["tokenizer"] == "bpe" or about.get("parent"):
        return
    try:
        here = load(str(now["tokenizer"])).digest
    except (ZooError, OSError):
        yield "unknown", f"the tokenizer {now['tokenizer']}, which cannot be read"
        return
    if (there := Tokenizer.restore(stored).digest) != here:
        yield "differs", f"the tokenizer {now['tokenizer']}: {briefly(there, here)}"


def compare_versions(about: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Differences between the versions of zoo, and of the plugins that are used, then and now."""
    if about.get("zoo") != zoo.__version__:
        yield "differs", f"zoo: {briefly(about.get('zoo'), zoo.__version__)}"
    used = set(list_plugins(named(model)["init_args"], checkpoints.SLOTS)) if model.get("init_args") else set()
    own = f"positionzoo {zoo.__version__}"
    for key, owner in (about.get("plugins") or {}).items():
        if not isinstance(owner, list | tuple) or len(owner) != 2:
            raise ZooError("The checkpoint is damaged: what it says under plugins is not what a checkpoint says there.")
        group, there = owner
        name = str(key).rpartition(":")[2]
        if (name, group) not in used or name not in plugins.names(group):
            continue  # a kernel of another name computes the same; what is missing has been told
        here = " ".join(plugins.origin(plugins.find(group, name)))
        if there != here and not (here == own and there == f"positionzoo {about.get('zoo')}"):
            yield "differs", f"the distribution of {name}: {briefly(there, here)}"


def briefly(there: Any, here: Any) -> str:
    """Both sides of a difference, of lists what they do not share."""
    if isinstance(there, list) and isinstance(here, list):
        lost = [each for each in there if each not in here]
        new = [each for each in here if each not in there]
        if not (lost or new):
            return f"the same {len(here)} in another order now"
        told = [f"{len(there)} when it began, {len(here)} now"]
        told += [f"gone: {listing(map(str, lost[:3]))}{', ...' * (len(lost) > 3)}"] if lost else []
        told += [f"new: {listing(map(str, new[:3]))}{', ...' * (len(new) > 3)}"] if new else []
        return "; ".join(told)
    return f"{there} when it began, {here} now"
