"""Writing a sample corpus to disk: the data set, the side table of planted facts, and a small text model."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_msa.data.sample_corpus import story
from hf_msa.data.sample_corpus.clips import strengths_of
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST
from hf_msa.data.sample_corpus.recordings import (
    MANIFEST_FILE,
    RECORDINGS_FOLDER,
    recordings_per_split,
    write_recordings,
)
from hf_msa.data.sample_corpus.rows import generate_rows
from hf_msa.data.sample_corpus.story import SampleCorpusConfig
from hf_msa.data.schema import SPLITS, DatasetFacts, msa_features
from hf_msa.errors import MsaError, unknown_name
from hf_msa.files import scratch_directory, write_json
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

PLANTED_FOLDER = "planted"
TEXT_MODEL_FOLDER = "text_model"
CONFIG_FILE = "corpus.json"
CHECKS_FILE = "checks.json"
PLANTED_RECORDINGS_FILE = "recordings.parquet"

_ROWS_AT_ONCE = 500
#: Rows of a row group of planted facts. The writer keeps a description of each group until its file is closed.
_ROWS_PER_GROUP = 5_000


@dataclass(frozen=True)
class PlantedSplit:
    """The planted facts of one split.

    Attributes:
        config: What the corpus was generated with.
        rows: One dictionary per clip, in the order of the data set; keys as in `SampleRow.planted`.
    """

    config: SampleCorpusConfig
    rows: list[dict[str, Any]]


def write_sample_corpus(
    output: str | os.PathLike[str],
    preset: str = "small",
    seed: int = 0,
    *,
    sentiment: str | None = None,
    overwrite: bool = False,
    recordings: int = 0,
    **overrides: Any,
) -> Path:
    """Generate a sample corpus and write it as a data set that `load_msa` and `load_dataset` read.

    Beside the Parquet shards, facts and card of every data set, the folder holds ``planted/<split>.parquet`` (the
    planted facts, which no model input contains) and ``text_model/`` (a tokenizer and a tiny BERT made for it). Rows
    are streamed: the memory that is needed does not grow with the size.

    Args:
        output: The folder to write.
        preset: A key of `PRESETS`.
        seed: The one seed of all draws.
        sentiment: A key of `SENTIMENTS`: how strongly audio and vision of version 2 show sentiment.
        overwrite: Whether an existing folder may be replaced, which happens only once the new one is complete.
        recordings: How many clips are also spoken, into ``recordings/``, with a manifest; see `write_recordings`. espeak-ng
            speaks where it is on the PATH, a formant synthesiser elsewhere; their waves differ.
        **overrides: Other fields of `SampleCorpusConfig`, e.g. ``train=10_000``, ``version=1`` or ``persona=0``.

    Returns:
        The folder. One that holds this very corpus is left as it is.

    Raises:
        MsaError: If an option is not allowed, the folder holds something else, or the disk is full.
    """
    from hf_msa.data.prepare import check_output, write_dataset

    config = story.preset(preset, sentiment=sentiment, seed=seed, **overrides)
    recordings_per_split(config, recordings)
    if config.version > 1:
        strengths_of(config)  # says at once what cannot be had

    if not overwrite and is_sample_corpus(output) and read_config(output) == config:
        if len(read_planted_recordings(output)) == recordings:
            return Path(output)
    check_output(Path(output), overwrite)
    with scratch_directory(output) as work:

        def add(folder: Path) -> None:
            from hf_msa.data.sample_corpus.text_model import write_text_model

            shutil.move(work / PLANTED_FOLDER, folder / PLANTED_FOLDER)
            write_json(_config_path(folder), config.to_dict())
            write_text_model(folder / TEXT_MODEL_FOLDER, seed, config.version)
            if recordings:
                facts = folder / PLANTED_FOLDER / PLANTED_RECORDINGS_FILE
                write_recordings(folder / RECORDINGS_FOLDER, facts, config, recordings)

        source = _Rows(config, recordings, work / PLANTED_FOLDER)
        write_dataset(source, _FACTS, Path(output), overwrite=overwrite, extra=add)
    return Path(output)


def read_config(folder: str | os.PathLike[str]) -> SampleCorpusConfig:
    """Read what a sample corpus was generated with.

    Raises:
        MsaError: If the folder is not a sample corpus, or one of another version of hf_msa.
    """
    if not is_sample_corpus(folder):
        raise MsaError(f"{folder} is not a sample corpus; make one with `hf-msa sample-corpus`.")
    file = _config_path(Path(folder))
    try:
        return SampleCorpusConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise MsaError(f"{file} is damaged or of another version of hf_msa; make the corpus anew.") from error


def is_sample_corpus(folder: str | os.PathLike[str]) -> bool:
    """Whether a data set is a sample corpus that lies on this machine, so that it is known what was planted."""
    return _config_path(Path(folder)).is_file()


def planted_file(folder: str | os.PathLike[str], split: str) -> Path:
    """Return where the planted facts of a split are.

    Raises:
        MsaError: If there is no such split.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return Path(folder) / PLANTED_FOLDER / f"{split}.parquet"


