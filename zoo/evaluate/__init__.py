"""Measuring checkpoints side by side: the same documents, the same prompts, the same rules for all of them.

An evaluation is opened, which checks everything that can be checked, and then run, which gives one result after the
other: a value, or the reason why there is none. Nothing is cut to make it fit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo import checkpoints
from zoo.checkpoints.names import names
from zoo.decoder import Decoder
from zoo.errors import Unfit, ZooError
from zoo.evaluate import ruler, texts
from zoo.evaluate.measures import MEASURES, chosen
from zoo.evaluate.reader import Reader
from zoo.evaluate.setting import Setting
from zoo.evaluate.store import Store
from zoo.evaluate.texts import Documents
from zoo.evaluate.vision import Viewer

__all__ = ["MEASURES", "Evaluation", "Reader", "Setting"]


class Evaluation:
    """Measures x checkpoints x lengths.

    Args:
        paths: Checkpoints, all of language models or all of vision transformers.
        lengths: In tokens, or for images the sides in pixels (default: 1, 2, 4 and 8 times the trained one, and on to
            the reach of an extended one; for images 1/2, 1, 1.5 and 2 times).
        measures: Comma between them (default: the standard ones).
        files: Texts, or one folder of images, or documents at hand (default: what the first checkpoint's data set aside
            for testing).
        documents: Documents whose losses are measured, at most.
        out: Folder that keeps the results.
        device: Where the models run.
        setting: The measures' own numbers.
    """

    def __init__(
        self,
        paths: list[str],
        *,
        lengths: tuple[int, ...] = (),
        measures: str | None = None,
        files: list[str] | Documents | None = None,
        documents: int = 32,
        out: Path | None = None,
        device: str = "cpu",
        setting: Setting | None = None,
    ) -> None:
        setting = setting or Setting()
        found = [checkpoints.read(path) for path in paths]
        kinds = {str(each.about.get("network", {}).get("class_path")) for each in found}
        if len(kinds) > 1:
            raise ZooError(
                f"Language models and vision transformers are not measured side by side: {', '.join(paths)}."
            )
        self.images = kinds == {"zoo.vit.ViT"}
        self.measures = chosen(measures, self.images)
        self.subjects: list[Any] = []
        about = []
        for each, name in zip(found, names(paths), strict=True):
            subject: Any
            if self.images:
                if isinstance(files, Documents):
                    raise ZooError("Documents are texts, and these checkpoints see images.")
                if files is not None and len(files) > 1:
                    raise ZooError(f"Images are read from one folder, and got {len(files)}: {', '.join(files)}.")
                subject = Viewer(each, name, device, files[0] if files else None)
            else:
                subject = Reader(each, name, device)
            self.subjects.append(subject)
            about.append(described(each, subject))
        trained = [each["trained"] for each in about]
        steps = (0.5, 1, 1.5, 2) if self.images else (1, 2, 4, 8)
        usual = {int(step * max(trained)) for step in steps}
        lengths = lengths or tuple(sorted(usual | beyond(max(usual), [each.get("reach", 0) for each in about])))
        if min(lengths) < 2:
            raise ZooError(f"Lengths are 2 or more, and got {min(lengths)}.")
        self.setting = replace(setting, lengths=lengths)
        header: dict[str, Any] = {"zoo": zoo.__version__, "kind": "evaluation"}
        self.evaluator: Reader | None = None
        text: dict[str, Any] = {}
        if not self.images:
            text = self.gather(found[0].about, files, documents)
        said = {key: value for key, value in asdict(self.setting).items() if key not in ("texts", "long", "tick")}
        header["settings"] = {"measures": self.measures, "documents": documents, **said}
        header["machine"] = {
            "device": device if device == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
            "dtype": "float32",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        if "ruler" in self.measures:
            ruler.check(self.setting)
        self.store = Store({**header, "text": text, "checkpoints": about}, out)

    def gather(self, about: Mapping[str, Any], files: list[str] | Documents | None, documents: int) -> dict[str, Any]:
        """Read the documents, where a measure needs some, and the evaluator; what the results say of them."""
        losses = {"perplexity", "position", "gain", "offset", "longppl", "redundancy"} & set(self.measures)
        if not losses and not {"needle", "ruler"} & set(self.measures):
            return {}
        about_evaluator = {}
        evaluator = self.setting.evaluator
        if "longppl" in self.measures:
            if evaluator is None:
                raise ZooError("longppl asks a strong model which tokens need the context.   Try:  --evaluator CKPT")
            read = checkpoints.read(evaluator)
            self.evaluator = Reader(read, names([evaluator])[0], self.subjects[0].device)
            about_evaluator = {"evaluator": f"{self.evaluator.name}, {digest(read)}"}
        source = (
            files if isinstance(files, Documents) else texts.chosen(files, about) if files else texts.held_out(about)
        )
        readers = [*self.subjects, *([self.evaluator] if self.evaluator else [])]
        tokenizers = list({reader.tokenizer.digest: reader.tokenizer for reader in readers}.values())
        long, short = source.long(tokenizers, max(self.setting.lengths), documents) if losses else ([], 0)
        self.setting = replace(self.setting, texts=source.texts, long=long)
        used = {"documents": len(long), "excluded": short} if losses else {"documents": len(source.texts)}
        return {"origin": source.origin, "digest": source.digest, **used, **about_evaluator}

    @property
    def document(self) -> dict[str, Any]:
        """All results so far, and what they are results of."""
        return self.store.document

    def cells(self) -> list[tuple[str, Any, int]]:
        """Measure, subject and length of every figure, in the order in which they are taken."""
        found = []
        for name in self.measures:
            for subject in self.subjects:
                lengths = self.setting.lengths
                if MEASURES[name].once:  # the longest that can be read, or else the longest, to say why not
                    lengths = tuple(n for n in lengths if subject.refusal(n) is None)[-1:] or lengths[-1:]
                found += [(name, subject, length) for length in lengths]
        return found

    def run(self, setting: Setting | None = None) -> Iterator[dict[str, Any]]:
        """Take every figure that is not there yet, one after the other."""
        for name, subject, length in self.cells():
            if self.store.done(subject.name, name, length):
                continue
            result: dict[str, Any] = {"checkpoint": subject.name, "measure": name, "length": length}
            start = time.perf_counter()
            run = MEASURES[name].run
            if self.evaluator is not None and name == "longppl":
                run = partial(run, evaluator=self.evaluator)
            try:
                value = run(subject, length, setting or self.setting)
                result |= {"seconds": round(time.perf_counter() - start, 3), "value": value}
            except Unfit as error:
                result["refused"] = str(error)
            self.store.add(result)
            yield result

    def nothing(self) -> str | None:
        """Why nothing was measured, or None where something was."""
        reasons = [one.get("refused") for one in self.document["results"]]
        return None if not reasons or None in reasons else f"Nothing could be measured. {reasons[0]}"


def beyond(length: int, reaches: list[int]) -> set[int]:
    """The reaches of extended models that end a list of lengths, and its doubles on the way to the furthest."""
    found = {reach for reach in reaches if reach > length}
    while found and 2 * length < max(found):
        found.add(length := 2 * length)
    return found


def described(checkpoint: checkpoints.Checkpoint, subject: Reader | Viewer) -> dict[str, Any]:
    """What the results say of a checkpoint."""
    model, tokenizer = subject.model, getattr(subject, "tokenizer", None)
    arguments = checkpoint.about["network"]["init_args"]
    slots = {slot: arguments[slot]["class_path"] for slot in checkpoints.SLOTS}
    if extension := arguments["position"].get("init_args", {}).get("extension"):
        factor = extension.get("init_args", {}).get("factor")
        slots["position"] += f" + {extension['class_path']}" + (f" x {factor:g}" if factor else "")
    return {
        "name": subject.name,
        "path": str(checkpoint.path),
        "digest": digest(checkpoint),
        "task": checkpoint.about.get("task"),
        **slots,
        **({"tokenizer": f"{tokenizer.vocabulary} tokens, {tokenizer.digest[:8]}"} if tokenizer else {}),
        "trained": model.length if isinstance(model, Decoder) else max(arguments["size"]),
        **further(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": checkpoint.about.get("trained", {}).get("steps"),
        **({"weights": averaged} if (averaged := checkpoints.describe_averaging(checkpoint.about)) else {}),
    }


def further(model: Any) -> dict[str, int]:
    """The reach of a model that has been extended, a number of tokens or the longer side of an image."""
    if isinstance(model, Decoder):
        return {"reach": model.reach} if model.reach > model.length else {}
    trained = max(model.grid) * model.patch
    return {"reach": max(model.reach)} if max(model.reach) > trained else {}


def digest(checkpoint: checkpoints.Checkpoint) -> str:
    """The same for the same network, tokenizer and weights."""
    described = [checkpoint.about["network"], checkpoint.about.get("tokenizer")]
    found = hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=8)
    for name, weight in sorted(checkpoint.weights.items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
