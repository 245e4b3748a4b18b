"""Checkpoints: finding what a name stands for, loading it, and giving a model what lies outside its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoProcessor

from hf_msa.data.media import MediaFolder
from hf_msa.data.missing import MODALITY_RATES
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import DatasetFacts
from hf_msa.errors import BUGS, MsaError, reason, unknown_name
from hf_msa.methods import MODEL_TYPE_PREFIX
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_mllm_endpoint import allow_endpoint
from hf_msa.models.processing_msa import MsaProcessor

RATE_FOLDER = "rate-"
"""What the name of a folder begins with that holds models trained at one missing rate of several."""


def rate_folder(output: str | Path, rate: float) -> Path:
    """Where the runs that are trained at one missing rate of several lie, in the folder of all of them."""
    return Path(output) / f"{RATE_FOLDER}{rate:.1f}"


def find_matched(model: str) -> dict[float, list[str]]:
    """The checkpoints of a folder whose models were each trained at one missing rate (`--train-rate match`), by that rate.

    Args:
        model: A folder, or a name that is none.

    Returns:
        Per rate, in ascending order, the folders of its seeds; empty for everything else.

    Raises:
        MsaError: If the folder holds other checkpoints beside them.
    """
    found: dict[float, list[str]] = {}
    for rate in MODALITY_RATES:
        seeds = sorted(path.parent for path in rate_folder(model, rate).glob("seed-*/config.json"))
        if seeds:
            found[rate] = [str(seed) for seed in seeds]
    other = next(
        (path for pattern in ("config.json", "seed-*/config.json") for path in Path(model).glob(pattern)), None
    )
    if found and other is not None:
        raise MsaError(
            f"{model!r} holds models of one training rate each ({RATE_FOLDER}*) and also the checkpoint "
            f"{str(other.parent)!r}; move one of the two to a folder of its own."
        )
    return found


def find_models(model: str) -> list[str]:
    """The checkpoints that a name stands for: the seeds of a run folder, or the folder or Hub name itself.

    Raises:
        MsaError: If a folder holds no finished checkpoint.
    """
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    if (folder / "config.json").is_file():
        return [model]
    seeds = sorted(path.parent for path in folder.glob("seed-*/config.json"))
    if not seeds and (matched := find_matched(model)):
        raise MsaError(
            f"{model!r} holds models that were each trained at another missing rate; give the folder of one rate, e.g. "
            f"{str(rate_folder(model, next(iter(matched))))!r}."
        )
    if not seeds:
        raise MsaError(
            f"{model!r} holds no finished checkpoint (no config.json, no seed-*/config.json); train one first."
        )
    return [str(seed) for seed in seeds]


def find_model(model: str) -> str:
    """The one checkpoint that a name stands for.

    Raises:
        MsaError: If a folder holds no finished checkpoint, or several.
    """
    found = find_models(model)
    if len(found) > 1:
        raise MsaError(f"{model!r} holds several training seeds; give one of them, e.g. {found[0]!r}.")
    return found[0]


def load_checkpoint(
    name: str, changes: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> tuple[MsaPreTrainedModel, MsaProcessor]:
    """Load a model in eval mode and its processor, on the GPU where there is one.

    Args:
        name: Folder or Hub name.
        changes: Values of its configuration to be used instead of those it was saved with.
        trust_remote_code: Whether code that lies in the checkpoint is run, for a method that is not registered; a registered
            one is run from the code that is installed.

    Raises:
        MsaError: If there is no such checkpoint, it is not one of hf_msa, a change is not possible, or it brings code that
            is not trusted.
    """
    try:
        try:
            known = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code).to_dict()
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        except BUGS as error:
            # The library takes what lies in files for what it writes there.
            raise ValueError(f"one of its files is damaged ({type(error).__name__}: {reason(error)})") from error
        for field in changes or ():
            if field not in known:
                raise unknown_name("configuration field", field, known)
        model, loading = AutoModel.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **(changes or {}),
        )
        # The library sets changes one by one and checks nothing but their types.
        model.config.validate()
    except (OSError, RuntimeError, SafetensorError, StrictDataclassError, ValueError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise MsaError(
                f"The checkpoint {name!r} is of a method that is not registered and brings code of its own, which is run "
                "with --trust-remote-code alone; read it first, or install the method's package."
            ) from error
        where = "" if Path(name).is_dir() else ", which is no folder here"
        raise MsaError(f"No checkpoint can be loaded from {name!r}{where}: {reason(error)}.") from error
    if not _is_of(model, MsaPreTrainedModel) or not _is_of(processor, MsaProcessor):
        raise MsaError(f"{name!r} is no hf_msa checkpoint but a {type(model).__name__}.")
    if len(processor.tokenizer) <= len(processor.tokenizer.all_special_tokens):
        # The library makes an empty one where the files are not there, to which all words are the same.
        raise MsaError(
            f"The tokenizer of the checkpoint {name!r} knows no words: its files (tokenizer.json) are absent or could not "
            "be fetched; load it again, or copy or train it again."
        )
    if loading["missing_keys"]:
        # The library fills them with random numbers and goes on.
        raise MsaError(
            f"The checkpoint {name!r} lacks {len(loading['missing_keys'])} weights of its model, e.g. "
            f"{min(loading['missing_keys'])!r}; copy or train it again."
        )
    settings = model.config.language_model
    if settings is not None and settings.field in (changes or {}):
        locate_language_model(model.config)
    if settings is not None and settings.kind == "endpoint" and settings.name and settings.field in (changes or {}):
        # A server that the caller names is one that the caller allows, and so is the key.
        allow_endpoint(settings.name, (changes or {}).get(f"{settings.role}_key_variable"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # type: ignore[arg-type]  # the library wraps `to` in a way that type checkers misread
    return model.eval(), processor


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is of a class, or of the copy of it that came with a checkpoint's own code."""
    return any(base.__name__ == kind.__name__ for base in type(value).__mro__)


