"""Released checkpoints are small, complete, and do what their cards say."""

import sys
from pathlib import Path

import pytest

from zoo import checkpoints, cli

RELEASED = sorted(path for path in (Path(__file__).parent.parent / "checkpoints").iterdir() if path.is_dir())


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_a_released_checkpoint(path, monkeypatch, capsys):
    assert {file.name for file in path.iterdir()} == {"README.md", "config.yaml", "model.safetensors", "tokenizer.json"}
    assert (path / "model.safetensors").stat().st_size <= 5_000_000
    words = ["generate", str(path), "--prompt", "import ", "--tokens", "20", "--temperature", "0"]
    monkeypatch.setattr(sys, "argv", ["zoo", *words])
    cli.run(words)
    assert capsys.readouterr().out.startswith("import ")


def test_the_quickstart_has_learned():
    import torch

    from zoo.data.tokenizer import Tokenizer

    found = checkpoints.read(RELEASED[0].parent / "quickstart")
    tokenizer = Tokenizer.restore(found.about["tokenizer"])
    text = "    def __init__(self, name, value=None):\n        self.name = name\n        self.value = value\n"
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logits = found.network()(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item()
    assert loss < 3.5, "chance is ln 2048 = 7.6"
