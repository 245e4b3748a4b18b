"""Speed of recordings: ``python -m benchmarks.recordings CLIP [CLIP ...]``; see docs/recordings.md.

How many times faster than it lasts a clip becomes each feature set, and where the time of one prediction goes: decoding,
transcribing, features, model. One thread; sets whose package is not installed are left out.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_msa.models.msa_feature_sets import FEATURE_SETS, PICTURES, SOUND, TABLE, FeatureSet, recorded_frames
from hf_msa.models.msa_recordings import read_pictures, read_sound
from hf_msa.pipelines import load_pipeline
from hf_msa.recordings.transcripts import load_transcriber

from .report import write_both
from .throughput import machine, quiet, spread


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    call()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def _length(clip: Path) -> float:
    sound = read_sound(clip)
    return len(sound) / 16_000 if sound is not None else max(time for time, _ in read_pictures(clip))


def measure_sets(clip: Path, face_model: str | None, repeats: int) -> dict[str, Any]:
    """Times real time of every feature set that the clip has something for, decoding included."""
    seconds, found = _length(clip), {}

    def make(features: FeatureSet) -> Any:
        options: dict[str, Any] = {"face_model": face_model} if features.made_from == PICTURES else {}
        return recorded_frames(features, clip, **options)

    for name, features in FEATURE_SETS.items():
        if features.made_from == TABLE or (features.made_from == PICTURES and face_model is None):
            continue
        try:
            if make(features) is not None:
                found[name] = spread([seconds / one for one in _seconds(lambda each=features: make(each), repeats)])  # type: ignore[misc]
        except (ImportError, ValueError) as error:
            print(f"{name}: {error}")
    return {"seconds": seconds, "times_real_time": found}


def measure_prediction(model: str, clip: Path, transcribe: str | None, repeats: int) -> dict[str, Any]:
    """Milliseconds of each part of one prediction."""
    pipeline = load_pipeline(model)
    extractor = pipeline.processor.feature_extractor
    sound = read_sound(clip)
    parts: dict[str, list[float]] = {"decode": _seconds(lambda: read_sound(clip), repeats)}
    if transcribe is not None and sound is not None:
        transcriber = load_transcriber(transcribe)
        parts["transcribe"] = _seconds(lambda: transcriber(sound), repeats)
    for modality in extractor.modalities:
        if getattr(extractor, f"{modality}_set") is not None and extractor.feature_set(modality).made_from == SOUND:
            features = extractor.feature_set(modality)
            waveform = read_sound(clip, int(features.rate))
            parts[modality] = _seconds(lambda one=features, wave=waveform: one.compute(wave), repeats)  # type: ignore[misc]
    row = pipeline.preprocess({"text": "the acting was wonderful", "audio": str(clip)})
    parts["model"] = _seconds(lambda: pipeline.postprocess(pipeline.forward({"rows": [row]})), repeats)
    return {name: spread([1000 * one for one in values]) for name, values in parts.items()}


def markdown(content: dict[str, Any]) -> str:
    """The measurement as tables."""
    lines = ["# Recordings", "", ", ".join(f"{name}: {value}" for name, value in content["machine"].items()) + ".", ""]
    for clip, found in content["clips"].items():
        lines += [f"`{clip}`, {found['seconds']:.1f} s:", "", "| feature set | times real time |", "|---|---|"]
        lines += [
            f"| {name} | {one['median']:.0f} ({one['low']:.0f} to {one['high']:.0f}) |"
            for name, one in found["times_real_time"].items()
        ] + [""]
    if content["prediction"]:
        lines += [f"One prediction of `{content['predicted']}`:", "", "| part | ms |", "|---|---|"]
        lines += [
            f"| {name} | {one['median']:.1f} ({one['low']:.1f} to {one['high']:.1f}) |"
            for name, one in content["prediction"].items()
        ]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", help="a checkpoint whose prediction of the first clip is timed")
    parser.add_argument("--transcribe", help="a Whisper model")
    parser.add_argument("--face-model", help="a face landmark model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"machine": machine(1)}
    content["clips"] = {clip.name: measure_sets(clip, given.face_model, given.repeats) for clip in given.clips}
    content["predicted"] = given.clips[0].name
    content["prediction"] = (
        {} if given.model is None else measure_prediction(given.model, given.clips[0], given.transcribe, given.repeats)
    )
    print(markdown(content))
    if given.output is not None:
        write_both(given.output, "recordings", content, markdown(content))


if __name__ == "__main__":
    main()