def whole_path(name: str) -> str:
    """The whole path of a file or folder on this machine; of what is none, e.g. a Hub name, the name."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def locate_language_model(config: MsaConfig) -> None:
    """Name a language model that lies on this machine by its whole path, so that it is found from any folder.

    What is published of such a name is its last part.
    """
    settings = config.language_model
    if settings is not None and settings.name and settings.kind == "local":
        setattr(config, settings.field, whole_path(settings.name))


def with_located_model(changes: Mapping[str, Any], config: MsaConfig) -> dict[str, Any]:
    """Changes of a configuration, the language model among them as it is named there; see `locate_language_model`."""
    settings = config.language_model
    return {**changes} | (
        {settings.field: settings.name} if settings is not None and settings.field in changes else {}
    )


def method_of(model: MsaPreTrainedModel) -> str:
    """The key of the method that a model is of."""
    return model.config.model_type.removeprefix(MODEL_TYPE_PREFIX)


def own_fields(config: MsaConfig) -> dict[str, Any]:
    """A configuration for a result: without the text encoder's, and without the folder that it was loaded from."""
    return {k: v for k, v in config.to_dict().items() if k not in ("text_config", "auto_map", "_name_or_path")}


def check_widths(model: MsaPreTrainedModel, rows: MsaRows, name: str, may_lack: bool = False) -> None:
    """Check that the data has what the checkpoint reads.

    Args:
        model: The checkpoint.
        rows: The data.
        name: What messages call the checkpoint.
        may_lack: Whether the data may do without a modality.

    Raises:
        MsaError: Naming the modality, the checkpoint's width and that of the data.
    """
    for modality in model.config.modalities[1:]:
        expected = getattr(model.config, f"{modality}_dim")
        if modality not in rows.lengths:
            if may_lack:
                continue
            raise MsaError(f"The checkpoint {name!r} reads {modality}, but the data has no {modality} column.")
        width = rows[0][modality].shape[1]
        if width != expected:
            raise MsaError(
                f"The data has {modality} of width {width}, but the checkpoint {name!r} was built for {modality}_dim="
                f"{expected}; use a data set with features of the same kind as in training."
            )


