"""The one form in which every data set reaches hf_msa: columns, facts, and the benchmarks known by name."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import datasets

from hf_msa.errors import MsaError, reason, unknown_name
from hf_msa.files import write_json
from hf_msa.label_families import AnyFamily, find_label_family
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS
from hf_msa.registry import Registry

ID = "id"
VIDEO_ID = "video_id"
CLIP_ID = "clip_id"
TEXT = "text"
AUDIO = "audio"
VISION = "vision"
LABEL = "label"
ANNOTATION = "annotation"
WORDS = "words"
"""The words of a transcript with the time of each, in seconds from the start of the clip."""
PRESENCE = {modality: f"{modality}_present" for modality in FEATURE_MODALITIES}
"""Modality name -> the boolean column that is False where a sample lacks the modality."""
GENERATED = {modality: f"{modality}_generated" for modality in FEATURE_MODALITIES}
"""Modality name -> the boolean column of completed data sets that is True where the features were generated."""

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("valid", "validation", "val", "dev", "devel", "development"), "validation")
    | dict.fromkeys(("test", "testing"), "test")
)
"""What the field's files call a split, in lower case -> its name here."""

ID_SEPARATOR = "$_$"
FACTS_FILE = "msa_dataset.json"
SCHEMA_VERSION = 1


def msa_features(
    audio_dim: int | None = None,
    vision_dim: int | None = None,
    *,
    unimodal_labels: bool = False,
    annotation: bool = False,
    presence: bool = False,
    words: bool = False,
) -> datasets.Features:
    """Build the columns of a data set.

    Args:
        audio_dim: Width of an audio frame; None leaves the column out. Rows are (T, audio_dim) float32, true length.
        vision_dim: Width of a vision frame; None leaves the column out.
        unimodal_labels: Whether `label_text`, `label_audio` and `label_vision` exist.
        annotation: Whether the annotators' word ("Negative", ...) exists.
        presence: Whether some samples lack a modality: adds `audio_present` / `vision_present` for the modalities
            that exist. Where it is False the array holds one zero frame; it is never None and never empty.
        words: Whether `words` exists: a list of `text`, `start` and `end` in seconds, empty where nothing tells.
    """
    string, number = datasets.Value("string"), datasets.Value("float32")
    columns: dict[str, Any] = {ID: string, VIDEO_ID: string, CLIP_ID: string, TEXT: string}
    widths = {AUDIO: audio_dim, VISION: vision_dim}
    present = [modality for modality in FEATURE_MODALITIES if widths[modality] is not None]
    for modality in present:
        columns[modality] = datasets.Array2D((None, widths[modality]), "float32")
    columns[LABEL] = number
    if unimodal_labels:
        columns |= dict.fromkeys(UNIMODAL_LABEL_KEYS.values(), number)
    if annotation:
        columns[ANNOTATION] = string
    if presence:
        columns |= {PRESENCE[modality]: datasets.Value("bool") for modality in present}
    if words:
        columns[WORDS] = datasets.List({"text": string, "start": number, "end": number})
    return datasets.Features(columns)


@runtime_checkable
class RowSource(Protocol):
    """Where rows come from. Splits are asked for in order, each once, and may be let go afterwards.

    A source with an attribute `unique_ids` that is true promises that no id occurs twice, that no video is in two splits and
    that a video's rows come one after the other: they are then not remembered, and memory does not grow with the rows.

    Attributes:
        description: What kind of source it is, for the facts and the report.
        splits: Its splits, in the order train, validation, test.
        features: The columns of its rows.
        widths: Modality name -> features per frame, for the modalities that it has.
        aligned: Whether audio and vision frames are aligned to the words.
        feature_names: Modality name -> names of its features, where known.
        notes: Sentences on how it was read.
    """

    description: str
    splits: list[str]
    features: datasets.Features
    widths: dict[str, int]
    aligned: bool
    feature_names: dict[str, tuple[str, ...]]
    notes: list[str]

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split: the columns of `features`, arrays as numpy (T, d)."""


@dataclass(frozen=True)
class DatasetFacts:
    """What one must know about a data set beyond its columns.

    Attributes:
        name: Short name, e.g. ``"mosi"``.
        label_family: ``"mosi"``, ``"sims"``, or the description of another family: which metrics apply.
        label_low: Lowest label that can occur.
        label_high: Highest label that can occur.
        language: ISO 639-1 code of the transcripts.
        license: Under which terms the data may be used, in a sentence.
        aligned: Whether audio and vision frames are aligned to the words.
        source: What the rows were made from, e.g. ``"MMSA pickle"``.
        audio_features: Names of the audio features in column order, where known.
        vision_features: Names of the vision features in column order, where known.
        audio_set: The feature set that the audio frames are of, by name and version; None where nothing says.
        vision_set: Likewise of the vision frames.
        homepage: Where the data set is described.
        citation: BibTeX.
    """

    name: str
    label_family: str | Mapping[str, Any]
    label_low: float
    label_high: float
    language: str = "en"
    license: str = "unknown"
    aligned: bool = False
    source: str = "unknown"
    audio_features: tuple[str, ...] | None = None
    vision_features: tuple[str, ...] | None = None
    audio_set: str | None = None
    vision_set: str | None = None
    homepage: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        # As files hold it, whatever name it was found by here.
        object.__setattr__(self, "label_family", find_label_family(self.label_family).to_value())
        if not self.label_low < self.label_high:
            raise MsaError(
                f"The label range [{self.label_low}, {self.label_high}] is empty; give the lower bound first."
            )

    @property
    def family(self) -> LabelFamily:
        """The label family."""
        return find_label_family(self.label_family)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        facts = dataclasses.asdict(self)
        for key in ("audio_features", "vision_features"):
            facts[key] = list(facts[key]) if facts[key] is not None else None
        return {"schema_version": SCHEMA_VERSION, **facts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DatasetFacts":
        """Rebuild the facts from `to_dict`; keys that this version does not know are ignored.

        Raises:
            MsaError: If a key that every data set needs is absent.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in values.items() if key in names}
        try:
            for key in ("audio_features", "vision_features"):
                if known.get(key) is not None:
                    known[key] = tuple(str(name) for name in known[key])
            for key in ("label_low", "label_high"):
                known[key] = float(known[key])
            if not all(isinstance(known.get(key, ""), str) for key in ("name", "language", "license", "source")):
                raise TypeError("its name, language, license and source are texts")
            if not all(isinstance(known.get(key), str | None) for key in ("audio_set", "vision_set")):
                raise TypeError("its feature sets are texts")
            return cls(**known)
        except (KeyError, TypeError, OverflowError) as error:
            raise MsaError(f"The data set facts are incomplete ({error}); prepare the data set again.") from error
        except ValueError as error:
            raise MsaError(f"The data set facts are damaged ({reason(error)}); prepare the data set again.") from error


