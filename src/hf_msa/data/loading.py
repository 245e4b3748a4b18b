"""One call from a folder, a Hub name or a raw file to rows."""

import glob
from pathlib import Path
from typing import overload

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from hf_msa.data.builders import MsaBuilder
from hf_msa.data.schema import (
    CUSTOM,
    DATASETS,
    FACTS_FILE,
    SPLITS,
    DatasetFacts,
    check_dataset_name,
    facts_for,
    read_facts,
)
from hf_msa.data.sources import parquet_files, rows_of_parquet
from hf_msa.errors import BUGS, MsaError, is_disk_full, nearest, reason, unknown_name
from hf_msa.label_families import AnyFamily


@overload
def load_msa(
    name_or_path: str | Path,
    split: str,
    data_dir: str | Path | None = None,
    *,
    label_family: AnyFamily | None = None,
    features: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset: ...


@overload
def load_msa(
    name_or_path: str | Path,
    split: None = None,
    data_dir: str | Path | None = None,
    *,
    label_family: AnyFamily | None = None,
    features: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.DatasetDict: ...


def load_msa(
    name_or_path: str | Path,
    split: str | None = None,
    data_dir: str | Path | None = None,
    *,
    label_family: AnyFamily | None = None,
    features: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset | datasets.DatasetDict:
    """Load a data set in the columns of `hf_msa.data.schema.msa_features`.

    Args:
        name_or_path: A prepared folder, a data set on the Hub (``"org/name"``), or, with `data_dir`, one of
            ``"mosi"``, ``"mosei"``, ``"sims"``, ``"simsv2"``, that of a registered data set, or ``"custom"``.
        split: ``"train"``, ``"validation"`` or ``"test"``; None gives all of them.
        data_dir: The raw pickle, label.csv or folder of the named data set; it is read once and kept in the cache.
        label_family: With `data_dir` and ``"custom"``: the label family, see `find_label_family`.
        features: With `data_dir` and a label.csv: the folder that holds ``audio`` and ``vision``.
        cache_dir: Where Arrow files are kept; by default the cache of `datasets`.

    Raises:
        MsaError: If there is no such data set or split, or the raw data cannot be used.

    Example:
        ```python
        from hf_msa import load_msa

        test = load_msa("data/sample", "test")  # a datasets.Dataset
        test[0]["text"], test[0]["label"]
        ```
    """
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if data_dir is not None:
        loaded = _from_raw(str(name_or_path), Path(data_dir), label_family, features, cache_dir)
    else:
        loaded = _from_parquet(name_or_path, cache_dir)
    if split is None:
        return loaded
    if split not in loaded:
        raise MsaError(f"{name_or_path} has no split {split!r}; it has {', '.join(loaded)}.")
    return loaded[split]


def load_split(data: str, split: str) -> datasets.Dataset:
    """Load one split, which must have rows.

    Args:
        data: Folder or Hub name of a prepared data set.
        split: Its name.

    Raises:
        MsaError: If there is no such data or split, a file of it is damaged, or it has no rows.
    """
    dataset = load_msa(data, split)
    if not len(dataset):
        raise MsaError(f"The split {split!r} of {data!r} is empty; prepare the data set again.")
    return dataset


def _from_raw(
    name: str, raw: Path, label_family: AnyFamily | None, features: str | Path | None, cache_dir: str | Path | None
) -> datasets.DatasetDict:
    from hf_msa.data.prepare import clear_errors

    check_dataset_name(name)
    builder = MsaBuilder(name, raw, label_family=label_family, features_folder=features, cache_dir=cache_dir)
    with clear_errors(Path(builder.cache_dir)):
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    if not isinstance(loaded, datasets.DatasetDict):
        raise MsaError(f"{raw} holds no splits.")
    return loaded


def _from_parquet(name_or_path: str | Path, cache_dir: str | Path | None) -> datasets.DatasetDict:
    cache = None if cache_dir is None else str(cache_dir)
    folder = Path(name_or_path)
    if folder.is_dir():
        files: dict[str, list[str]] = {}
        for split, found in parquet_files(folder).items():
            filled = [file for file in found if rows_of_parquet(file)]
            if not filled:
                raise MsaError(f"The split {split!r} of {str(name_or_path)!r} is empty; prepare the data set again.")
            # The library takes names for patterns: of a folder called data[1] it would load the rows of data1.
            files[split] = [glob.escape(str(file.absolute())) for file in filled]
        if not files:
            raise MsaError(
                f"{folder} holds no prepared data set (Parquet files named after a split): run `hf-msa prepare`, or "
                "name the data set and give this as data_dir."
            )
        try:
            return datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
        except (DatasetGenerationError, pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            cause: BaseException = error
            while (deeper := cause.__cause__ or cause.__context__) is not None:
                cause = deeper
            if is_disk_full(cause):
                raise MsaError(f"There is no space left to read {folder} into the cache; free some.") from error
            raise MsaError(
                f"A Parquet file of {folder} is damaged, or its splits differ in their columns ({reason(cause):.200}); "
                "prepare the data set again."
            ) from error
    _check_hub_name(name_or_path)
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = datasets.load_dataset(str(name_or_path), cache_dir=cache)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise MsaError(_not_found(str(name_or_path))) from error
    except (DatasetGenerationError, pa.ArrowException) as error:
        raise MsaError(
            f"A file of the data set {str(name_or_path)!r} is damaged ({reason(error)}); have it uploaded again."
        ) from error
    except (OSError, ValueError, *BUGS) as error:
        # The library takes the Hub's answers as they come.
        raise MsaError(
            f"The data set {str(name_or_path)!r} could not be loaded from the Hub ({reason(error)}); or give a local folder."
        ) from error
    return loaded


def _check_hub_name(name_or_path: str | Path) -> None:
    name = str(name_or_path)
    if name == CUSTOM or name in DATASETS:
        raise MsaError(f"The data set {name!r} cannot be downloaded: give the file that you have as data_dir.")
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise MsaError(
            f"There is no folder {name!r}, and it is no Hub name (org/name) nor a known data set."
            f"{nearest(name, (*DATASETS, CUSTOM))}"
        )


def _not_found(name: str) -> str:
    return (
        f"There is no folder and no data set on the Hub called {name!r}, or it is private and the token may not read "
        "it: check the name, or run `hf auth login`."
    )


def dataset_facts(name_or_path: str | Path, label_family: AnyFamily | None = None) -> DatasetFacts:
    """Return what is known about a data set beyond its columns.

    Args:
        name_or_path: A prepared folder, a data set on the Hub, or the name of a benchmark.
        label_family: For data without a facts file, which cannot tell which metrics apply; otherwise not used.

    Raises:
        MsaError: If there is no such data set, or it has no facts file and `label_family` is None.
    """
    if str(name_or_path) in DATASETS:
        return DATASETS[str(name_or_path)].facts
    folder = Path(name_or_path)
    if folder.is_dir():
        file: Path | None = folder / FACTS_FILE
    else:
        _check_hub_name(name_or_path)
        file = _download_facts(str(name_or_path))
    if file is not None and file.is_file():
        return read_facts(file)
    if label_family is None:
        raise MsaError(
            f"{name_or_path} has no {FACTS_FILE}, so nothing says which metrics apply; give the label family, e.g. 'mosi' "
            "or 'sims', or prepare the data set with `hf-msa prepare`."
        )
    return facts_for(CUSTOM, label_family)


def _download_facts(name: str) -> Path | None:
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(name, FACTS_FILE, repo_type="dataset"))
    except RepositoryNotFoundError as error:
        raise MsaError(_not_found(name)) from error
    except (hub_errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # From its HTTP library.
        # The Hub's own "there is no such file" has a subclass that says that nobody could ask.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise MsaError(f"The facts of {name!r} could not be loaded from the Hub: {reason(error)}.") from error
