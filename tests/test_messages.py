"""A recipe or a flag that does not fit gets one sentence in the user's words, exit status 2 and no traceback."""

import pytest

from zoo import cli
from zoo.errors import ZooError

RECIPES = {
    "nested.yaml": "model: {init_args: {position: {class_path: RoPE, init_args: [1]}}}",
    "misspelt.yaml": "model:\n  class_path: LanguageModel\n  init_args:\n    dimm: 3\n",
    "deep.yaml": "model:\n  class_path: LanguageModel\n  init_args:\n    position:\n      class_path: FoPE\n"
    "      init_args:\n        gian: 3\n",
    "broken.yaml": "model: [\n",
    "section.yaml": "modle:\n  dim: 3\n",
    "trainer.yaml": "trainer:\n  max_stepz: 3\n",
    "files.yaml": "data:\n  files: {a: 3}\n",
    "list.yaml": "model:\n  class_path: LanguageModel\n  init_args:\n    layers: [1]\n",
    "text.yaml": "just text",
}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--model.position Rope", ["No position encoding is called Rope. Did you mean RoPE", "Installed: ", "FoPE"]),
        ("--model.kernel Tile", ["No kernel is called Tile. Did you mean Tiled?", "SDPA"]),
        ("--model.position.bas 3", ["No setting is called bas in model.position. Did you mean base?"]),
        ("--model.position.base abc", ["model.position.base takes a number", "'abc'"]),
        ("--model.dimm 3", ["No setting is called dimm in model. Did you mean dim?"]),
        ("--model.dim abc", ["model.dim takes a whole number, and got 'abc'."]),
        ("--modle.dim 3", ["No setting is called --modle.dim. Did you mean --model.dim?"]),
        ("--model.feed_forward Swiglu", ["one of SwiGLU, GELU, GELU-tanh", "Did you mean SwiGLU?"]),
        ("--model.position FoPE --model.position.dialect papr", ["one of production, paper", "Did you mean paper?"]),
        ("--trainer.max_steps abc", ["trainer.max_steps takes a whole number, and got 'abc'."]),
        ("--trainer.max_stepz 3", ["Did you mean --trainer.max_steps"]),
        ("--trainer.accelerator gpuu", ["gpuu", "cuda"]),
        ("--data.lenght 4", ["No setting is called lenght in data. Did you mean length"]),
        ("--config nope.yaml", ["There is no recipe at", "nope.yaml"]),
        ("--model LanguageModell", ["No model is called LanguageModell. Did you mean LanguageModel?"]),
        ("--model.schedule Cosine", ["No schedule is called Cosine. Did you mean WarmupCosine?"]),
        ("--model.optimizer AdamWW", ["No optimizer is called AdamWW. Did you mean AdamW"]),
        ("--model.length 0", ["at least 1 for length, and got 0"]),
        ("--model.dim 100 --model.heads 7", ["100 does not divide into 7 heads", "5, 10"]),
        ("--model.heads 6 --model.dim 96 --model.kv_heads 4", ["4 key heads cannot serve 6 query heads"]),
        ("--config misspelt.yaml", ["No setting is called dimm in model. Did you mean dim?"]),
        ("--config deep.yaml", ["No setting is called gian in model.position. Did you mean gain?"]),
        ("--config broken.yaml", ["cannot be read as YAML"]),
        ("--config section.yaml", ["No setting is called modle.dim. Did you mean model.dim?"]),
        ("--config trainer.yaml", ["trainer.max_stepz. Did you mean trainer.max_steps"]),
        ("--config files.yaml", ["data.files takes text or a list", "{'a': 3}"]),
        ("--config list.yaml", ["model.layers takes a whole number, and got '[1]'."]),
        ("--config text.yaml", ["not a mapping of sections"]),
        (
            "--config nested.yaml",
            ["model.position takes the name of a position encoding, or a mapping", "'init_args': [1]"],
        ),
        ("--model.position [RoPE]", ["the name of a position encoding, or a mapping of class_path and init_args"]),
        ("--model.position.extension YaRN --model.position.extension.factor null", ["a number, and got null."]),
        ("--model.optimizer.lr x", ["lr takes a number", "'x'"]),
        ("--trainer.logger Nothing", ["There is no class Nothing for logger", "import path"]),
        ("--trainer.precision 3", ["32-true or", "and got '3'"]),
        ("--trainer.val_check_interval 0", ["1 or more, or a share of an epoch", "got 0."]),
        ("--trainer.log_every_n_steps -1", ["trainer.log_every_n_steps takes a number, 0 or more, and got -1."]),
        ("--trainer.accumulate_grad_batches 0", ["1 or more, and got 0."]),
        ("--trainer.gradient_clip_val .nan", ["0 or more, and got nan."]),
        ("--trainer.limit_val_batches 1.5", ["a share from 0.0 to 1.0, and got 1.5."]),
        ("--trainer.devices -2", ["devices", "int > 0"]),
        ("--trainer.max_steps null", ["trainer.max_steps takes a whole number, and got null."]),
        ("--seed_everything -1", ["from 0 to 4294967295, and got -1."]),
        ("--data.workers 100000", ["from 0 to 1024"]),
        ("--model.layers 1000000000", ["no machine holds so many"]),
    ],
)
def test_a_mistake_gets_a_sentence(flags, says, tmp_path, monkeypatch, capsys):
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.raiseExceptions", False)  # handlers that hold an earlier test's stderr
    monkeypatch.setattr("sys.argv", ["zoo", "fit", *flags.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().err
    assert stop.value.code == 2
    sentence = told[told.rindex("zoo: ") :]
    for part in says:
        assert part in sentence
    assert "Traceback" not in told
    assert len(sentence) < 600, "a sentence, not a nest"


def test_an_unknown_verb_names_the_near_ones(monkeypatch, capsys):
    with pytest.raises(ZooError, match=r"no verb 'fitt'\. Did you mean fit\?.*generate"):
        cli.run(["fitt"])
