"""Writing a data set in the form that `load_dataset` reads: Parquet shards, a card, the facts, all or nothing."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from hf_msa.data.builders import MsaBuilder
from hf_msa.data.schema import (
    CUSTOM,
    DATASETS,
    FACTS_FILE,
    DatasetFacts,
    RowSource,
    check_dataset_name,
    read_facts,
    write_facts,
)
from hf_msa.data.validation import ValidationReport
from hf_msa.data.video_split import VideoSplitSource
from hf_msa.errors import MsaError, is_disk_full, reason
from hf_msa.files import atomic_directory, scratch_directory
from hf_msa.label_families import AnyFamily
from hf_msa.uploads import check_repo_id, find_account, plain_errors, prepare_repo

_SHARD_SIZE = "400MB"
_SIZE_CATEGORIES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def prepare_dataset(
    name: str,
    source: str | Path,
    output: str | Path,
    *,
    label_family: AnyFamily | None = None,
    features: str | Path | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    label_range: tuple[float, float] | None = None,
    split_by_video: Sequence[float] | None = None,
) -> ValidationReport:
    """Convert a raw data set to a folder that `datasets.load_dataset` and `load_msa` read.

    Args:
        name: ``"mosi"``, ``"mosei"``, ``"sims"``, ``"simsv2"``, that of a registered data set, or ``"custom"``.
        source: An MMSA pickle, a label.csv, or a folder with a label.csv, Parquet files or .csd files.
        output: The folder to write.
        label_family: Which labels there can be and which metrics apply, see `find_label_family`; needed for ``"custom"``.
        features: For a label.csv: the folder that holds ``audio`` and ``vision``, if it is another one.
        push_to_hub: ``"org/name"`` of a data set repository to upload the folder to.
        private: Whether a repository that is created by the upload is private.
        overwrite: Whether an existing folder may be replaced, which happens only once the new one is complete.
        label_range: Lowest and highest label that may occur, by default the data set's.
        split_by_video: Shares of train, validation and test, to split the rows anew by video, for data without official
            splits; see `hf_msa.data.video_split`.

    Returns:
        What was found in the data; it is also part of the card.

    Raises:
        MsaError: If an argument or the data cannot be used, the output exists, the disk is full or the upload fails.
            `output` is then as it was.

    Example:
        ```python
        from hf_msa import prepare_dataset

        report = prepare_dataset("custom", "data/sample", "data/mine", label_family="mosi")
        ```
    """
    check_dataset_name(name)
    check_output(Path(output), overwrite)
    if push_to_hub is not None:
        check_repo_id(push_to_hub)

    def build(cache: Path) -> MsaBuilder:
        return MsaBuilder(
            name,
            source,
            features_folder=features,
            label_family=label_family,
            label_range=label_range,
            cache_dir=cache,
            has_splits=split_by_video is None,
        )

    if split_by_video is None:
        report = _write(build, Path(output))
    else:
        report = _write_split_by_video(build, Path(output), split_by_video)
    if push_to_hub is not None:
        push_dataset(output, push_to_hub, private=private)
    return report


def write_dataset(
    source: RowSource,
    facts: DatasetFacts,
    output: str | Path,
    *,
    overwrite: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> ValidationReport:
    """Write rows that are made rather than read, in the same form and with the same checks as `prepare_dataset`.

    Args:
        source: Gives the rows, split by split; they are streamed.
        facts: The facts of the data set.
        output: The folder to write.
        overwrite: Whether an existing folder may be replaced.
        extra: Called with the unfinished folder, to add files of its own; the folder gets its name only afterwards.

    Returns:
        What was found in the rows.

    Raises:
        MsaError: As `prepare_dataset`.
    """
    check_output(Path(output), overwrite)
    return _write(lambda cache: MsaBuilder(CUSTOM, source, facts=facts, cache_dir=cache), Path(output), extra)


def check_output(output: Path, overwrite: bool) -> None:
    """Check that a folder can be written to.

    Raises:
        MsaError: If there is a file, a folder that is not empty and must not be replaced, or the name will not do.
    """
    if "::" in str(output) or "://" in str(output):
        raise MsaError(f"{output} would be taken for an address; give a folder without '::' and '://' in its name.")
    try:
        if os.path.lexists(output) and not output.is_dir():
            raise MsaError(f"{output} is a file; give a folder to write to.")
        if not overwrite and output.is_dir() and any(output.iterdir()):
            raise MsaError(f"The folder {output} is not empty; give another one, or --overwrite to replace it.")
    except OSError as error:
        raise MsaError(f"{output} cannot be written to: {error.strerror}; give another folder.") from error


def _write(
    build: Callable[[Path], MsaBuilder], output: Path, extra: Callable[[Path], None] | None = None
) -> ValidationReport:
    with clear_errors(output), atomic_directory(output) as folder:
        work = folder / ".work"
        builder = build(work / "cache")
        builder.download_and_prepare(str(work / "shards"), file_format="parquet", max_shard_size=_SHARD_SIZE)
        report = builder.report()
        _place_shards(work / "shards", folder / "data", list(report.splits))
        shutil.rmtree(work)
        write_facts(folder, builder.facts)
        (folder / "README.md").write_text(dataset_card(builder.facts, builder.info, report), encoding="utf-8")
        if extra is not None:
            extra(folder)
    return report


def _write_split_by_video(
    build: Callable[[Path], MsaBuilder], output: Path, shares: Sequence[float]
) -> ValidationReport:
    with clear_errors(output), scratch_directory(output) as work:
        rows = work / "rows"
        first = _write(build, rows)
        facts = read_facts(rows / FACTS_FILE)
        source = VideoSplitSource(rows, shares)
        source.notes = [*first.replaced(), *first.notes, *source.notes]
        return _write(lambda cache: MsaBuilder(CUSTOM, source, facts=facts, cache_dir=cache), output)


def _place_shards(work: Path, data: Path, splits: list[str]) -> None:
    """Move the builder's shards to ``data/<split>-00000-of-00001.parquet``."""
    data.mkdir()
    for split in splits:
        shards = sorted(work.glob(f"*-{split}*.parquet"))
        if not shards:
            raise MsaError(f"Nothing of the split {split!r} was written to {work}; give a folder of another name.")
        for number, shard in enumerate(shards):
            shard.rename(data / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")


@contextmanager
def clear_errors(output: Path) -> Iterator[None]:
    """Bring out the error that `datasets` has wrapped, and name a full disk."""
    try:
        yield
    except (OSError, MsaError, DatasetGenerationError, pa.ArrowException) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)
        for cause in causes:
            if isinstance(cause, MsaError):
                raise cause from None
            if is_disk_full(cause):
                raise MsaError(
                    f"There is no space left to write {output}; free some or give a folder on another disk. Nothing "
                    "was left behind."
                ) from error
        raise MsaError(f"{output} could not be written, and nothing was left behind: {reason(causes[-1])}.") from error


