"""Measuring checkpoints side by side: the same documents, the same prompts, the same rules for all of them.

An evaluation is opened, which checks everything that can be checked, and then run, which gives one result after the
other: a value, or the reason why there is none. Nothing is cut to make it fit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo import checkpoints
from zoo.decoder import Decoder
from zoo.errors import Unfit, ZooError
from zoo.evaluate import texts
from zoo.evaluate.measures import MEASURES, chosen
from zoo.evaluate.reader import Reader
from zoo.evaluate.setting import Setting
from zoo.evaluate.store import Store
from zoo.evaluate.vision import Viewer

__all__ = ["MEASURES", "Evaluation", "Reader", "Setting"]


class Evaluation:
    """Measures x checkpoints x lengths.

    Args:
        paths: Checkpoints, all of language models or all of vision transformers.
        lengths: In tokens, or for images the sides in pixels (default: 1, 2, 4 and 8 times the trained one; for images
            1/2, 1, 1.5 and 2 times).
        measures: Comma between them (default: the standard ones).
        files: Texts, or one folder of images (default: what the first checkpoint's data set aside for testing).
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
        files: list[str] | None = None,
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
                if files is not None and len(files) > 1:
                    raise ZooError(f"Images are read from one folder, and got {len(files)}: {', '.join(files)}.")
                subject = Viewer(each, name, device, files[0] if files else None)
            else:
                subject = Reader(each, name, device)
            self.subjects.append(subject)
            about.append(described(each, name, subject.model))
        trained = [each["trained"] for each in about]
        steps = (0.5, 1, 1.5, 2) if self.images else (1, 2, 4, 8)
        lengths = lengths or tuple(sorted({int(step * max(trained)) for step in steps}))
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
        self.store = Store({**header, "text": text, "checkpoints": about}, out)

    def gather(self, about: Mapping[str, Any], files: list[str] | None, documents: int) -> dict[str, Any]:
        """Read the documents, and the evaluator where one is asked for; what the results say of them."""
        evaluator = self.setting.evaluator
        if "longppl" in self.measures:
            if evaluator is None:
                raise ZooError("longppl asks a strong model which tokens need the context.   Try:  --evaluator CKPT")
            self.evaluator = Reader(checkpoints.read(evaluator), Path(evaluator).stem, self.subjects[0].device)
        source = texts.named(files) if files else texts.held_out(about)
        readers = [*self.subjects, *([self.evaluator] if self.evaluator else [])]
        tokenizers = list({reader.tokenizer.digest: reader.tokenizer for reader in readers}.values())
        needed = {"perplexity", "position", "gain", "offset", "longppl", "redundancy"} & set(self.measures)
        long, short = source.long(tokenizers, max(self.setting.lengths), documents) if needed else ([], 0)
        self.setting = replace(self.setting, texts=source.texts, long=long)
        used = {"documents": len(long), "excluded": short} if needed else {"documents": len(source.texts)}
        return {"origin": source.origin, "digest": source.digest, **used}

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


def names(paths: list[str]) -> list[str]:
    """A short name for each checkpoint: the end of its path, without what all runs have, that tells it from others."""
    noise = {"checkpoints", "lightning_logs", "last", "model", "runs"}
    places = [Path(path).absolute().with_suffix("").parts for path in paths]
    for versions in (False, True):
        told = [
            [part for part in place if part not in noise and (versions or not part.startswith("version_"))]
            for place in places
        ]
        for count in range(1, max(map(len, told)) + 1):
            found = ["/".join(part[-count:]) for part in told]
            if len(set(found)) == len(found):
                return found
    raise ZooError(f"A checkpoint is named twice: {', '.join(paths)}.")


def described(checkpoint: checkpoints.Checkpoint, name: str, model: torch.nn.Module) -> dict[str, Any]:
    """What the results say of a checkpoint."""
    arguments = checkpoint.about["network"]["init_args"]
    slots = {slot: arguments[slot]["class_path"] for slot in checkpoints.SLOTS}
    return {
        "name": name,
        "path": str(checkpoint.path),
        "digest": digest(checkpoint.weights),
        "task": checkpoint.about.get("task"),
        **slots,
        "trained": model.length if isinstance(model, Decoder) else max(arguments["size"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": checkpoint.about.get("trained", {}).get("steps"),
    }


def digest(weights: Mapping[str, Tensor]) -> str:
    """The same for the same weights."""
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