def read_planted(folder: str | os.PathLike[str], split: str) -> PlantedSplit:
    """Read the planted facts of a split.

    Args:
        folder: A sample corpus.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        MsaError: If the folder is not a sample corpus or there is no such split.
    """
    import pyarrow.parquet as pq

    file, config = planted_file(folder, split), read_config(folder)
    rows = pq.read_table(file).to_pylist()
    return PlantedSplit(config, rows)


def stream_planted(
    folder: str | os.PathLike[str], split: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield planted facts of the clips of a split one by one; memory does not grow with the split.

    Args:
        folder: A sample corpus.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        columns: Keys as in `SampleRow.planted`; by default all.

    Raises:
        MsaError: If there is no such split.
    """
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(planted_file(folder, split)).iter_batches(_ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()


def write_checks(folder: str | os.PathLike[str], measured: Mapping[str, Any]) -> None:
    """Write what `check_corpus` has measured of a sample corpus beside its planted facts."""
    write_json(Path(folder) / PLANTED_FOLDER / CHECKS_FILE, measured)


def read_checks(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read what was measured of a sample corpus when it was made; None where it was not checked, or is none."""
    file = Path(folder) / PLANTED_FOLDER / CHECKS_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def read_planted_recordings(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read what was planted in the recordings of a sample corpus, in the order of the manifest; empty where it has none.

    Args:
        folder: A sample corpus.

    Returns:
        `id`, `split`, `synthesizer` (``"espeak-ng"`` or ``"formants"``), and the fields of `Voice`, of each.
    """
    import pyarrow.parquet as pq

    file = Path(folder) / PLANTED_FOLDER / PLANTED_RECORDINGS_FILE
    return pq.read_table(file).to_pylist() if file.is_file() else []


_FACTS = DatasetFacts(
    name="sample", label_family="mosi", label_low=LOWEST, label_high=HIGHEST, language="en", license="Apache-2.0"
)


def _config_path(folder: Path) -> Path:
    return folder / PLANTED_FOLDER / CONFIG_FILE


class _Rows:
    """The generated rows as a `RowSource`, which data set builders read; what is planted in them is written on the way."""

    description = "hf_msa's generator"
    aligned = False
    unique_ids = True

    def __init__(self, config: SampleCorpusConfig, recordings: int, planted: Path) -> None:
        self._config, self._planted = config, planted
        self.splits = list(SPLITS)
        self.features = msa_features(config.audio_dim, config.vision_dim, unimodal_labels=True, annotation=True)
        self.widths = {modality: int(getattr(config, f"{modality}_dim")) for modality in FEATURE_MODALITIES}
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self.notes = [
            "This is the hf_msa sample corpus: invented clips whose sentiment is known because it was planted. It is "
            "a test bed, **not a benchmark**; say so wherever results on it are shown.",
            f"`{PLANTED_FOLDER}/` holds what was planted in each clip, for tests and analysis; no model may see it.",
            f"`{TEXT_MODEL_FOLDER}/` holds a tokenizer and a tiny BERT that know its words.",
            *(
                [
                    f"`{RECORDINGS_FOLDER}/` holds {recordings} of the clips as spoken by a synthesiser; "
                    f"`{RECORDINGS_FOLDER}/{MANIFEST_FILE}` says what each is."
                ]
                if recordings
                else []
            ),
            "Made with: " + ", ".join(f"{name}={value}" for name, value in config.to_dict().items()) + ".",
        ]

    def count(self, split: str) -> int:
        return self._config.size(split)

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _planted_schema(self._config.version)
        self._planted.mkdir(exist_ok=True)
        waiting: list[Any] = []
        with pq.ParquetWriter(self._planted / f"{split}.parquet", schema) as writer:
            samples = generate_rows(self._config, split)
            while some := list(itertools.islice(samples, _ROWS_AT_ONCE)):
                waiting.append(pa.Table.from_pylist([sample.planted for sample in some], schema))
                if len(waiting) * _ROWS_AT_ONCE >= _ROWS_PER_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()
                yield from (sample.row for sample in some)
            if waiting:
                writer.write_table(pa.concat_tables(waiting))


def _planted_schema(version: int) -> Any:
    import pyarrow as pa

    string, number, flag = pa.string(), pa.float64(), pa.bool_()
    columns: dict[str, Any] = {
        "id": string,
        "tokens": pa.list_(string),
        "roles": pa.list_(string),
        "contributions": pa.list_(number),
        "kind": string,
        "lying_modality": string,
        **({"lie": string} if version > 1 else {}),
        **dict.fromkeys(("hard", "hard_no_cue", "hard_sarcasm", "hard_contrast"), flag),
        **{f"latent_{modality}": number for modality in MODALITIES},
        "consensus": number,
        "arousal": number,
        "topic": string,
        **({"speaker": string} if version == 1 else {"persona": string, "tempo": number}),
    }
    for modality in FEATURE_MODALITIES:
        if version > 1:
            columns[f"{modality}_gain"] = number
        columns[f"{modality}_word"] = pa.list_(pa.int16())
        columns[f"{modality}_strength"] = pa.list_(pa.float32())
        columns[f"{modality}_evidence"] = pa.list_(pa.float32())
    return pa.schema(columns)
