"""The results document: what was asked, of whom, on which text, and what came out, cell by cell.

With a folder it is on disk after every cell, whole at any moment, so that an interrupted run goes on where it stopped.
A folder that holds another run's results is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import lock
from zoo.errors import ZooError

FILE = "results.json"
SAME = ("kind", "settings", "text", "checkpoints")
"""What two runs must have in common to be one."""


class Store:
    """Results of one run.

    Args:
        header: The document without its results.
        folder: Where it is kept (default: nowhere).
    """

    def __init__(self, header: dict[str, Any], folder: Path | None = None) -> None:
        self.folder = folder
        self.document = {**header, "results": []}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.remove_left_overs(folder)
        except OSError as error:
            raise ZooError(f"The folder {folder} cannot be written: {error.strerror}.   Try:  --out FOLDER") from error
        if (folder / FILE).is_file():
            self.document["results"] = self.kept(header)

    def kept(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Results that an earlier, interrupted run left in the folder."""
        assert self.folder is not None
        path = self.folder / FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in SAME if found.get(key) != json.loads(json.dumps(header[key]))]
            results = [dict(one) for one in found["results"]]
            for one in results:
                one["checkpoint"], one["measure"], one["length"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ZooError(f"{path} is damaged ({error}).   Remove it, or name another folder:  --out FOLDER") from None
        if other:
            raise ZooError(
                f"{self.folder} holds the results of another run: its {' and '.join(other)} differ.   "
                "Name another folder:  --out FOLDER"
            )
        return results

    def done(self, checkpoint: str, measure: str, length: int) -> bool:
        """Whether a cell is there already."""
        key = (checkpoint, measure, length)
        return any((one["checkpoint"], one["measure"], one["length"]) == key for one in self.document["results"])

    def add(self, result: dict[str, Any]) -> None:
        """Keep a cell."""
        self.document["results"].append(result)
        if self.folder is not None:
            with lock.writing(self.folder / FILE) as beside:
                beside.write_text(json.dumps(self.document, indent=1, allow_nan=False), encoding="utf-8")
