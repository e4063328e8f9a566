"""An analysis in lines for a terminal: means over heads, layer by layer, of two checkpoints as before -> after."""

from __future__ import annotations

from typing import Any


def summary(documents: list[dict[str, Any]]) -> str:
    """The analysis in lines: what is analysed, its waves, and a row for each layer, means over its heads."""
    lines = []
    for document in documents:
        unit = "patches" if document["task"] == "images" else "tokens"
        size, trained = (" x ".join(map(str, document[key])) for key in ("grid", "trained"))
        layers, heads = document["size"]["layers"], document["size"]["heads"]
        lines.append(
            f"{document['name']}: {document['position']} with {document['kernel']}, {layers} layers of {heads} heads, "
            f"trained on {trained} {unit}, read {document['examples']} x {size}"
        )
        lines += [f"  {line}" for line in spans(document)] + [f"  {word}" for word in document["absent"].values()]
    columns = {
        "distance": lambda d, n: mean(d["heads"], n, "distance"),
        "entropy": lambda d, n: mean(d["heads"], n, "entropy"),
        "sink": lambda d, n: mean(d["heads"], n, "sink"),
        "redundancy": lambda d, n: pick(d["heads"], n).get("redundancy"),
        "undertrained": lambda d, n: mean(d["spectrum"], n, "undertrained"),
        "change": lambda d, n: pick(d["streams"], n).get("change"),
    }
    lines += ["", "means over heads; undertrained: share of q.k energy on waves without a full turn in training;"]
    lines += ["change: share of the power of the hidden states that the block moves to other frequencies", ""]
    lines.append("layer" + "".join(f"{name:>{13 + 9 * (len(documents) - 1)}}" for name in columns))
    for number in range(max(document["size"]["layers"] for document in documents)):
        cells = []
        for value in columns.values():
            each = [value(document, number) for document in documents]
            cells.append(" -> ".join("-" if v is None else said(v) for v in each))
        lines.append(f"{number + 1:>5}" + "".join(f"{cell:>{13 + 9 * (len(documents) - 1)}}" for cell in cells))
    return "\n".join(lines)


def spans(document: dict[str, Any]) -> list[str]:
    """How many waves there are, and how many of them training saw less than once."""
    if not document["spectrum"] or "axes" not in document["spectrum"]["encodings"][0]:
        return []
    lines = []
    for axis, all_ in enumerate(document["spectrum"]["encodings"][0]["axes"]):
        turning = [wave for wave in all_ if wave["wavelength"] is not None]
        late = sum(wave["undertrained"] for wave in turning)
        where = "" if document["task"] == "text" else (" along rows", " along columns")[axis]
        if turning:
            lines.append(
                f"{len(turning)} waves{where}, {said(turning[0]['wavelength'])} to {said(turning[-1]['wavelength'])} "
                f"long; {late} without a full turn in training"
            )
    return lines


def said(value: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def pick(part: dict[str, Any] | None, number: int) -> dict[str, Any]:
    """The entry of a layer, or nothing."""
    return next((layer for layer in (part or {"layers": []})["layers"] if layer["layer"] == number), {})


def mean(part: dict[str, Any] | None, number: int, key: str) -> float | None:
    """The mean over heads of a number of a layer."""
    values = pick(part, number).get(key)
    return sum(values) / len(values) if values else None
