"""Running models over missing rates or patterns: one process, data loaded once, all rates of a batch together."""

import dataclasses
import functools
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor

from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.media import MediaFolder
from hf_msa.data.missing import (
    CompleteProtocol,
    FixedPattern,
    FrameMissing,
    MissingProtocol,
    ModalityMissing,
    RealisedRates,
    apply_missing,
)
from hf_msa.data.plan_cache import PLANS_FOLDER, PlanCache
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import DatasetFacts
from hf_msa.errors import MsaError, as_msa_errors, reason, unknown_name
from hf_msa.files import atomic_files
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_outputs import MsaOutput
from hf_msa.models.msa_schema import COMPLETE_KEYS, UNIMODAL_LABEL_KEYS, VALUE_KEYS
from hf_msa.models.processing_msa import MsaProcessor

from .results import EXPERT_INPUTS, PREDICTIONS_FILE, Rate, Results, build_results, predictions_table, write_results
from .subsets import DEFAULT_RULE, Subset

if TYPE_CHECKING:
    import datasets

FRAME_RATES = tuple(round(0.1 * step, 1) for step in range(10))
MODALITY_RATES = tuple(round(0.1 * step, 1) for step in range(8))

RATE_FOLDER = "rate-"
"""What the name of a folder begins with that holds models trained at one missing rate of several."""

Condition = tuple[int, Rate, MissingProtocol]
"""A mask seed, what the result calls the rate or pattern, and the protocol that makes it."""


def conditions(
    protocol: str, modalities: Sequence[str], rates: Sequence[float] | None, mask_seeds: Sequence[int]
) -> list[Condition]:
    """List what a protocol tests under.

    Args:
        protocol: ``"frame"`` (P1: rates 0 to 0.9), ``"modality"`` (P2: rates 0 to 0.7), ``"fixed"`` (P2: every availability
            pattern) or ``"complete"``.
        modalities: Modalities of the data.
        rates: Missing rates instead of the protocol's own; only for ``"frame"`` and ``"modality"``.
        mask_seeds: Seeds of the masks.

    Raises:
        MsaError: For an unknown protocol, rates where the protocol has none, or a rate or seed that is given twice.
    """
    swept: dict[str, tuple[type[MissingProtocol], tuple[float, ...]]] = {
        "frame": (FrameMissing, FRAME_RATES),
        "modality": (ModalityMissing, MODALITY_RATES),
    }
    for option, values in (("--seeds", mask_seeds), ("--rates", rates)):
        if values is not None and (not values or len(set(values)) != len(values)):
            raise MsaError(f"{option} is {' '.join(map(str, values)) or 'empty'}; give at least one, and each once.")
    if protocol in swept:
        kind, default = swept[protocol]
        return [
            (seed, rate, kind(rate=rate, seed=seed))  # type: ignore[call-arg]
            for seed in mask_seeds
            for rate in (default if rates is None else tuple(rates))
        ]
    if rates is not None:
        raise MsaError(f"The protocol {protocol!r} has no rates; leave --rates out, or use frame or modality.")
    if protocol == "complete":
        return [(mask_seeds[0], 0.0, CompleteProtocol())]
    if protocol == "fixed":
        patterns = [
            pattern for size in range(1, len(modalities) + 1) for pattern in itertools.combinations(modalities, size)
        ]
        # As OMG-Agent's tables have them: those without text first.
        patterns.sort(key=lambda pattern: (len(pattern), "text" in pattern))
        return [(mask_seeds[0], "+".join(pattern), FixedPattern(available=pattern)) for pattern in patterns]
    raise unknown_name("protocol", protocol, ("frame", "modality", "fixed", "complete"))


