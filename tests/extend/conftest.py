"""A model that is trained here for a second, checkpoints of it, its texts, and a spy on what models read."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from zoo import checkpoints
from zoo.checkpoints import folder
from zoo.data import Text
from zoo.data.tokenizer import Tokenizer
from zoo.evaluate import Reader

BYTES = Tokenizer("bytes")
SIZE = {"vocabulary": 257, "length": 16, "dim": 32, "layers": 1, "heads": 2}
STEPS = 200


def write_texts(place, count, words=400):
    """Documents that share no stretch of bytes worth the name."""
    place.mkdir()
    for number in range(count):
        said = " ".join(f"{place.name[0]}{number}x{(number + 3) * i % 97}" for i in range(words))
        (place / f"{place.name}-{number:02}.txt").write_text(f"{place.name} {said}")
    return place


def described(**more):
    position = {"class_path": "RoPE", "init_args": {"base": 100.0}}
    kernel = {"class_path": "Auto", "init_args": {}}
    return {"class_path": "zoo.decoder.Decoder", "init_args": {**SIZE, "position": position, "kernel": kernel, **more}}


def store(path, weights, data=None, corpus=False, **more):
    """A checkpoint; with `data`, one that says which text it was trained on, and with `corpus`, its digest."""
    about = {"format": 1, "zoo": "0", "network": described(**more), "tokenizer": BYTES.describe()}
    about["trained"] = {"steps": 700}
    if data is not None:
        model = {"class_path": "LanguageModel", "init_args": {"optimizer": {"init_args": {"lr": 0.003}}}}
        about["asked"] = {"model": model, "data": {"class_path": "zoo.data.Text", "init_args": data}}
    if corpus:
        about["corpus"] = Text(**data).digest
    folder.write(path, about, weights, "")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Of a model that has learned such texts in windows of 16, 48 and 64, the longer ones by DynamicNTK's waves.

    So without an extension it reads them badly, and which is the best is known.
    """
    folder = write_texts(tmp_path_factory.mktemp("learned") / "texts", 12)
    text = torch.cat([torch.tensor(list(path.read_bytes())) for path in sorted(folder.iterdir())])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = described()
        network["init_args"]["position"]["init_args"]["extension"] = {"class_path": "DynamicNTK", "init_args": {}}
        model = checkpoints.build(network)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(STEPS):
            size = (16, 48, 64)[step % 3]
            batch = torch.stack(
                [text[at : at + size + 1] for at in torch.randint(len(text) - size - 1, (512 // size,))]
            )
            logits = model(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in model.state_dict().items()}


@pytest.fixture
def make(weights):
    return SimpleNamespace(write_texts=write_texts, store=partial(store, weights=weights))


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts", 12)


@pytest.fixture
def knowing(tmp_path, texts, make):
    """A checkpoint of 16 tokens that knows its data: about 4 documents to validate on, 4 to test on."""
    data = {"files": str(texts), "cache": str(tmp_path / "cache"), "valid": 0.4, "test": 0.4, "tokenizer": "bytes"}
    return make.store(tmp_path / "tiny", data=data)


@pytest.fixture
def recognising(tmp_path, texts, make):
    """The same, with the digest of its texts: of those it reads what its run held out, where they are given to it."""
    data = {"files": str(texts), "cache": str(tmp_path / "cache"), "valid": 0.4, "test": 0.4, "tokenizer": "bytes"}
    return make.store(tmp_path / "tiny", data=data, corpus=True)


@pytest.fixture
def reads(monkeypatch):
    """Every text that a model reads, as bytes."""
    found = []
    losses = Reader.losses

    def spied(self, tokens, **more):
        found.extend(bytes(row.tolist()) for row in tokens)
        return losses(self, tokens, **more)

    monkeypatch.setattr(Reader, "losses", spied)
    return found
