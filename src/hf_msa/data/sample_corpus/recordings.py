"""Spoken clips of a sample corpus: whose voice shows the clip's sentiment in its pitch, rate and energy.

The sentiment shown is `latent_audio`, as in the corpus's audio frames, so a voice that lies there lies here, too.
"""

import csv
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.data.media import SAMPLING_RATE
from hf_msa.data.sample_corpus.rows import generate_rows
from hf_msa.data.sample_corpus.speech import Voice, measure, read_wave, speak, synthesizer, write_wave
from hf_msa.data.sample_corpus.story import (
    CLIP_SOUND,
    CLIP_VOICE,
    SPEAKER_VOICE,
    SampleCorpusConfig,
    SampleRow,
    generator_of,
)
from hf_msa.data.schema import SPLITS
from hf_msa.data.sources import regular_file
from hf_msa.errors import MsaError

RECORDINGS_FOLDER = "recordings"
MANIFEST_FILE = "manifest.csv"

MANIFEST_COLUMNS = ("path", "text", "label", "split", "id", *(f"planted_{field.name}" for field in fields(Voice)))

#: Of each field of `Voice`: its middle, and what one unit of sentiment, of the speaker and of the clip's noise adds, both of
#: which are standard normal. Pitch moves in semitones, rate in natural logarithms, energy in decibels.
_MIDDLE = {"pitch": 110.0, "rate": 4.0, "energy": -28.0}
_STEPS = {"pitch": (1.0, 1.5, 1.5), "rate": (0.04, 0.06, 0.08), "energy": (0.8, 1.0, 1.5)}
#: What a voice keeps to.
_BOUNDS = {"pitch": (70.0, 165.0), "rate": (2.5, 6.0), "energy": (-36.0, -20.0)}
_DECIMALS = 3


def recordings_per_split(config: SampleCorpusConfig, count: int) -> dict[str, int]:
    """Spread `count` recordings over the splits in their shares of the corpus; with three or more, each has one.

    Raises:
        MsaError: If there are fewer clips, or `count` is negative.
    """
    sizes = {split: config.size(split) for split in SPLITS}
    total = sum(sizes.values())
    if not 0 <= count <= total:
        raise MsaError(f"{count} recordings were asked for; give a number from 0 to {total}, the clips of the corpus.")
    shares = {split: divmod(count * size, total) for split, size in sizes.items()}
    spread = {split: whole for split, (whole, _) in shares.items()}
    for split in sorted(SPLITS, key=lambda name: -shares[name][1])[: count - sum(spread.values())]:
        spread[split] += 1
    for split in SPLITS if count >= len(SPLITS) else ():
        if not spread[split]:
            spread[max(SPLITS, key=spread.__getitem__)] -= 1
            spread[split] = 1
    return spread


def plant_voice(config: SampleCorpusConfig, row: Mapping[str, Any], sentiment: float) -> Voice:
    """Draw how a clip is spoken: a pure function of the seed, the clip's ids and its sentiment.

    Args:
        config: What the corpus is generated with.
        row: With `video_id` and `clip_id`.
        sentiment: What the voice shows, in label units.
    """
    video, clip = _numbers(row)
    speaker = generator_of(config.seed, SPEAKER_VOICE, video).standard_normal(len(_STEPS))
    noise = generator_of(config.seed, CLIP_VOICE, video, clip).standard_normal(len(_STEPS))
    moved = {
        name: float(np.dot(steps, (sentiment, speaker[i], noise[i]))) for i, (name, steps) in enumerate(_STEPS.items())
    }
    voice = {
        "pitch": _MIDDLE["pitch"] * 2 ** (moved["pitch"] / 12),
        "rate": _MIDDLE["rate"] * float(np.exp(moved["rate"])),
        "energy": _MIDDLE["energy"] + moved["energy"],
    }
    return Voice(**{name: round(float(np.clip(value, *_BOUNDS[name])), _DECIMALS) for name, value in voice.items()})