@torch.inference_mode()
def sweep(
    model: MsaPreTrainedModel,
    processor: MsaProcessor,
    rows: MsaRows,
    tested: Sequence[Condition],
    batch_size: int = 128,
    split_ids: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], dict[tuple[int | None, Rate], dict[str, float]]]:
    """Predict all rows under all conditions.

    A batch is padded and moved to the device once; the conditions then differ by masks only. Rows go in order of length, so
    that little is padded.

    Args:
        model: In eval mode, on its device.
        processor: The model's processor.
        rows: Tokenised rows.
        tested: From `conditions`.
        batch_size: Rows per batch.
        split_ids: The ids of the whole split, where `rows` are a part of it: what a protocol drops of a sample must not
            depend on which other samples are looked at.

    Returns:
        One part of a prediction table per condition (see `predictions_table`), rows in their own order, with every
        number that the model says of a sample (see `MsaPreTrainedModel.per_sample_outputs`); and the realised missing
        shares by (mask seed, rate).
    """
    device = next(model.parameters()).device
    bound = [
        (seed, rate, protocol.bind(rows.ids if split_ids is None else split_ids)) for seed, rate, protocol in tested
    ]
    collator = MsaCollator(processor, None, split=rows.split)
    order = np.argsort(np.sum(list(rows.lengths.values()), axis=0), kind="stable")
    realised = [RealisedRates() for _ in bound]
    collected: list[dict[str, np.ndarray]] = [{} for _ in bound]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def given() -> Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]:
        for indices in tqdm(batches, desc=f"sweep of {len(bound)} conditions", leave=False):
            members = [rows[int(index)] for index in indices]
            complete = {key: value.to(device) for key, value in collator(members).items()}
            for number, (_, _, protocol) in enumerate(bound):
                masks = MsaCollator(processor, protocol, split=rows.split).masks(members)
                realised[number].add(masks)
                batch = apply_missing(complete, masks, processor.tokenizer.unk_token_id)
                originals = {COMPLETE_KEYS[m]: complete[key] for m, key in VALUE_KEYS.items() if key in complete}
                yield model.inputs_from({**batch, **originals}, predicting=True), members

    places = [(indices, columns) for indices in batches for columns in collected]
    for (indices, columns), outputs in zip(places, _predicted(model, given(), processor), strict=True):
        for name, value in model.per_sample_outputs(outputs).items():
            column = columns.setdefault("prediction" if name == "logits" else name, np.empty(len(rows), np.float32))
            column[indices] = value.float().cpu().numpy()
    parts = []
    shares: dict[tuple[int | None, Rate], dict[str, float]] = {}
    for (seed, rate, _), columns, share in zip(bound, collected, realised, strict=True):
        parts.append({"id": rows.ids, "mask_seed": seed, "rate": rate, "label": rows.labels, **columns})
        shares[(seed, rate)] = share.shares()
    return parts, shares


