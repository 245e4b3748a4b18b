"""The `datasets` builder: it turns what a source gives into Arrow or Parquet, every row checked on the way.

`datasets` replaces `Path`, `open` and others in a module that defines a builder by versions of its own that also read
remote files, so whatever touches files is in `sources.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets

from hf_msa.data.schema import DATASETS, SCHEMA_VERSION, DatasetFacts, RowSource, facts_for
from hf_msa.data.sources import open_source, source_identity
from hf_msa.data.validation import ValidationReport, Validator
from hf_msa.errors import MsaError
from hf_msa.label_families import AnyFamily, find_label_family

if TYPE_CHECKING:
    from os import PathLike

_BATCH_BYTES = 1 << 24
_TYPICAL_FRAMES = 500


@dataclass
class MsaSourceConfig(datasets.BuilderConfig):
    """What a builder reads; every field is part of the name of its cache.

    Attributes:
        source: Path of the pickle, label.csv or folder.
        features_folder: For a label.csv: the folder with the feature files.
        label_family: The label family of `facts_for`.
        label_range: The label range of `facts_for`.
        stamp: Digest of the files' sizes and times.
    """

    version: datasets.Version | str | None = f"{SCHEMA_VERSION}.0.0"
    source: str = ""
    features_folder: str | None = None
    label_family: str | None = None
    label_range: tuple[float, float] | None = None
    stamp: str = ""


class MsaBuilder(datasets.GeneratorBasedBuilder):
    """Turns a source into Arrow or Parquet, every row checked on the way.

    Args:
        name: Name of the data set, see `facts_for`.
        source: Path of an MMSA pickle, a label.csv or a folder with either or with Parquet; or rows from elsewhere.
        features_folder: For a label.csv: the folder that holds ``audio`` and ``vision``.
        label_family: Needed for custom data; otherwise overrides the data set's.
        label_range: Overrides the lowest and highest label.
        facts: The facts, if they do not follow from the name.
        cache_dir: Where Arrow files are kept; by default the cache of `datasets`.
        has_splits: Whether the files say which split a row is of, see `open_source`.

    Attributes:
        facts: The facts; complete (aligned, feature names) once the source has been read.

    Raises:
        MsaError: If the source or an argument cannot be used.
    """

    BUILDER_CONFIG_CLASS = MsaSourceConfig

    def __init__(
        self,
        name: str,
        source: "str | PathLike[str] | RowSource",
        *,
        features_folder: "str | PathLike[str] | None" = None,
        label_family: AnyFamily | None = None,
        label_range: tuple[float, float] | None = None,
        facts: DatasetFacts | None = None,
        cache_dir: "str | PathLike[str] | None" = None,
        has_splits: bool = True,
    ) -> None:
        self.facts = facts or facts_for(name, label_family, label_range)
        self._known = DATASETS.get(name)
        self._has_splits = has_splits
        self._validator: Validator | None = None
        self._source: RowSource | None = None
        settings: dict[str, Any] = {}
        if isinstance(source, RowSource):
            self._source = source
        else:
            family = None if label_family is None else json.dumps(find_label_family(label_family).to_value())
            settings = {"label_family": family, "label_range": label_range}
            settings |= source_identity(source, features_folder)
        super().__init__(
            cache_dir=None if cache_dir is None else str(cache_dir), dataset_name=self.facts.name, **settings
        )

    def _info(self) -> datasets.DatasetInfo:
        # The columns follow from the source, which is opened only when it has to be read.
        return datasets.DatasetInfo(
            description="Multimodal sentiment analysis", homepage=self.facts.homepage, citation=self.facts.citation
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        read = (self._known and self._known.open) or partial(open_source, has_splits=self._has_splits)
        source = self._source or read(self.config.source, self.config.features_folder)
        self._source = source
        self.info.features = source.features
        row_bytes = 4 * _TYPICAL_FRAMES * sum(source.widths.values()) + 1000
        self._writer_batch_size = min(max(_BATCH_BYTES // row_bytes, 16), 1000)
        self.facts = self._complete_facts(source)
        remember = not getattr(source, "unique_ids", False)
        self._validator = Validator(self.facts, self._source_name(), source.widths, self._known, remember=remember)
        generators = [datasets.SplitGenerator(split, {"split": split}) for split in source.splits]
        for generator in generators:
            generator.split_info.num_examples = source.count(str(generator.name))
        return generators

    def _source_name(self) -> str:
        return self.config.source.rpartition("/")[2] or self.facts.name

    def _complete_facts(self, source: RowSource) -> DatasetFacts:
        # Of what was prepared before; raw files do not say.
        sets: dict[str, str] = getattr(source, "feature_sets", {})
        return replace(
            self.facts,
            audio_set=sets.get("audio", self.facts.audio_set),
            vision_set=sets.get("vision", self.facts.vision_set),
            aligned=source.aligned,
            source=source.description,
            audio_features=source.feature_names.get("audio", self.facts.audio_features),
            vision_features=source.feature_names.get("vision", self.facts.vision_features),
        )

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._source is None or self._validator is None:
            raise RuntimeError("the splits are asked for before their rows")
        yield from enumerate(self._validator.check(split, self._source.rows(split)))

    def report(self) -> ValidationReport:
        """Return what was found, after `download_and_prepare` has read the source.

        Raises:
            MsaError: If nothing was read, because the result came from the cache.
        """
        if self._validator is None or self._source is None:
            raise MsaError("The data set came from the cache, unread; there is no report on it.")
        return self._validator.report(self._source.notes)