def _numbers(row: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of a clip's video and of the clip in it, of which all is a function."""
    return int(row["video_id"].removeprefix("video")), int(row["clip_id"])


def spoken_clips(config: SampleCorpusConfig, count: int) -> Iterator[tuple[str, SampleRow, Voice]]:
    """Yield the split, the clip and its voice of each of `count` recordings: the first clips of each split."""
    for split, clips in recordings_per_split(config, count).items():
        for sample in itertools.islice(generate_rows(config, split), clips):
            yield split, sample, plant_voice(config, sample.row, sample.planted["latent_audio"])


def manifest_row(split: str, sample: SampleRow, voice: Voice) -> tuple[Any, ...]:
    """Return a recording's values of `MANIFEST_COLUMNS`."""
    row = sample.row
    path = f"{row['video_id']}/{row['clip_id']}.wav"
    return (path, row["text"], row["label"], split, row["id"], *asdict(voice).values())


def write_recordings(folder: Path, planted_file: Path, config: SampleCorpusConfig, count: int) -> None:
    """Speak clips of a corpus.

    Args:
        folder: Gets ``<video_id>/<clip_id>.wav`` (16 kHz, mono, 16 bits) as `MediaFolder` reads them, and ``manifest.csv``,
            whose paths begin at this folder.
        planted_file: Gets the planted facts: `id`, `split`, `synthesizer`, and the fields of `Voice`; Parquet.
        config: What the corpus is generated with.
        count: How many clips, over all splits.

    Raises:
        MsaError: If there are fewer clips, or espeak-ng is there but fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    speaker = synthesizer()
    planted: list[dict[str, Any]] = []
    folder.mkdir()
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8", newline="") as manifest:
        writer = csv.writer(manifest, lineterminator="\n")
        writer.writerow(MANIFEST_COLUMNS)
        for split, sample, voice in spoken_clips(config, count):
            described = manifest_row(split, sample, voice)
            file = folder / described[0]
            file.parent.mkdir(exist_ok=True)
            generator = generator_of(config.seed, CLIP_SOUND, *_numbers(sample.row))
            write_wave(file, speak(sample.planted["tokens"], voice, generator, speaker))
            writer.writerow(described)
            planted.append({"id": sample.row["id"], "split": split, "synthesizer": speaker, **asdict(voice)})
    pq.write_table(pa.Table.from_pylist(planted), planted_file)


def read_manifest(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read the manifest of a sample corpus's recordings; empty where it was written without.

    Args:
        folder: A sample corpus.

    Raises:
        MsaError: If it has other columns.
    """
    file = Path(folder) / RECORDINGS_FOLDER / MANIFEST_FILE
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as manifest:
        rows = csv.DictReader(manifest)
        if tuple(rows.fieldnames or ()) != MANIFEST_COLUMNS:
            raise MsaError(f"{file} has not the columns {', '.join(MANIFEST_COLUMNS)}; write the sample corpus again.")
        return list(rows)


def measure_recordings(folder: str | os.PathLike[str]) -> Iterator[Voice]:
    """Yield how each recording of a sample corpus is spoken, as measured on the wave, in the manifest's order.

    Raises:
        MsaError: If a wave is absent, damaged, outside of the folder, or not mono with 16 bits at 16 kHz.
    """
    root = Path(folder) / RECORDINGS_FOLDER
    for row in read_manifest(folder):
        file = regular_file(root / row["path"])
        if not file.resolve().is_relative_to(root.resolve()):
            raise MsaError(f"{file} leads out of {root}; write the sample corpus again.")
        samples, rate = read_wave(file)
        if rate != SAMPLING_RATE:
            raise MsaError(
                f"{file} has {rate} samples per second, not {SAMPLING_RATE}; write the sample corpus again."
            )
        yield measure(samples, row["text"].split())