def check_feature_sets(processor: MsaProcessor, facts: DatasetFacts, name: str) -> None:
    """Check that data and checkpoint have features of the same sets, where both say which.

    Args:
        processor: The checkpoint's.
        facts: What is known of the data.
        name: What messages call the checkpoint.

    Raises:
        MsaError: Naming both sets.
    """
    for modality in processor.feature_extractor.modalities:
        made, wanted = (getattr(one, f"{modality}_set") for one in (facts, processor.feature_extractor))
        if made is not None and wanted is not None and made != wanted:
            raise MsaError(
                f"The {modality} of the data is of the feature set {made!r}, but the checkpoint {name!r} was trained on "
                f"{wanted!r}; extract the features anew."
            )


def checkpoint_rows(
    model: MsaPreTrainedModel,
    processor: MsaProcessor,
    name: str,
    dataset: datasets.Dataset,
    split: str,
    media: str | Path | None = None,
    may_lack: bool = False,
) -> MsaRows:
    """The rows of a split for a checkpoint that is to be used on them: tokenised, with the widths that it reads.

    The model is given their recordings, and may look up answers of its language model; see `attach_media`,
    `attach_answers` and `check_widths`.

    Raises:
        MsaError: If the data has not what the checkpoint reads, or there is something amiss with the recordings.
    """
    rows = MsaRows(dataset, split, processor.tokenizer, processor.text_max_length)
    check_widths(model, rows, name, may_lack)
    attach_media(model, media, rows, name)
    attach_answers(model, name)
    return rows


ANSWERS_FOLDER = "answers"
"""Folder beside the runs that share what language models have answered."""


def attach_media(
    model: MsaPreTrainedModel, media: str | Path | None, rows: MsaRows, name: str
) -> dict[str, int] | None:
    """Let a model hear and see the clips of some rows.

    Args:
        model: One that asks a language model.
        media: Folder with the clips' recordings, see `MediaFolder`; None: there are none.
        rows: The rows.
        name: What the message calls the model.

    Returns:
        Number of `clips`, and of those `without_file`; None without recordings.

    Raises:
        MsaError: If the model asks no language model, or the folder will not do.
    """
    if media is None:
        return None
    folder = MediaFolder(Path(media))
    check_media_use(model.config, name)
    counts = folder.check((rows[index] for index in range(len(rows))), rows.split)
    model.media = folder.load
    return counts


def check_media_use(config: MsaConfig, name: str) -> None:
    """Check that a model has a use for sound and pictures.

    Args:
        config: Its configuration.
        name: What the message calls it.

    Raises:
        MsaError: If it asks no language model.
    """
    if not config.asks_language_model:
        raise MsaError(
            f"--media is for models that ask a multimodal language model, and {name!r} reads features only; leave it out."
        )


def find_answers(name: str) -> Path | None:
    """Where the answers of language models lie that a run of `hf-msa train` or `calibrate` shares with others.

    That is the folder of all runs of the command; runs in a folder within it share them, too.

    Args:
        name: Folder of a run, or another name of a checkpoint: None then.
    """
    folder = Path(name).resolve()
    if not (folder / "run.json").is_file():
        return None
    above = folder.parents[1] if folder.parent.name.startswith(RATE_FOLDER) else folder.parent
    places = [place / ANSWERS_FOLDER for place in (above, *above.parents[:1])]
    return next((place for place in places if place.is_dir()), places[0])


def attach_answers(model: MsaPreTrainedModel, name: str) -> None:
    """Let a model of a run look up what its language model has answered, and keep it, where training did.

    Args:
        model: Nothing happens to one that asks none.
        name: Where it was loaded from; nothing happens where that is no run.
    """
    if model.config.asks_language_model:
        model.answers_folder = find_answers(name)