def write_facts(folder: Path, facts: DatasetFacts) -> None:
    """Write `facts` beside the Parquet shards in `folder`."""
    write_json(folder / FACTS_FILE, facts.to_dict())


def read_facts(path: Path) -> DatasetFacts:
    """Read the facts file at `path`.

    Raises:
        MsaError: If it cannot be read, is not valid JSON, or lacks a key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MsaError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise MsaError(f"{path} is not valid JSON ({error}); prepare the data set again.") from error
    if not isinstance(values, dict):
        raise MsaError(f"{path} must hold a JSON object; prepare the data set again.")
    return DatasetFacts.from_dict(values)


@dataclass(frozen=True)
class KnownDataset:
    """A data set that hf_msa knows by name: its facts, and the sizes that the published files have.

    Sizes and shapes serve only to warn about a file that differs; the code takes every shape from the data.

    Args:
        facts: The facts of the data set.
        title: How people write its name.
        split_sizes: Split name -> number of samples in the official split, where known.
        shapes: Modality -> the (T, d) that published MMSA files have, unaligned first, where known.
        open: `open(path, features)` gives the rows of files that are neither an MMSA pickle, nor a label.csv, nor Parquet;
            `features` is the folder of feature files that the user gave, or None.
    """

    facts: DatasetFacts
    title: str
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    open: Callable[[str, str | None], RowSource] | None = None


DATASETS: Registry[KnownDataset] = Registry("data set", "hf_msa.datasets")
"""The data sets known by name; `custom` data gives its own label family."""

CUSTOM = "custom"


def register_dataset(dataset: KnownDataset) -> KnownDataset:
    """Add a data set: `hf-msa prepare` and `load_msa` then know its name.

    Args:
        dataset: What is known about it; its name is that of the facts.

    Raises:
        MsaError: If the name will not do or is taken.

    Example:
        ```python
        from hf_msa import register_dataset
        from hf_msa.data.schema import DatasetFacts, KnownDataset

        facts = DatasetFacts("street", label_family="sims", label_low=-1, label_high=1, language="de", license="CC BY 4.0")
        register_dataset(KnownDataset(facts, title="Street interviews"))
        ```
    """
    if dataset.facts.name == CUSTOM:
        raise MsaError(f"{CUSTOM!r} is the name of all data sets that have none; choose another name.")
    return DATASETS.register(dataset.facts.name, dataset)


def check_dataset_name(name: str) -> None:
    """Check the name of a data set.

    Raises:
        MsaError: If it is neither known nor ``"custom"``.
    """
    if name != CUSTOM and name not in DATASETS:
        raise unknown_name("data set", name, (*DATASETS, CUSTOM))


def facts_for(
    name: str, label_family: AnyFamily | None = None, label_range: tuple[float, float] | None = None
) -> DatasetFacts:
    """Return the facts of a data set by name, before its file is read.

    Args:
        name: A known name, or ``"custom"``.
        label_family: See `find_label_family`; needed for ``"custom"``, otherwise it overrides the benchmark's.
        label_range: Lowest and highest label, within those of the family, which are the default.

    Raises:
        MsaError: If the name or family is unknown, a custom data set comes without a family, or the range is wider than that
            of the family, which is what metrics and predictions go by.
    """
    check_dataset_name(name)
    family = None if label_family is None else find_label_family(label_family)
    if name in DATASETS:
        facts = DATASETS[name].facts
        family = family or facts.family
        low, high = _range_within(family, label_range)
        return dataclasses.replace(facts, label_family=family.to_value(), label_low=low, label_high=high)
    if family is None:
        raise MsaError(
            "A custom data set needs a label family, which says what labels there can be and which metrics apply: 'mosi', "
            "'sims', or a YAML file that describes another."
        )
    low, high = _range_within(family, label_range)
    return DatasetFacts(name=name, label_family=family.to_value(), label_low=low, label_high=high)


def _range_within(family: LabelFamily, label_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = label_range or (family.low, family.high)
    if low < family.low or high > family.high:
        raise MsaError(
            f"The label range [{low:g}, {high:g}] goes beyond that of the label family {family.name!r}, [{family.low:g}, "
            f"{family.high:g}], by which metrics and predictions go; describe the labels in a family of their own, a YAML "
            f"file with name, low: {low:g} and high: {high:g}."
        )
    return low, high


_RESEARCH_ONLY = "Research use only; the videos' owners keep their rights; do not redistribute without permission."

for _dataset in (
    KnownDataset(
        DatasetFacts(
            name="mosi",
            label_family="mosi",
            label_low=-3.0,
            label_high=3.0,
            language="en",
            license=_RESEARCH_ONLY,
            homepage="http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/",
            citation=(
                "@article{zadeh2016mosi,\n"
                "  title={{MOSI}: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in Online "
                "Opinion Videos},\n"
                "  author={Zadeh, Amir and Zellers, Rowan and Pincus, Eli and Morency, Louis-Philippe},\n"
                "  journal={arXiv preprint arXiv:1606.06259},\n  year={2016}\n}"
            ),
        ),
        "CMU-MOSI",
        {"train": 1284, "validation": 229, "test": 686},
        {AUDIO: ((375, 5), (50, 5)), VISION: ((500, 20), (50, 20))},
    ),
    KnownDataset(
        DatasetFacts(
            name="mosei",
            label_family="mosi",
            label_low=-3.0,
            label_high=3.0,
            language="en",
            license=_RESEARCH_ONLY,
            homepage="http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/",
            citation=(
                "@inproceedings{zadeh2018mosei,\n"
                "  title={Multimodal Language Analysis in the Wild: {CMU-MOSEI} Dataset and Interpretable Dynamic "
                "Fusion Graph},\n"
                "  author={Zadeh, Amir and Liang, Paul Pu and Poria, Soujanya and Cambria, Erik and Morency, "
                "Louis-Philippe},\n"
                "  booktitle={ACL},\n  year={2018}\n}"
            ),
        ),
        "CMU-MOSEI",
        {"train": 16326, "validation": 1871, "test": 4659},
        {AUDIO: ((500, 74), (50, 74)), VISION: ((500, 35), (50, 35))},
    ),
    KnownDataset(
        DatasetFacts(
            name="sims",
            label_family="sims",
            label_low=-1.0,
            label_high=1.0,
            language="zh",
            license=_RESEARCH_ONLY,
            homepage="https://github.com/thuiar/MMSA",
            citation=(
                "@inproceedings{yu2020sims,\n"
                "  title={{CH-SIMS}: A {C}hinese Multimodal Sentiment Analysis Dataset with Fine-grained Annotation "
                "of Modality},\n"
                "  author={Yu, Wenmeng and Xu, Hua and Meng, Fanyang and Zhu, Yilin and Ma, Yixiao and Wu, Jiele and "
                "Zou, Jiyun and Yang, Kaicheng},\n"
                "  booktitle={ACL},\n  year={2020}\n}"
            ),
        ),
        "CH-SIMS",
        {"train": 1368, "validation": 456, "test": 457},
        {AUDIO: ((400, 33),), VISION: ((55, 709),)},
    ),
    KnownDataset(
        DatasetFacts(
            name="simsv2",
            label_family="sims",
            label_low=-1.0,
            label_high=1.0,
            language="zh",
            license=_RESEARCH_ONLY,
            homepage="https://github.com/thuiar/ch-sims-v2",
            citation=(
                "@inproceedings{liu2022simsv2,\n"
                "  title={Make Acoustic and Visual Cues Matter: {CH-SIMS} v2.0 Dataset and {AV-Mixup} Consistent "
                "Module},\n"
                "  author={Liu, Yihe and Yuan, Ziqi and Mao, Huisheng and Liang, Zhiyun and Yang, Wanqiuyue and Qiu, "
                "Yuanzhe and Cheng, Tie and Li, Xiaoteng and Xu, Hua and Gao, Kai},\n"
                "  booktitle={ICMI},\n  year={2022}\n}"
            ),
        ),
        "CH-SIMS v2 (supervised part)",
        {"train": 2722, "validation": 647, "test": 1034},
        {AUDIO: ((925, 25),), VISION: ((232, 177),)},
    ),
):
    register_dataset(_dataset)
