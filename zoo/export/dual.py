"""Two profiles of one model, side by side: as it was trained for requests that fit, and extended for longer ones.

An extension that is always on costs short requests something (YaRN's temperature, interpolated waves), and engines fix
it when they start. So two servers read the same weights, of which there is one copy on the disk, and a router sends
each request by its length.
"""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import replace
from pathlib import Path

from zoo.checkpoints.stored import Listing
from zoo.errors import ZooError
from zoo.export import engines
from zoo.export.config import Exported
from zoo.export.write import origin
from zoo.extend import past
from zoo.extend.methods import converts
from zoo.hub import folder as hub

SHORT, LONG = "short", "long"
ROUTER = "router.json"
RULE = "prompt_tokens + max_new_tokens"
PORT = 8000


def profiles(found: Listing) -> dict[str, Listing]:
    """A checkpoint as it was before it was extended, and as it is.

    Raises ZooError where its weights are not those of first training any more, or it was not extended here.
    """
    chain = past.chain(found.about)
    if not chain:
        raise ZooError(f"{found.path} was not extended by zoo, so there is one profile of it.   Try:  without --dual")
    changed = [f"converted by {link['method']}" for link in chain if converts(link["method"])]
    changed += [f"trained for {run['steps']} steps after it was extended" for run in past.tunings(found.about)]
    if changed:
        raise ZooError(
            f"{found.path} was {changed[0]}: with these weights there is no way back to what it was.   "
            "Try:  without --dual"
        )
    if (source := origin(found.path)) is not None:  # which says what it was, an extension of its own included
        about = hub.listed(source).about
    else:
        about = copy.deepcopy(found.about)
        arguments = about["network"]["init_args"]
        arguments["position"]["init_args"].pop("extension")
        arguments |= {"length": about.pop("extended")["length"], "reach": None}
    if "tokenizer" in found.about:
        about["tokenizer"] = found.about["tokenizer"]
    return {LONG: found, SHORT: replace(found, about=about)}


def reach(found: Listing) -> int:
    """Tokens that a profile reads."""
    arguments = found.about["network"]["init_args"]
    return int(arguments.get("reach") or arguments["length"])


def router(beside: Path, found: dict[str, Listing], said: dict[str, Exported], command: str, name: str) -> None:
    """Write the rule, for programs and for people.

    Args:
        beside: The folder of both profiles.
        found: The profiles.
        said: Their configs.
        command: What was typed.
        name: The folder's name.
    """
    rows = [{"folder": each, "up_to": reach(found[each])} for each in (SHORT, LONG)]
    (beside / ROUTER).write_text(json.dumps({"length": RULE, "profiles": rows}, indent=2) + "\n", encoding="utf-8")
    lines = [
        f"# {name}",
        f"Two profiles of one model. Requests of up to {rows[0]['up_to']} tokens, prompt and answer together, go to "
        f"`{SHORT}`, the model as it was trained; longer ones, up to {rows[1]['up_to']}, to `{LONG}`. The weights are "
        "the same, and hard links of one file where the file system has such.",
        f"```bash\n{command}\n```",
        "## Serve",
    ]
    for engine in engines.SERVERS:
        if any(engines.unserved(engine, each) for each in said.values()):
            continue
        words = []
        for number, each in enumerate((SHORT, LONG)):
            start = engines.command(engine, said[each], shlex.quote(f"{name}/{each}"), reach(found[each]))
            words.append(f"{start} --port {PORT + number}")
        lines.append("```bash\n" + " &\n".join(words) + "\n```")
    rule = f"port = {PORT} if prompt_tokens + max_new_tokens <= {rows[0]['up_to']} else {PORT + 1}"
    lines.append(f"```python\n{rule}\n```")
    lines.append(
        "A conversation that outgrows the first profile goes on in the second, which reads it anew: keys that one "
        "has cached are of no use to the other."
    )
    (beside / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
