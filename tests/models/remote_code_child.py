"""Run by test_remote_code.py in a process that cannot import hf_msa: load from each folder, predict, save, load again.

Argument: a folder that holds, per method, a folder `<method>` with model and processor, and its rows `<method>.pt`.
Writes `<method>_found.pt`.
"""

import importlib.abc
import sys
from pathlib import Path
from typing import Any

import torch


class Blocker(importlib.abc.MetaPathFinder):
    """Makes hf_msa as absent as on a machine where nobody installed it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "hf_msa":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def predict(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor.from_rows(rows)
    found: dict[str, Any] = {"modalities": AutoConfig.from_pretrained(folder, trust_remote_code=True).modalities}
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(folder, trust_remote_code=True)
        found[auto.__name__] = model(**batch).logits.detach()
        found["class"] = type(model).__name__
    if not folder.name.startswith(("omg", "uacs")):  # Saved without planner and thresholds here.
        scores = pipeline("multimodal-sentiment-analysis", model=str(folder), trust_remote_code=True, device="cpu")
        given = [{name: value for name, value in row.items() if name in ("text", "audio", "vision")} for row in rows]
        found["pipeline"] = [one["score"] for one in scores(given, batch_size=len(given))]
    again = folder.with_name(folder.name + "_again")
    if not again.exists():
        model.save_pretrained(again)
        processor.save_pretrained(again)
    return found


def main(root: Path) -> None:
    sys.meta_path.insert(0, Blocker())
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        rows = torch.load(root / f"{folder.name}.pt", weights_only=False)
        first = predict(folder, rows)
        second = predict(folder.with_name(folder.name + "_again"), rows)
        torch.save({"first": first, "second": second}, root / f"{folder.name}_found.pt")
    if any(name.partition(".")[0] == "hf_msa" for name in sys.modules):
        raise SystemExit("hf_msa was imported")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
