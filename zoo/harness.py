"""A zoo checkpoint as the model `zoo` of EleutherAI's lm-evaluation-harness.

    python -m zoo.harness --model zoo --model_args checkpoint=CKPT --tasks lambada_openai,arc_easy

This is the harness's own command line with every argument it has. Its releases up to 0.4.13 know the models of their
own source tree only, so importing this module is what adds ours; `lm_eval.simple_evaluate(model="zoo", ...)` works
after the import too.

Nothing is cut: a request that is longer than the model is refused before the first one is read, where other models of
the harness drop the beginning of the prompt and score the rest. Requests of one length are read together, longest
first, so there is no padding, and no answer depends on its neighbours, whatever an encoding makes of the length.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from zoo import checkpoints
from zoo.arguments import place
from zoo.errors import ZooError, listing
from zoo.evaluate.reader import CHUNK, Reader

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError:
    lacking = "zoo.harness needs lm-evaluation-harness.   Try:  pip install 'positionzoo[harness]'"
    if __name__ == "__main__":
        print(f"zoo: {lacking}", file=sys.stderr)
        raise SystemExit(2) from None
    raise ZooError(lacking) from None

TOKENS = 8192
"""Tokens that are read together where the size of a batch is left to us."""

Request = tuple[Any, list[int], list[int]]
"""What the harness calls a request (None: a part of one), the ids of its context, the ids that are scored."""


@register_model("zoo")
class Zoo(TemplateLM):
    """A zoo checkpoint; the arguments are those of `--model_args`.

    Scores are sums of natural logarithms in float32, those of the harness's own `hf` for the same model: a context
    without a token, and the window in which a text begins, is preceded by the token that begins a document, or by the
    one that ends it where there is none; what the tokenizer itself puts before a text stands before each. An answer is
    what its tokens add to the prompt, so that it begins with a space where a word does; `hf` loses that space with
    SentencePiece.

    Args:
        checkpoint: A .ckpt file or a checkpoint's folder.
        max_length: Tokens that are read at most (default: the length of first training, or what an extension has
            made of it). A model may read further; whether this one does is for you to say, and for `zoo evaluate` to
            show.
        device: Where it runs.
        batch_size: Requests that are read together; auto takes as many as make 8192 tokens.
        max_batch_size: The most that auto takes.
        **others: None; each is refused by name.
    """

    def __init__(
        self,
        checkpoint: str = "",
        max_length: int | str | None = None,
        device: str = "cpu",
        batch_size: int | str = "auto",
        max_batch_size: int | str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others or not checkpoint:
            wrong = f"no {listing(others)}" if others else "a checkpoint"
            raise ZooError(
                f"The model zoo takes {wrong} among its arguments.   Try:  --model_args checkpoint=CKPT,max_length=1024"
            )
        self.reader = Reader(checkpoints.read(checkpoint), "zoo", place(device))
        self._device = self.reader.device
        auto = str(batch_size).startswith("auto")
        self.batch = None if auto else whole("batch_size", batch_size)
        self.most = whole("max_batch_size", max_batch_size) if auto and max_batch_size is not None else TOKENS
        self.max_length = self.reader.model.reach if max_length is None else whole("max_length", max_length)
        if reason := self.reader.refusal(self.max_length):
            raise ZooError(f"max_length={self.max_length} is more than the model can read. {reason}")

    # What the harness asks of a model.

    @property
    def eot_token_id(self) -> int:
        return self.reader.tokenizer.end

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer at most, where a task does not say."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        return f"zoo-{self.reader.tokenizer.digest}"

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.reader.model.parameters()),
            "model_dtype": str(self.reader.model.embedding.weight.dtype).removeprefix("torch."),
            "position": type(self.reader.model.trunk.position).__name__,
            "trained_length": self.reader.length,
            "max_length": self.max_length,
        }

    @property
    def prefix_token_id(self) -> int:
        return self.reader.tokenizer.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, after those that the tokenizer itself puts before it, if it does not begin with them."""
        tokenizer = self.reader.tokenizer
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(tokenizer.decode([tokenizer.prefix]))
        return [*(tokenizer.encode_prefix() if add_special_tokens else []), *tokenizer.encode(string)]

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ZooError("A zoo checkpoint has no chat template.   Leave --apply_chat_template out.")

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each request the log-likelihood of its ids, and whether each of them is the likeliest."""
        rows = []
        for request, context, ids in requests:
            if not ids:
                raise ZooError(f"A continuation adds no token to its context: {request!r}.")
            rows.append((context or [self.prefix_token_id]) + ids)
        self.room([len(row) - 1 for row in rows], [0] * len(rows))
        alike: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault(len(row), []).append(number)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        progress = tqdm(total=len(rows), desc="Reading", disable=disable_tqdm)
        for length, numbers in sorted(alike.items(), reverse=True):
            for some in split(numbers, self.batch or max(1, min(self.most, TOKENS // length))):
                tokens = torch.tensor([rows[number] for number in some], device=self.device)
                hidden = self.reader.model.read(tokens[:, :-1])
                for index, number in enumerate(some):
                    request, _, ids = requests[number]
                    results[number] = self.score(hidden[index, -len(ids) :], tokens[index, -len(ids) :])
                    if request is not None:
                        self.cache_hook.add_partial("loglikelihood", request, results[number])
                progress.update(len(some))
        progress.close()
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in the harness's disjoint windows: every token is scored once."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        results = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            results[owner] += found
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to the first of its stop strings, which is left out."""
        asked = [(request, normalize_gen_kwargs(request.args[1], self.max_gen_toks)) for request in requests]
        if any(wish["do_sample"] for _, wish in asked):
            raise ZooError("The model zoo answers greedily.   Try:  --gen_kwargs do_sample=False,temperature=0")
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        counts = [whole("max_gen_toks", wish["max_gen_toks"]) for _, wish in asked]
        self.room([len(prompt) + count for prompt, count in zip(prompts, counts, strict=True)], counts)
        results = []
        for (request, wish), prompt in zip(tqdm(asked, desc="Answering", disable=disable_tqdm), prompts, strict=True):
            stops = [stop for stop in wish["until"] if stop]
            context = self.tok_encode(request.args[0], add_special_tokens=False)
            count, reached = wish["max_gen_toks"], partial(holds, stops)
            answer = self.reader.answer(prompt, count, stop=reached, context=context, special=False)
            for stop in stops:
                answer = answer.partition(stop)[0]
            results.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return results

    # How it is done.

    def room(self, needs: list[int], answers: list[int]) -> None:
        """Raise ZooError where a request needs more tokens than are read, of which `answers` are yet to come."""
        longest, answer = max(zip(needs, answers, strict=True), default=(0, 0))
        limit, trained = self.max_length, self.reader.length
        if longest <= limit:
            return
        count = sum(need > limit for need in needs)
        to_come = f", {answer} of them for its answer" if answer else ""
        ways = []
        if answer and longest - answer < limit:
            ways.append(f"--gen_kwargs max_gen_toks={answer - (longest - limit)}")
        if reason := self.reader.refusal(longest):
            ways.append(f"a model that reads further ({reason})")
        else:
            ways.append(
                f"max_length={longest} among the --model_args, if it reads beyond the {trained} of its training"
            )
        raise ZooError(
            f"{count} of {len(needs)} requests do not fit: the longest needs {longest} tokens{to_come}, and the model "
            f"reads {limit}. Nothing is cut.   Try:  {'; or '.join(ways)}"
        )

    def score(self, hidden: Tensor, ids: Tensor) -> tuple[float, bool]:
        """Log-likelihood of `ids` [tokens] read out of `hidden` [tokens, dim], and whether all are the likeliest."""
        total, greedy = 0.0, True
        for part, targets in zip(hidden.split(CHUNK), ids.split(CHUNK), strict=True):
            logits = self.reader.model.head(part).float()
            total += float(logits.log_softmax(-1).gather(-1, targets[:, None]).sum())
            greedy &= bool((logits.argmax(-1) == targets).all())
        return total, greedy


def holds(stops: list[str], text: str) -> bool:
    """Whether a text has come to one of its stop strings."""
    return any(stop in text for stop in stops)


def split(numbers: list[int], size: int) -> Iterable[list[int]]:
    """`numbers` in parts of `size`."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def whole(name: str, value: int | str) -> int:
    """A number of 1 or more."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ZooError(f"{name} is a whole number of 1 or more, and got {value!r}.")
    return number


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    words = {word.partition("=")[0] for word in sys.argv[1:]}
    if "--model" in words and not words & {"--device", "--config"} and not torch.cuda.is_available():
        print("zoo: the harness would take cuda:0, which is not here; this runs with  --device cpu", file=sys.stderr)
        sys.argv += ["--device", "cpu"]
    try:
        cli_evaluate()
    except ZooError as error:
        print(f"zoo: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
