"""Lightning's own flags and callbacks work with zoo's own parts, and its refusals are sentences."""

import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from zoo import checkpoints, cli
from zoo.callbacks import Averaging
from zoo.checkpoints import lightning
from zoo.errors import ZooError
from zoo.extend import past
from zoo.scale import FSDP
from zoo.tasks import LanguageModel

TINY = [
    "--model.length=16", "--model.dim=16", "--model.layers=1", "--model.heads=2", "--data.tokenizer=bytes",
    "--data.batch=4", "--data.workers=0", "--data.valid=0.2", "--data.test=0", "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
STEPS = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
EMA = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("flags")
    (root / "texts").mkdir()
    for number in range(6):
        (root / "texts" / f"{number}.txt").write_text(" ".join(f"word{number * i % 97}" for i in range(120)))
    return root


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("zoo.callbacks.release.Release.sample", lambda *_: "")


def fit(place, out, *flags):
    words = ["fit", *TINY, f"--data.files={place / 'texts'}", f"--data.cache={place / 'cache'}"]
    before, sys.argv = sys.argv, ["zoo", *words, f"--trainer.default_root_dir={out}", *map(str, flags)]
    try:
        cli.run(sys.argv[1:])
    finally:
        sys.argv = before


def weights(path, key="state_dict"):
    return lightning.load(path)[key]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def last(out):
    return max(out.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def listed(out):
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.logger=false"],
        ["--trainer.overfit_batches=2", "--trainer.val_check_interval=1.0"],
        ["--trainer.enable_checkpointing=false"],
        ["--trainer.barebones=true"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/perplexity"],
        ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"],
        ["--trainer.callbacks+=ModelCheckpoint"],
    ],
    ids=" ".join,
)
def test_a_flag_works(flags, place, tmp_path):
    shown = [flag for flag in STEPS if not any(flag.split("=")[0] in own for own in flags)]
    fit(place, tmp_path, *shown, *flags)
    bare, unkept = "--trainer.barebones=true" in flags, "--trainer.enable_checkpointing=false" in flags
    assert bool(list(tmp_path.rglob("model/model.safetensors"))) == (not bare)
    assert bool(list(tmp_path.rglob("*.ckpt"))) == (not bare and not unkept)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los"], "val/los"),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/los"], "val/los"),
        (["--trainer.strategy=dpp"], "dpp"),
        (["--trainer.devices=0"], "devices"),
        (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"], "swa_epoch_start"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_lightning_refuses_is_a_sentence(flags, told, place, tmp_path):
    with pytest.raises(ZooError, match=told):
        fit(place, tmp_path, *STEPS, *flags)


def test_early_stopping_stops(place, tmp_path):
    flags = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    more = ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100"]
    fit(place, tmp_path, "--trainer.max_steps=20", "--trainer.val_check_interval=2", *flags, *more)
    assert lightning.load(last(tmp_path))["global_step"] == 4


def test_swa_averages_what_is_trained(place, tmp_path):
    flags = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1"]
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    fit(place, tmp_path / "plain", *flags)
    fit(place, tmp_path / "swa", *flags, *swa, "--trainer.callbacks.swa_epoch_start=1")
    content = lightning.load(last(tmp_path / "swa"))
    assert content["zoo"]["trained"]["averaged"] == {"by": "StochasticWeightAveraging", "updates": 3}
    assert not same(content["state_dict"], weights(last(tmp_path / "plain")))
    assert (
        "averaged weights (StochasticWeightAveraging, 3 updates)"
        in next(tmp_path.glob("swa/**/model/README.md")).read_text()
    )


@pytest.mark.parametrize(
    "flags",
    [["--data.batch=400"], ["--trainer.limit_train_batches=0"]],
    ids=" ".join,
)
def test_steps_that_cannot_be_made_are_an_error(flags, place, tmp_path):
    with pytest.raises(ZooError, match=r"--data.batch|limit_train_batches"):
        fit(place, tmp_path, "--trainer.max_steps=4", *flags)
    assert not list(tmp_path.rglob("model"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("flag", ["--trainer.max_steps=0", "--trainer.max_epochs=0"])
def test_no_steps_asked_for_publish_nothing(flag, place, tmp_path, capsys):
    fit(place, tmp_path, flag)
    assert "no step was left to make" in capsys.readouterr().err
    assert not list(tmp_path.rglob("model"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_finished_run_typed_again_publishes_nothing_new(place, tmp_path, capsys):
    fit(place, tmp_path, "--trainer.max_steps=2")
    before = {name: time for name, time in listed(tmp_path).items() if "model/" in name or name.endswith(".ckpt")}
    capsys.readouterr()
    fit(place, tmp_path, "--trainer.max_steps=2", "--ckpt_path=last")
    assert "no step was left to make: 2 are done" in capsys.readouterr().err
    after = {name: time for name, time in listed(tmp_path).items() if "model/" in name or name.endswith(".ckpt")}
    assert after == before


def test_a_run_that_was_stopped_before_it_published_does_so(place, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("zoo.callbacks.release.Release.on_fit_end", lambda *_: None)
        fit(place, tmp_path, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    assert not list(tmp_path.rglob("model"))
    fit(place, tmp_path, "--trainer.max_steps=2", "--ckpt_path=last")
    assert len(list(tmp_path.rglob("model"))) == 1


def test_weights_that_are_not_finite_are_not_saved(place, tmp_path):
    flags = ["--trainer.max_steps=6", "--trainer.val_check_interval=1", "--trainer.num_sanity_val_steps=0"]
    with pytest.raises(ZooError, match=r"not finite.*--model.optimizer.eps 1e-4.*16-mixed"):
        fit(place, tmp_path, *flags, "--trainer.precision=16-true")
    assert not list(tmp_path.rglob("model"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_average_goes_on_from_the_weights_that_were_trained(place, tmp_path, capsys):
    flags = ["--model.dropout=0.1", "--trainer.val_check_interval=2", *EMA]
    fit(place, tmp_path / "whole", "--trainer.max_steps=6", *flags)
    fit(place, tmp_path / "half", "--trainer.max_steps=3", *flags)
    first = lightning.load(last(tmp_path / "half"))
    assert not same(first["state_dict"], first["current_model_state"])
    assert first["zoo"]["trained"]["averaged"] == {"by": "EMAWeightAveraging", "updates": 3}
    fit(place, tmp_path / "half", "--trainer.max_steps=6", "--ckpt_path=last", *flags)
    whole, half = (lightning.load(last(tmp_path / name)) for name in ("whole", "half"))
    assert same(whole["state_dict"], half["state_dict"])
    assert same(whole["current_model_state"], half["current_model_state"])
    path = next((tmp_path / "whole").rglob("model"))
    published = {f"network.{name}": weight for name, weight in checkpoints.read(path).weights.items()}
    assert all(torch.equal(weight, whole["state_dict"][name]) for name, weight in published.items())
    assert "averaged weights (EMAWeightAveraging, 6 updates)" in (path / "README.md").read_text()
    capsys.readouterr()
    cli.run(["generate", str(path), "--prompt=word", "--tokens=1"])
    assert "holds averaged weights (EMAWeightAveraging, 6 updates)" in capsys.readouterr().err
    about = {**checkpoints.read(path).about}
    assert past.training(about, "16 tokens") == (
        "trained on 16 tokens for 6 steps, averaged weights (EMAWeightAveraging, 6 updates)"
    )
    fit(place, tmp_path / "half", "--trainer.max_steps=7", "--ckpt_path=last", "--model.dropout=0.1")
    assert "goes on from the weights that were trained" in capsys.readouterr().err


def test_the_trained_weights_are_those_without_an_average(place, tmp_path):
    fit(place, tmp_path / "plain", *STEPS, "--model.position=FIRE")
    fit(place, tmp_path / "average", *STEPS, "--model.position=FIRE", *EMA)
    assert same(weights(last(tmp_path / "plain")), weights(last(tmp_path / "average"), "current_model_state"))


def test_an_average_of_nothing_yet_is_what_is_trained(place, tmp_path):
    fit(place, tmp_path, *STEPS, *EMA, "--trainer.callbacks.update_starting_at_step=100")
    content = lightning.load(last(tmp_path))
    assert same(content["state_dict"], content["current_model_state"])
    assert "averaged" not in content["zoo"]["trained"]


def test_shares_are_not_averaged():
    trainer = SimpleNamespace(callbacks=[EMAWeightAveraging()], strategy=FSDP())
    with pytest.raises(ZooError, match="EMAWeightAveraging keeps a second model, and FSDP gives"):
        Averaging().setup(trainer, None, "fit")


def test_buffers_are_copied_and_not_averaged():
    averaged = EMAWeightAveraging()
    task = LanguageModel(vocabulary=8, length=8, dim=8, layers=1, heads=1)
    task.register_buffer("table", torch.tensor([5, 7]))
    task.configure_model()
    trainer = Trainer(accelerator="cpu", callbacks=[Averaging(), averaged], logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.callbacks[0].setup(trainer, task, "fit")
    averaged.setup(trainer, task, "fit")
    for _ in range(2):
        averaged._average_model.update_parameters(task)
    task.table += 1
    averaged._average_model.update_parameters(task)
    assert averaged._average_model.module.table.tolist() == [6, 8]


def test_moments_that_are_not_finite_are_not_saved(place, tmp_path, monkeypatch):
    class Overflows(torch.optim.AdamW):
        def step(self, closure=None):
            loss = super().step(closure)
            for state in self.state.values():
                state["exp_avg_sq"].fill_(float("inf"))
            return loss

    monkeypatch.setattr(LanguageModel, "configure_optimizers", lambda self: Overflows(self.parameters()))
    with pytest.raises(ZooError, match="moments of the optimizer are not finite after step 2"):
        fit(place, tmp_path, *STEPS)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("flags", [[], EMA], ids=["plain", "average"])
def test_a_run_cut_by_max_steps_goes_on_to_the_bit(flags, place, tmp_path):
    fit(place, tmp_path / "whole", "--trainer.max_steps=4", *flags)
    fit(place, tmp_path / "half", "--trainer.max_steps=2", *flags)
    fit(place, tmp_path / "half", "--trainer.max_steps=4", "--ckpt_path=last", *flags)
    assert same(weights(last(tmp_path / "whole")), weights(last(tmp_path / "half")))


def test_the_loss_is_the_logarithm_of_the_perplexity(tmp_path):
    task = LanguageModel(vocabulary=50, length=16, dim=16, layers=1, heads=2, chunk=13)
    task.configure_model()
    batches = [
        {"tokens": torch.randint(0, 50, (size, 17)), "documents": torch.zeros(size, 17, dtype=torch.int32)}
        for size in (4, 1)
    ]
    batches[0]["documents"][1] = -1  # does not count
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    found = trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)[0]
    with torch.no_grad():
        tokens = torch.cat([batches[0]["tokens"][[0, 2, 3]], batches[1]["tokens"]])
        logits = task.network(tokens[:, :-1]).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).item()
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(torch.tensor(found["val/loss"]).exp().item(), rel=1e-6)