# --- The card ---


def dataset_card(facts: DatasetFacts, info: datasets.DatasetInfo, report: ValidationReport) -> str:
    """Return the README.md of a prepared data set: YAML for `load_dataset`, then what a reader should know.

    Args:
        facts: The facts of the data set.
        info: Its columns and split sizes.
        report: What was found in it.
    """
    from huggingface_hub import DatasetCardData

    known = DATASETS.get(facts.name)
    title = known.title if known is not None else facts.name
    total = sum(split.count for split in report.splits.values())
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in report.splits]
    described = datasets.DatasetInfo(features=info.features, splits=info.splits, dataset_size=info.dataset_size)
    data = DatasetCardData(
        pretty_name=title,
        language=[facts.language],
        license="other",
        license_name="see-below",
        task_categories=["text-classification"],
        tags=["multimodal", "sentiment-analysis", "hf_msa"],
        size_categories=[next((text for limit, text in _SIZE_CATEGORIES if total < limit), "n>1M")],
        configs=[{"config_name": "default", "default": True, "data_files": files}],
    )
    datasets.info.DatasetInfosDict({"default": described}).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n{_card_text(title, facts, report)}"


def _card_text(title: str, facts: DatasetFacts, report: ValidationReport) -> str:
    columns = {
        "id": "unique name of the sample",
        "video_id`, `clip_id": "where the sample comes from",
        "text": "transcript",
        "audio`, `vision": "float32 features, (frames, width), true length; a modality that is absent has no column",
        "label": f"sentiment from {facts.label_low:g} (negative) to {facts.label_high:g} (positive)",
    }
    lines = [
        f"# {title}",
        f"Rows for multimodal sentiment analysis, made from: {facts.source}. Metrics: the `{facts.family.name}` "
        f"family. Audio and vision frames are {'' if facts.aligned else 'not '}aligned to the words.",
        "## Use",
        '```python\nfrom hf_msa.data import load_msa\n\ntrain = load_msa("PATH_OR_ORG/NAME", "train")\n```',
        "`datasets.load_dataset` reads it too.",
        "## Columns",
        "\n".join(f"- `{name}`: {meaning}" for name, meaning in columns.items()),
        "## Found in the data",
        report.markdown(),
        "## Licence",
        facts.license,
    ]
    if facts.homepage:
        lines += ["## Source", facts.homepage]
    if facts.citation:
        lines += ["## Citation", f"```bibtex\n{facts.citation}\n```"]
    return "\n\n".join(lines) + "\n"


# --- The Hub ---


def push_dataset(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a prepared folder to the Hub.

    Args:
        folder: The folder that `prepare_dataset` wrote.
        repo_id: ``"org/name"``; created where it does not exist.
        private: Whether a repository that is created is private.

    Returns:
        The address of the data set.

    Raises:
        MsaError: If the folder is not a prepared one, the name is not allowed, there is no valid token, the Hub cannot be
            reached, or a private data set would go to a repository that is public.
    """
    from huggingface_hub import HfApi

    if not (Path(folder) / FACTS_FILE).is_file():
        raise MsaError(f"{folder} is not a prepared data set: it has no {FACTS_FILE}; run `hf-msa prepare` first.")
    check_repo_id(repo_id)
    api = HfApi()
    account = find_account(api)
    with plain_errors(repo_id, account, f"{str(folder)!r} is complete: the same command with --overwrite"):
        prepare_repo(api, repo_id, private, repo_type="dataset")
        api.upload_folder(
            repo_id=repo_id, repo_type="dataset", folder_path=folder, commit_message="Add the prepared data set"
        )
    return f"{api.endpoint}/datasets/{repo_id}"
