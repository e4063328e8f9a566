"""`zoo fit` on small lengths and damaged data: it works, or ends in a sentence that names the file."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from zoo import cli
from zoo.errors import ZooError

TRAINER = {
    "max_steps": 2,
    "accelerator": "cpu",
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MODEL = {"length": 16, "dim": 16, "layers": 1, "heads": 2, "position": "RoPE"}
TEXT = {"files": "texts", "tokenizer": "bytes", "batch": 2, "workers": 0, "valid": 0.2, "test": 0.0, "cache": "cache"}


def fit(*words: str, **sections: object) -> None:
    recipe = {
        "model": {"class_path": "LanguageModel", "init_args": MODEL},
        "data": {"class_path": "Text", "init_args": TEXT},
        "trainer": {**TRAINER, "default_root_dir": "run"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump({**recipe, **sections}))
    words = ("fit", "--config", "recipe.yaml", *words)
    before, sys.argv = sys.argv, ["zoo", *words]
    try:
        cli.run(list(words))
    finally:
        sys.argv = before


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} and the words of this text " * 4)
    return tmp_path


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("position", ["RoPE", "Learned", "T5"])
def test_small_lengths_of_models_train_to_the_end(
    length: int, position: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt that is longer than what the model reads is shortened, for the sample after the run."""
    fit("--model.length", str(length), "--model.position", position, "--trainer.logger", "true")
    said = capsys.readouterr().out
    assert "To publish:" in said
    if position == "RoPE":
        assert "A sample, from 'd" in said
    elif length == 1 and position == "Learned":
        assert "No sample: Learned has a vector for each of 1 positions" in said


@pytest.mark.parametrize("length", [1, 2, 3])
def test_small_lengths_of_blocks_are_refused(length: int) -> None:
    with pytest.raises(ZooError, match=f"Blocks of {length} tokens do not fit a model of length 16"):
        fit("--data.length", str(length))


BAD = {
    "mixed.jsonl": (b'{"text": "one two three"}\n' * 50 + b'{"text": 17}\n', "mixed.jsonl, line 51"),
    "short.jsonl.gz": (gzip.compress(b'{"text": "one two three"}\n' * 50)[:-9], "short.jsonl.gz is not a whole .gz"),
}


@pytest.mark.parametrize("streaming", [[], ["--data.streaming", "true"]], ids=["stored", "streamed"])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_damaged_texts_are_named(place: Path, name: str, streaming: list[str], workers: str) -> None:
    content, sentence = BAD[name]
    (place / name).write_bytes(content)
    more = ["--data.valid", "0", "--data.workers", workers, "--trainer.max_steps", "200", "--data.batch", "1"]
    with pytest.raises(ZooError) as told:
        fit("--data.files", name, *streaming, *more)
    assert sentence in str(told.value)
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_pictures_are_named(place: Path, workers: int) -> None:
    for label in ("freight train", "bus"):
        (place / "pictures" / label).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((8, 8), 90).save(place / "pictures" / label / f"{number}.png")
    bad = place / "pictures" / "bus" / "1.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    model = {"patch": 4, "dim": 16, "layers": 1, "heads": 2, "position": "RoPE"}
    data = {"files": "pictures", "batch": 2, "workers": workers, "valid": 0.0, "test": 0.0, "cache": "cache"}
    with pytest.raises(ZooError) as told:
        fit(
            "--trainer.max_steps=3",
            model={"class_path": "ImageClassifier", "init_args": model},
            data={"class_path": "Images", "init_args": data},
        )
    assert str(told.value).startswith("The image pictures/bus/1.png cannot be read: ")


def test_held_out_texts_are_counted_in_the_log(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"{number} and the words of this text " * 4} for number in range(6)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit(
        "--data.files",
        "rows.jsonl",
        "--data.valid_files",
        "texts/3.txt",
        "--data.streaming",
        "true",
        "--trainer.max_steps",
        "14",
    )
    assert "left out so far: 1 documents equal to held-out ones, 0 without text" in caplog.text
