"""Length generalisation of a run: its figures beside a plain loop, and the run beside one without it."""

from __future__ import annotations

import math
import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional
from torch.utils.data import DataLoader

from zoo import checkpoints, cli
from zoo.checkpoints import lightning
from zoo.data import Text
from zoo.errors import ZooError
from zoo.evaluate.callback import LengthGeneralisation, windows
from zoo.tasks import ImageClassifier, LanguageModel

NAME = "zoo.evaluate.callback.LengthGeneralisation"
TINY = [
    "--model.length=16", "--model.dim=32", "--model.layers=2", "--model.heads=2", "--model.dropout=0.2",
    "--data.tokenizer=bytes", "--data.batch=4", "--data.workers=0", "--data.valid=0.4", "--data.test=0",
    "--trainer.accelerator=cpu", "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents, the longest of 301 tokens."""
    root = tmp_path_factory.mktemp("generalisation")
    (root / "texts").mkdir()
    for number in range(12):
        draw = random.Random(number)
        (root / "texts" / f"{number}.txt").write_text("".join(draw.choice("abc ") for _ in range(80 + 20 * number)))
    return root


def fit(place: Path, name: str, *flags: str) -> Path:
    """A run; the folder of its logs."""
    words = ["fit", *TINY, f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}", *flags]
    before, sys.argv = sys.argv, ["zoo", *words, f"--trainer.default_root_dir={place / name}"]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before
    return next((place / name).rglob("config.yaml")).parent


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def held_out(place: Path) -> list[list[int]]:
    """The validation documents of these runs, in their order."""
    data = Text(files=str(place / "texts"), tokenizer="bytes", valid=0.4, test=0.0)
    _, rows = data.documents("valid")
    return [[*text.encode(), 256] for text in rows["text"]]


def plainly(model: torch.nn.Module, texts: list[list[int]], length: int) -> float:
    """Perplexity of texts in windows of `length`, a window at a time."""
    total, count = 0.0, 0
    for text in texts:
        for start in range(0, len(text) - 1, length):
            part = torch.tensor([text[start : start + length + 1]])
            with torch.no_grad():
                losses = functional.cross_entropy(model(part[:, :-1])[0].double(), part[0, 1:], reduction="sum")
            total, count = total + float(losses), count + part.shape[1] - 1
    return math.exp(total / count)


def test_a_run_shows_how_far_it_reads(place: Path) -> None:
    (place / "recipe.yaml").write_text(f"trainer:\n  callbacks: [{NAME}]\n")
    folder = fit(place, "shown", f"--config={place / 'recipe.yaml'}", "--trainer.max_steps=4")
    shown = logged(folder)
    lengths = [16, 32, 64, 128]
    assert {tag for tag in shown if "@" in tag} == {f"val/perplexity@{length}" for length in lengths}
    assert [step for step, _ in shown["val/perplexity@64"]] == [step for step, _ in shown["val/perplexity"]]
    texts = [text for text in held_out(place) if len(text) > 128]
    assert 1 < len(texts) < 8
    model = checkpoints.read(folder / "model").network()
    for length in lengths:
        expected = plainly(model, [text[:129] for text in texts], length)
        assert shown[f"val/perplexity@{length}"][-1][1] == pytest.approx(expected, rel=1e-5)
    assert "val/perplexity@128" in (folder / "model" / "README.md").read_text()


def test_lengths_and_documents_are_chosen(place: Path) -> None:
    flags = ["--trainer.callbacks.lengths=[100,40]", "--trainer.callbacks.documents=2"]
    folder = fit(place, "chosen", f"--trainer.callbacks+={NAME}", *flags, "--trainer.max_steps=2")
    shown = logged(folder)
    texts = [text[:101] for text in held_out(place) if len(text) > 100]
    model = checkpoints.read(folder / "model").network()
    for length in (40, 100):
        expected = plainly(model, [texts[0], texts[-1]], length)
        assert shown[f"val/perplexity@{length}"][-1][1] == pytest.approx(expected, rel=1e-5)


KEEPER = "{class_path: ModelCheckpoint, init_args: {dirpath: FOLDER, every_n_train_steps: 3, save_top_k: -1}}"


def test_the_run_is_not_disturbed(place: Path) -> None:
    """Losses and weights are those of a run without it, to the last bit, continued in the middle or not."""
    (place / "kept.yaml").write_text(
        f"trainer:\n  callbacks: [{NAME}, {KEEPER.replace('FOLDER', str(place / 'kept'))}]\n"
    )
    alone = fit(place, "alone", "--trainer.max_steps=6")
    beside = fit(place, "beside", f"--config={place / 'kept.yaml'}", "--trainer.max_steps=6")
    (middle,) = (place / "kept").glob("*step=3.ckpt")
    rest = fit(place, "rest", f"--trainer.callbacks+={NAME}", "--trainer.max_steps=6", f"--ckpt_path={middle}")
    runs = [logged(folder) for folder in (alone, beside, rest)]
    for tag in ("train/loss", "val/perplexity"):
        assert runs[0][tag] == runs[1][tag]
        assert runs[0][tag][-2:] == runs[2][tag][-2:]
    assert runs[1]["val/perplexity@64"][-2:] == runs[2]["val/perplexity@64"]
    weights = [lightning.load(next(folder.rglob("last.ckpt")))["state_dict"] for folder in (alone, beside, rest)]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


def test_lengths_that_cannot_be_measured_are_named_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flags = ["--model.position=Learned", "--model.position.rows=40", "--trainer.max_steps=4"]
    shown = logged(fit(place, "table", f"--trainer.callbacks+={NAME}", *flags))
    assert {tag for tag in shown if "@" in tag} == {"val/perplexity@16", "val/perplexity@32"}
    assert caplog.text.count("Perplexity at 64, 128 tokens is left out. Learned has a vector for each of 40") == 1
    caplog.clear()
    flags = ["--trainer.callbacks.lengths=[64,1000]", "--trainer.max_steps=4"]
    shown = logged(fit(place, "short", f"--trainer.callbacks+={NAME}", *flags))
    assert {tag for tag in shown if "@" in tag} == {"val/perplexity@64"}
    assert caplog.text.count("Perplexity at 1000 tokens is left out: the longest of") == 1
    caplog.clear()
    flags = ["--trainer.callbacks.lengths=[1000]", "--trainer.max_steps=2"]
    assert not any("@" in tag for tag in logged(fit(place, "none", f"--trainer.callbacks+={NAME}", *flags)))


def test_half_precision(place: Path) -> None:
    flags = ["--trainer.precision=bf16-mixed", "--trainer.max_steps=2"]
    folder = fit(place, "half", f"--trainer.callbacks+={NAME}", *flags)
    texts = [text[:129] for text in held_out(place) if len(text) > 128]
    model = checkpoints.read(folder / "model").network()
    with torch.autocast("cpu", torch.bfloat16):
        expected = plainly(model, texts, 64)
    assert logged(folder)["val/perplexity@64"][-1][1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("length", [1, 3, 4, 11, 12, 13, 40])
def test_windows_score_every_token_once(length: int) -> None:
    texts = torch.arange(26).view(2, 13)
    pairs = [(int(a), int(b)) for batch in windows(texts, length) for row in batch for a, b in pairwise(row)]
    assert sorted(pairs) == [(n, n + 1) for n in range(26) if n not in (12, 25)]
    assert all(batch.shape[1] <= length + 1 for batch in windows(texts, length))


def test_what_it_cannot_do_is_said() -> None:
    for wrong in ({"documents": 0}, {"lengths": []}, {"lengths": [8, 0]}):
        with pytest.raises(ZooError, match="1 or more"):
            LengthGeneralisation(**wrong)
    task = ImageClassifier(classes=2, channels=1, size=(8, 8), patch=4, dim=32, layers=1, heads=2)
    with pytest.raises(ZooError, match="measures language models"):
        LengthGeneralisation().setup(None, task, "fit")  # type: ignore[arg-type]
    batch = {"tokens": torch.zeros(2, 9, dtype=torch.long), "documents": torch.zeros(2, 9, dtype=torch.int32)}
    loader = DataLoader([batch], batch_size=None)
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[LengthGeneralisation()], **silent)
    with pytest.raises(ZooError, match="documents of zoo's Text"):
        trainer.validate(LanguageModel(vocabulary=9, length=8, dim=32, layers=1, heads=2), loader, verbose=False)
