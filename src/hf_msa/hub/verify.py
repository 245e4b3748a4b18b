"""The check of a pushed model: download it as a stranger would, see what it predicts, and what lies beside its weights.

This file is also a script, run by `hf_msa.hub.push` in a process of its own in which hf_msa cannot be imported:
otherwise the classes registered here would be used in place of the code that was pushed, and nothing would be proved.
So it imports nothing of the package.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

PROBE_TEXTS = ("i really liked it", "no, it was long, and the ending is not what i had hoped for", "well")
PROBE_FRAMES = (7, 12, 1)


def probe_batch(model: Any, processor: Any) -> dict[str, Tensor]:
    """Build a fixed batch of three samples for any checkpoint; the last one lacks audio and vision.

    Args:
        model: A model of hf_msa.
        processor: Its processor, which says what it reads and how wide.

    Returns:
        The model inputs; with `labels` of zeros where predicting needs them.
    """
    random = np.random.default_rng(0)
    features: dict[str, list[np.ndarray | None]] = {}
    for modality in processor.feature_extractor.modalities:
        width = getattr(processor.feature_extractor, f"{modality}_dim")
        drawn = [random.standard_normal((frames, width), dtype=np.float32) for frames in PROBE_FRAMES]
        features[modality] = [*drawn[:-1], None]
    inputs = processor(text=list(PROBE_TEXTS), pad_to_fixed=not model.config.mask_padding, **features)
    labels = {"labels": torch.zeros(len(PROBE_TEXTS))} if "labels" in model.config.oracle_inputs else {}
    return {**inputs, **labels}


def probe_logits(name: str, **options: Any) -> Tensor:
    """Load a model and its processor through the Auto classes and predict the fixed batch, on the CPU.

    Args:
        name: Folder or Hub name.
        **options: Passed on to `from_pretrained`, e.g. `revision`.

    Returns:
        `torch.FloatTensor` of shape `(3, 1)`.
    """
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(name, **options).eval()
    processor = AutoProcessor.from_pretrained(name, **options)
    with torch.no_grad():
        logits: Tensor = model(**probe_batch(model, processor)).logits
    return logits.float().contiguous()


def check_side_files(repo_id: str, revision: str, digests: Mapping[str, str]) -> None:
    """Download what lies beside the weights of a model, and compare it with what was sent.

    Args:
        repo_id: The Hub repository.
        revision: Commit, branch or tag.
        digests: Path in the repository -> SHA-256 of the file, in hexadecimal digits.

    Raises:
        SystemExit: Naming the file that is another one.
    """
    for path, digest in digests.items():
        file = Path(hf_hub_download(repo_id, path, revision=revision))
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{path} is not what was sent")


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict the fixed batch with a model from the Hub and its own code, and write the logits as safetensors."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("repo_id", help="the Hub repository")
    parser.add_argument("revision", help="commit, branch or tag")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("side_files", help="JSON file: what has to lie beside the weights, path -> SHA-256")
    given = parser.parse_args(arguments)
    sys.modules["hf_msa"] = None  # type: ignore[assignment]  # importing it fails from here on, installed or not
    logits = probe_logits(given.repo_id, revision=given.revision, trust_remote_code=True)
    check_side_files(given.repo_id, given.revision, json.loads(Path(given.side_files).read_text(encoding="utf-8")))
    save_file({"logits": logits}, given.output)


if __name__ == "__main__":
    main()