def _predicted(
    model: MsaPreTrainedModel,
    batches: Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]],
    processor: MsaProcessor,
) -> Iterator[MsaOutput]:
    """The output for each batch."""
    with as_msa_errors():
        yield from model.predict_batches(batches, processor)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate_runs` made.

    Args:
        content: The content of results.json.
        files: The files that were written.
        runs: Run folders (one per training seed) among what was evaluated.
    """

    content: Results
    files: list[Path]
    runs: list[Path]


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


def _chosen_matched(
    model: str, found: Mapping[float, Sequence[str]], protocol: str, rates: Sequence[float] | None
) -> list[tuple[str, Sequence[float] | None]]:
    """The checkpoints to evaluate out of `find_matched`, each with the rate that it is tested at."""
    if protocol != "modality":
        raise MsaError(
            f"Each model in {model!r} was trained at one missing rate and is tested at it alone, under the protocol "
            f"'modality'; give --protocol modality, or for {protocol!r} the folder of one rate, e.g. "
            f"{str(rate_folder(model, next(iter(found))))!r}."
        )
    chosen = tuple(found) if rates is None else tuple(rates)
    for rate in chosen:
        if rate not in found:
            raise MsaError(
                f"{model!r} has no models trained at the missing rate {rate}, but at {', '.join(map(str, found))}; train "
                "them, or name other --rates."
            )
    seeds = {rate: [Path(name).name for name in found[rate]] for rate in chosen}
    other = next((rate for rate in chosen if seeds[rate] != seeds[chosen[0]]), None)
    if other is not None:
        raise MsaError(
            f"{model!r} has {', '.join(seeds[chosen[0]])} at the missing rate {chosen[0]}, but {', '.join(seeds[other])} at "
            f"{other}; finish the training, or name the rates that are finished with --rates."
        )
    return [(name, (rate,)) for rate in chosen for name in found[rate]]


def _check_trained_at(
    runs: Sequence[Mapping[str, Any]], members: Sequence[tuple[str, Sequence[float] | None]]
) -> None:
    """Check that models were trained at the rates that their folders are named after."""
    for run, (name, rates) in zip(runs, members, strict=True):
        if rates is not None and run.get("train_rate") not in rates:
            raise MsaError(
                f"{name!r} was trained at the missing rate {run.get('train_rate')}, not at the one that its folder is named "
                "after; put it back where `hf-msa train` wrote it."
            )


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


def load_checkpoint(name: str, changes: Mapping[str, Any] | None = None) -> tuple[MsaPreTrainedModel, MsaProcessor]:
    """Load a model in eval mode and its processor, on the GPU where there is one.

    Args:
        name: Folder or Hub name.
        changes: Values of its configuration to be used instead of those it was saved with.

    Raises:
        MsaError: If there is no such checkpoint, it is not one of hf_msa, or a change is not possible.
    """
    try:
        if changes:
            known = AutoConfig.from_pretrained(name).to_dict()
            for field in changes:
                if field not in known:
                    raise unknown_name("configuration field", field, known)
        model, loading = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **(changes or {})
        )
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, RuntimeError, SafetensorError, StrictDataclassError, ValueError) as error:
        raise MsaError(f"No checkpoint can be loaded from {name!r}: {reason(error)}.") from error
    if not isinstance(model, MsaPreTrainedModel) or not isinstance(processor, MsaProcessor):
        raise MsaError(f"{name!r} is no hf_msa checkpoint but a {type(model).__name__}.")
    if loading["missing_keys"]:
        # The library fills them with random numbers and goes on.
        raise MsaError(
            f"The checkpoint {name!r} lacks {len(loading['missing_keys'])} weights of its model, e.g. "
            f"{min(loading['missing_keys'])!r}; copy or train it again."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # type: ignore[arg-type]  # the library wraps `to` in a way that type checkers misread
    return model.eval(), processor


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


def load_split(data: str, split: str) -> "datasets.Dataset":
    """Load one split, which must have rows.

    Args:
        data: Folder or Hub name of a prepared data set.
        split: Its name.

    Raises:
        MsaError: If there is no such data or split, a file of it is damaged, or it has no rows.
    """
    from datasets.exceptions import DatasetGenerationError

    empty = f"The split {split!r} of {data!r} is empty, or one of its files is damaged; prepare the data set again."
    try:
        dataset = load_msa(data, split)
    except DatasetGenerationError as error:
        raise MsaError(empty) from error
    if not len(dataset):
        raise MsaError(empty)
    return dataset


def _read_runs(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The run.json of each checkpoint, or an empty one where it has none, e.g. on the Hub."""
    for name in names:
        file = Path(name) / "run.json"
        if not file.is_file():
            yield {}
            continue
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            yield {**run, "seed": int(run["seed"]), "selection": dict(run["selection"])}
        except (KeyError, TypeError, ValueError) as error:
            raise MsaError(f"{str(file)!r} is damaged ({reason(error)}); run the training command again.") from error


def _check_one_run(runs: Sequence[Mapping[str, Any]], model: str, matched: bool) -> None:
    """Check that the seeds of a folder are those of one experiment: their mean would mean nothing otherwise."""
    facts = [
        {key: str(run.get(key)) for key in ("method", "recipe", "ablation", "text_model")}
        | {"training data": str(_trained_on(run)), "training rate": "match" if matched else str(run.get("train_rate"))}
        for run in runs
    ]
    for key in facts[0]:
        values = sorted({fact[key] for fact in facts})
        if len(values) > 1:
            raise MsaError(
                f"The seeds in {model!r} differ in their {key.replace('_', ' ')} ({', '.join(values)}); evaluate each by "
                "itself."
            )


def _trained_on(run: Mapping[str, Any]) -> str | None:
    """The name of the data set that a model was trained on, where it is known."""
    name = (run.get("dataset") or {}).get("name")
    return None if name is None else str(name)


def evaluate_runs(
    model: str,
    data: str,
    *,
    protocol: str = "frame",
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    split: str = "test",
    batch_size: int = 128,
    output: str | None = None,
    subset: str | None = None,
    subset_rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    media: str | None = None,
) -> Evaluation:
    """Evaluate one checkpoint, or all training seeds of a run, and write results.json, predictions and curves.

    Args:
        model: A run folder (one seed or all of them), a saved model, or a Hub name; or the folder of `--train-rate match`,
            whose models are each tested at the rate that they were trained at, which gives one result.
        data: Folder or Hub name of a prepared data set.
        protocol: See `conditions`.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        split: What to evaluate on.
        batch_size: Rows per batch.
        output: Folder of the results; default: the run's folder, and for a subset a folder in it, so that the results
            of the whole split stay.
        subset: ``"consistent"`` or ``"inconsistent"``, for a part of the split by its unimodal labels; default: all of it.
        subset_rule: What makes a sample inconsistent, see `hf_msa.evaluation.subsets.RULES`.
        changes: Values of the model's configuration to be used instead of its own, e.g. ``{"route": "mllm"}``; `output` must
            then be given.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask an expert.

    Raises:
        MsaError: If model, data, media or protocol will not do.
    """
    started = time.perf_counter()
    if changes and output is None:
        raise MsaError(
            f"--set {next(iter(changes))} makes another model of this one; give a folder as --output, so that the results "
            "of the model as it is stay."
        )
    matched = find_matched(model)
    members: list[tuple[str, Sequence[float] | None]]
    if matched:
        # Of the seeds and rates themselves.
        conditions("modality", (), rates, mask_seeds)
        members = _chosen_matched(model, matched, protocol, rates)
    else:
        members = [(name, rates) for name in find_models(model)]
    names = [name for name, _ in members]
    runs = list(_read_runs(names))
    _check_one_run(runs, model, bool(matched))
    if matched:
        _check_trained_at(runs, members)
    if subset is None and subset_rule is not None:
        raise MsaError(f"--subset-rule {subset_rule} says which samples are inconsistent; give --subset as well.")
    part = None if subset is None else Subset(subset, subset_rule or DEFAULT_RULE)
    place = Path(model if Path(model).is_dir() else ".")
    target = Path(output) if output else place if part is None else place / part.folder
    if target.is_file():
        raise MsaError(f"{str(target)!r} is a file; give a folder as --output.")
    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    recordings = None if media is None else MediaFolder(Path(media))
    facts = dataset_facts(data)
    dataset = load_split(data, split)
    split_ids: list[str] | None = None
    if part is not None:
        whole = MsaRows(dataset, split)
        split_ids = whole.ids
        unimodal = {name: dataset[name][:] for name in UNIMODAL_LABEL_KEYS.values() if name in dataset.column_names}
        dataset = dataset.select(part.rows(whole.labels, unimodal))
    parts: list[dict[str, Any]] = []
    realised: dict[tuple[int | None, Rate], dict[str, float]] = {}
    rows: MsaRows | None = None
    config: dict[str, Any] = {}
    oracle = False
    tested: list[Condition] = []
    method = ""
    expert: dict[str, Any] = {}
    for (name, own_rates), run in zip(members, runs, strict=True):
        network, processor = load_checkpoint(name, changes)
        # The seeds of one run share their tokenizer: the data is tokenised once.
        if rows is None:
            rows = MsaRows(dataset, split, processor.tokenizer, processor.text_max_length)
        tested = conditions(protocol, ("text", *(m for m in rows.lengths if m != "text")), own_rates, mask_seeds)
        check_widths(network, rows, name)
        if recordings is not None:
            check_media_use(network.config, name)
            expert = expert or {"media": recordings.check((rows[index] for index in range(len(rows))), split)}
            network.media = recordings.load
        if network.config.asks_language_model:
            kept = (place if Path(model).is_dir() else target) / PLANS_FOLDER
            network.open_store = functools.partial(PlanCache, kept)
        expert["expert_input"] = network.language_model_input
        _warn_of_other_input(run.get("expert_input"), network)
        made, shares = sweep(network, processor, rows, tested, batch_size, split_ids)
        realised |= shares
        parts += [{"training_seed": run.get("seed"), **part} for part in made]
        oracle = oracle or network.config.is_oracle
        method = network.config.model_type.removeprefix("hf_msa_")
        config = own_fields(network.config)
        del network
    return write_evaluation(
        target,
        parts,
        facts=facts,
        split=split,
        subset=None if part is None or split_ids is None else {**dataclasses.asdict(part), "n_of": len(split_ids)},
        protocol=protocol,
        tested=tested,
        realised=realised,
        method=method,
        runs=runs,
        names=names,
        train_rate="match" if matched else runs[0].get("train_rate"),
        oracle=oracle,
        config=config,
        expert=expert,
        started=started,
    )


def check_media_use(config: MsaConfig, name: str) -> None:
    """Check that a model has a use for sound and pictures.

    Args:
        config: Its configuration.
        name: What the message calls it.

    Raises:
        MsaError: If it asks no expert.
    """
    if not config.asks_language_model:
        raise MsaError(
            f"--media is for models that ask a multimodal language model, and {name!r} reads features only; leave it out."
        )


def _warn_of_other_input(trained: str | None, network: MsaPreTrainedModel) -> None:
    given = network.language_model_input
    if trained is not None and given is not None and trained != given:
        logging.getLogger(__name__).warning(
            "In training and calibration the expert was given %s, here it is given %s; its thresholds may not fit.",
            EXPERT_INPUTS.get(trained, trained),
            EXPERT_INPUTS[given],
        )


def write_evaluation(
    folder: Path,
    parts: Sequence[Mapping[str, Any]],
    *,
    facts: DatasetFacts,
    split: str,
    subset: Mapping[str, Any] | None,
    protocol: str,
    tested: Sequence[Condition],
    realised: Mapping[tuple[int | None, Rate], Mapping[str, float]],
    method: str,
    runs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    train_rate: float | str | None,
    oracle: bool,
    config: Mapping[str, Any],
    expert: Mapping[str, Any],
    started: float,
) -> Evaluation:
    """Build results.json from the predictions and write it with the table and, where matplotlib is there, the curves."""
    import importlib.util

    table = predictions_table(parts)
    settings = {k: v for k, v in tested[0][2].to_dict().items() if k not in ("name", "rate", "seed", "available")}
    results = build_results(
        table,
        method=method,
        ablation=runs[0].get("ablation"),
        model=Path(names[0]).name if Path(names[0]).is_dir() else names[0],
        recipe=runs[0].get("recipe"),
        train_rate=train_rate,
        trained_on=_trained_on(runs[0]),
        oracle=oracle,
        dataset={
            "name": facts.name,
            "split": split,
            "label_family": facts.label_family,
            **({"subset": subset} if subset else {}),
        },
        protocol={"name": protocol, **settings},
        realised=realised,
        selection=[
            {
                "training_seed": run["seed"],
                **({"train_rate": run["train_rate"]} if train_rate == "match" else {}),
                **run["selection"],
            }
            for run in runs
            if run
        ],
        versions=runs[0].get("versions"),
        config=config,
        **expert,
        seconds=round(time.perf_counter() - started, 2),
    )
    with atomic_files(folder) as work:
        files = []
        if importlib.util.find_spec("matplotlib") is not None:
            from .plots import plot_curves

            files += plot_curves([results], work / "curves")
        files += [work / PREDICTIONS_FILE, write_results(work, results, table)]
    files = [folder / file.name for file in reversed(files)]
    return Evaluation(results, files, [Path(name) for name, run in zip(names, runs, strict=True) if run])
