"""Head redundancy in a run: three numbers beside the loss, equal to a loop over the maps, and a run undisturbed."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo import checkpoints, cli
from zoo.callbacks import HeadRedundancy
from zoo.callbacks.redundancy import watching
from zoo.checkpoints import lightning
from zoo.data import Images, Text
from zoo.errors import ZooError
from zoo.kernel import Mask
from zoo.tasks import ImageClassifier, LanguageModel

NUMBERS = {f"val/head_{name}{end}" for name in ("distance", "distance_relative", "variation") for end in ("", "_std")}
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--data.workers=0",
    "--trainer.callbacks+=HeadRedundancy",
]  # fmt: skip
TEXT = [
    "--model.length=16", "--model.dim=32", "--model.layers=3", "--model.heads=4", "--model.dropout=0.2",
    "--model.std=0.2", "--data.tokenizer=bytes", "--data.batch=4", "--data.valid=0.4", "--data.test=0",
    "--trainer.val_check_interval=2", "--trainer.max_steps=4",
]  # fmt: skip
PICTURES = [
    "--model=ImageClassifier", "--data=Images", "--model.patch=4", "--model.dim=32", "--model.layers=2",
    "--model.heads=4", "--model.std=0.2", "--data.batch=16", "--data.valid=0.2", "--data.test=0.05",
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("redundancy")
    (root / "texts").mkdir()
    for number in range(8):
        draw = random.Random(number)
        (root / "texts" / f"{number}.txt").write_text("".join(draw.choice("abc ") for _ in range(120)))
    return root


def fit(place: Path, name: str, *flags: str, kind: list[str] = TEXT, without: bool = False) -> Path:
    """A run; the folder of its logs."""
    files = [f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"] if kind is TEXT else []
    first = [word for word in kind if word in ("--model=ImageClassifier", "--data=Images")]
    words = ["fit", *first, *(QUIET[:-1] if without else QUIET), *(word for word in kind if word not in first)]
    before, sys.argv = sys.argv, ["zoo", *words, *files, *flags, f"--trainer.default_root_dir={place / name}"]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before
    return next((place / name).rglob("config.yaml")).parent


def logged(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def plainly(model: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, float]:
    """The numbers of a model, by whole maps in float64 and a loop over pairs."""
    rows: list[tuple[float, float, float]] = []

    def look(kernel: Any, tensors: tuple[Any, ...], known: dict[str, Any], output: torch.Tensor) -> None:
        q, k, v = (x.double() for x in tensors)
        mask = known["mask"]
        eye = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
        call = {"bias": known["bias"], "mask": mask or Mask(), "scale": known["scale"]}
        maps, gave = (kernel.reference(q, k, values, **call).numpy() for values in (eye, v))
        seen = mask.block(slice(0, q.shape[2]), slice(0, k.shape[2]), q.device)
        choice = np.ones(q.shape[2], bool) if seen is None else (seen[0, 0].sum(-1) > 1).numpy()
        pairs = list(combinations(range(q.shape[1]), 2))
        apart = np.mean([np.linalg.norm(gave[:, g] - gave[:, h], axis=-1).mean() for g, h in pairs])
        varied = np.mean([np.abs(maps[:, g] - maps[:, h]).sum(-1)[:, choice].mean() / 2 for g, h in pairs])
        rows.append((apart, apart / np.linalg.norm(gave, axis=-1).mean(), varied))

    handles = [b.attention.kernel.register_forward_hook(look, with_kwargs=True) for b in model.trunk.blocks]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    found = dict(zip(("distance", "distance_relative", "variation"), np.transpose(rows), strict=True))
    return {
        f"val/head_{name}{end}": float(each.mean() if not end else each.std())
        for name, each in found.items()
        for end in ("", "_std")
    }


def held_out(place: Path, count: int) -> torch.Tensor:
    """The first blocks that these runs validate on."""
    data = Text(files=str(place / "texts"), tokenizer="bytes", valid=0.4, test=0.0, length=16, batch=4, workers=0,
                cache=str(place / "cache"))  # fmt: skip
    data.setup("validate")
    return next(iter(data.val_dataloader()))["tokens"][:count, :-1]


KINDS = {
    "Auto": [],
    "shared keys": ["--model.kernel=Eager", "--model.kv_heads=2"],
    "Cosine": ["--model.kernel=Cosine"],
    "Sigmoid": ["--model.kernel=Sigmoid", "--model.position=ALiBi"],
    "LinearAttention": ["--model.kernel=LinearAttention", "--model.position=Sinusoidal"],
    "FourierIntegral": ["--model.kernel=FourierIntegral", "--model.position=Sinusoidal"],
    "a window and layers without": ["--model.window=5", "--model.nope_every=2", "--model.kernel=Tiled"],
    "recomputed": ["--model.checkpointing=true", "--model.position=FIRE", "--model.norm_at=after"],
    "content": ["--model.position=FoX", "--model.kernel=Sink"],
}


@pytest.mark.parametrize("name", KINDS)
def test_a_run_on_text_shows_how_far_apart_heads_are(place: Path, name: str) -> None:
    folder = fit(place, name, *KINDS[name], "--trainer.callbacks.examples=3")
    shown = logged(folder)
    assert {tag for tag in shown if "head" in tag} == NUMBERS
    assert {len(shown[tag]) for tag in NUMBERS} == {len(shown["val/perplexity"])} == {2}
    expected = plainly(checkpoints.read(folder / "model").network(), held_out(place, 3))
    for tag in NUMBERS:
        assert shown[tag][-1] == pytest.approx(expected[tag], rel=1e-3, abs=1e-5), tag
    assert shown["val/head_variation"][-1] > 0.01


@pytest.mark.parametrize("kernel", ["Auto", "RBF", "Sigmoid"])
def test_a_run_on_images_shows_it_too(place: Path, kernel: str) -> None:
    flags = [f"--model.kernel={kernel}", "--model.position=Learned", "--trainer.callbacks.batches=2"]
    folder = fit(place, f"pictures-{kernel}", *flags, "--trainer.callbacks.examples=16", kind=PICTURES)
    shown = logged(folder)
    data = Images(batch=32, valid=0.2, test=0.05, workers=0)
    data.setup("validate")
    images = next(iter(data.val_dataloader()))["images"]
    expected = plainly(checkpoints.read(folder / "model").network(), images)
    for tag in NUMBERS:
        assert shown[tag][-1] == pytest.approx(expected[tag], rel=1e-3, abs=1e-5), tag


def test_the_run_is_not_disturbed(place: Path) -> None:
    """Losses and weights are those of a run without it, to the last bit, and nothing stays on the kernels."""
    folders = [fit(place, str(alone), "--model.kernel=Cosine", without=alone) for alone in (True, False)]
    runs = [logged(folder) for folder in folders]
    for tag in ("train/loss", "val/perplexity"):
        assert runs[0][tag] == runs[1][tag]
    weights = [lightning.load(next(folder.rglob("last.ckpt")))["state_dict"] for folder in folders]
    assert {*weights[0]} == {*weights[1]}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_hooks_are_gone_even_after_a_failure() -> None:
    task = LanguageModel(vocabulary=9, length=8, dim=32, layers=2, heads=2)
    task.configure_model()
    kernels = [block.attention.kernel for block in task.trunk.blocks]

    def fail() -> None:
        with watching(task, None, torch.ones(1)):  # type: ignore[arg-type]
            assert all(kernel._forward_pre_hooks for kernel in kernels)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any(kernel._forward_pre_hooks for kernel in kernels)


@pytest.mark.slow
def test_a_compiled_model_is_seen(place: Path) -> None:
    """It runs without its compiler for these examples, and is not compiled anew after them."""
    flags = ["--model.kernel=Cosine", "--model.dropout=0", "--trainer.max_steps=6"]
    plain = logged(fit(place, "plain", *flags))
    torch._dynamo.utils.counters.clear()
    fast = logged(fit(place, "fast", *flags, "--model.compile=true"))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for tag in NUMBERS:
        assert fast[tag] == pytest.approx(plain[tag], rel=1e-3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fit(place, "alone", *flags, "--model.compile=true", without=True)
    assert 0 < graphs == torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_half_precision(place: Path) -> None:
    shown = logged(fit(place, "half", "--trainer.precision=bf16-mixed", "--model.kernel=RBF"))
    exact = logged(fit(place, "whole", "--model.kernel=RBF"))
    for tag in NUMBERS - {tag for tag in NUMBERS if "std" in tag}:
        assert shown[tag][0] == pytest.approx(exact[tag][0], rel=0.02)
        assert shown[tag][0] != exact[tag][0]


def test_a_model_of_one_head_says_so_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shown = logged(fit(place, "one", "--model.heads=1"))
    assert not any("head_" in tag for tag in shown)
    assert caplog.text.count("Head redundancy is left out: the model has one head") == 1


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["ddp", "sequence_parallel"])
def test_several_processes(place: Path, overlay: str) -> None:
    """Two give the numbers of one that has the examples of both; where they share out heads, none, and a sentence."""
    strategy = ["--model.sequence_parallel=2"] if overlay == "sequence_parallel" else []
    words = ["fit", *QUIET, *TEXT, f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"]
    words += [f"--config={Path(__file__).parents[2] / 'recipes' / 'scale' / 'ddp.yaml'}", *strategy]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.default_root_dir={place / overlay}"]
    words += ["--trainer.num_sanity_val_steps=0", "--model.dropout=0", "--data.batch=2"]
    script = place / "run.py"  # Lightning starts the second process by the name of the first's script
    script.write_text("from zoo.cli import main\n\nmain()\n")
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = logged(next((place / overlay).rglob("config.yaml")).parent)
    if overlay == "sequence_parallel":
        assert not any("head_" in tag for tag in shown)
        assert "Head redundancy is left out: each process has some of the heads" in done.stderr
        return
    alone = logged(fit(place, "single", "--model.dropout=0", "--trainer.num_sanity_val_steps=0"))
    for tag in NUMBERS:
        assert shown[tag] == pytest.approx(alone[tag], rel=1e-3), tag


def test_what_it_cannot_do_is_said() -> None:
    for wrong in ({"batches": 0}, {"examples": 0}):
        with pytest.raises(ZooError, match="1 batch or more"):
            HeadRedundancy(**wrong)
    with pytest.raises(ZooError, match="zoo's models, and this is a LightningModule"):
        HeadRedundancy().setup(None, pl.LightningModule(), "fit")  # type: ignore[arg-type]


def test_what_is_there_for_other_processes_does_not_count() -> None:
    task = ImageClassifier(classes=2, channels=1, size=(8, 8), patch=4, dim=32, layers=2, heads=2)
    images = torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 1, -100, -100])
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    found = []
    for count in (4, 2):
        batch = {"images": images[:count], "labels": labels[:count]}
        trainer = pl.Trainer(accelerator="cpu", callbacks=[HeadRedundancy()], **silent)
        trainer.validate(task, torch.utils.data.DataLoader([batch], batch_size=None), verbose=False)
        found.append({tag: float(trainer.callback_metrics[tag]) for tag in NUMBERS})
    assert found[0] == pytest.approx(found[1], rel=1e-6)
