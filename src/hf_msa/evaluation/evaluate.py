"""Evaluating runs: all training seeds of a run over missing rates or patterns, as results.json, predictions and curves."""

import dataclasses
import importlib.util
import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.missing import Condition, Rate, conditions, tested_as
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, reason
from hf_msa.files import atomic_files, folder_lock
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_schema import UNIMODAL_LABEL_KEYS

from .checkpoints import (
    ANSWERS_FOLDER,
    attach_media,
    check_feature_sets,
    check_widths,
    find_answers,
    find_matched,
    find_models,
    load_checkpoint,
    method_of,
    own_fields,
    rate_folder,
    with_located_model,
)
from .results import (
    LANGUAGE_MODEL_INPUTS,
    MOST_UNREADABLE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    EvaluationFacts,
    Results,
    build_results,
    predictions_table,
    protocol_facts,
    read_results,
    trained_on,
    write_results,
)
from .subsets import DEFAULT_RULE, Subset
from .sweep import sweep

if TYPE_CHECKING:
    import pyarrow as pa


_LONGEST_WAIT = 600.0


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


def evaluate_runs(
    model: str,
    data: str,
    *,
    protocol: str | None = None,
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    split: str = "test",
    batch_size: int = 128,
    output: str | None = None,
    subset: str | None = None,
    subset_rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    media: str | None = None,
    protocol_fields: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate one checkpoint, or all training seeds of a run, and write results.json, predictions and curves.

    Args:
        model: A run folder (one seed or all of them), a saved model, or a Hub name; or the folder of `--train-rate match`,
            whose models are each tested at the rate that they were trained at, which gives one result.
        data: Folder or Hub name of a prepared data set.
        protocol: See `hf_msa.data.missing.conditions`; default: the one that the recipe chose the checkpoint under (of
            random patterns every pattern), for a model without a recipe ``"frame"``.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        split: What to evaluate on.
        batch_size: Rows per batch.
        output: Folder of the results; default: the run's folder, and for a subset a folder in it, so that the results
            of the whole split stay. Results of another test that are there are never replaced.
        subset: ``"consistent"`` or ``"inconsistent"``, for a part of the split by its unimodal labels; default: all of it.
        subset_rule: What makes a sample inconsistent, see `hf_msa.evaluation.subsets.RULES`.
        changes: Values of the model's configuration to be used instead of its own, e.g. ``{"route": "mllm"}``; `output` must
            then be given.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask a language model.
        protocol_fields: The protocol's other fields, e.g. ``{"blocks": 2}`` or ``{"source": "masks.json"}``.
        trust_remote_code: See `load_checkpoint`.

    Raises:
        MsaError: If model, data, media or protocol will not do, or the results would replace those of another test.
    """
    started = time.perf_counter()
    fields = dict(protocol_fields or {})
    if changes and output is None:
        raise MsaError(
            f"--set {next(iter(changes))} makes another model of this one; give a folder as --output, so that the results "
            "of the model as it is stay."
        )
    matched = find_matched(model)
    members: list[tuple[str, Sequence[float] | None]]
    if matched:
        protocol = protocol or "modality"
        # Of the seeds and rates themselves.
        conditions("modality", (), rates, mask_seeds)
        members = _chosen_matched(model, matched, protocol, rates)
    else:
        members = [(name, rates) for name in find_models(model)]
    names = [name for name, _ in members]
    runs = list(_read_runs(names))
    _check_one_run(runs, model, bool(matched))
    if protocol is None:
        protocol, own = _own_protocol(runs[0])
        fields = own | fields
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
    known = dataset_facts(data)
    dataset = load_split(data, split)
    facts = EvaluationFacts.of_runs(runs, names, matched=bool(matched))
    facts.dataset = {"name": known.name, "split": split, "label_family": known.family.to_value()}
    facts.changes = dict(changes or {})
    split_ids: list[str] | None = None
    if part is not None:
        whole = MsaRows(dataset, split)
        split_ids = whole.ids
        facts.dataset["subset"] = {**dataclasses.asdict(part), "n_of": len(split_ids)}
        unimodal = {name: dataset[name][:] for name in UNIMODAL_LABEL_KEYS.values() if name in dataset.column_names}
        dataset = dataset.select(part.rows(whole.labels, unimodal, known.family))
    parts: list[dict[str, Any]] = []
    rows: MsaRows | None = None
    tested: list[Condition] = []
    model_class = MsaPreTrainedModel
    for (name, own_rates), run in zip(members, runs, strict=True):
        network, processor = load_checkpoint(name, changes, trust_remote_code)
        # The seeds of one run share their tokenizer: the data is tokenised once.
        if rows is None:
            rows = MsaRows(dataset, split, processor.tokenizer, processor.text_max_length)
        tested = conditions(
            protocol, ("text", *(m for m in rows.lengths if m != "text")), own_rates, mask_seeds, **fields
        )
        facts.method, model_class = method_of(network), type(network)
        facts.changes = with_located_model(facts.changes, network.config)
        facts.protocol = protocol_facts(tested)
        if not parts:
            rates_tested = {rate for _, one in members for rate in one or ()} if matched else {c.rate for c in tested}
            check_same_test(target, facts, rates_tested, {c.mask_seed for c in tested})
        check_feature_sets(processor, known, name)
        check_widths(network, rows, name)
        facts.media = attach_media(network, media, rows, name)
        if network.config.asks_language_model:
            network.answers_folder = find_answers(name) or target / ANSWERS_FOLDER
        _warn_of_other_input(run.get("language_model_input"), network)
        made, shares = sweep(network, processor, rows, tested, batch_size, split_ids)
        facts.realised |= shares
        parts += [{"training_seed": run.get("seed"), **part} for part in made]
        facts.oracle = facts.oracle or network.config.is_oracle
        facts.language_model_input = network.language_model_input
        facts.config = own_fields(network.config)
        del network
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if np.ndim(parts[0][name])}
    facts.cost = model_class.cost_of(columns)
    _warn_of_unreadable(facts.cost)
    facts.seconds = round(time.perf_counter() - started, 2)
    content, files = write_evaluation(target, predictions_table(parts), facts)
    return Evaluation(content, files, [Path(name) for name, run in zip(names, runs, strict=True) if run])


def _own_protocol(run: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The protocol that a run's recipe is tested under, see `tested_as`."""
    missing = (run.get("settings") or {}).get("missing") or {}
    return tested_as(missing.get("validation") or {"name": "frame"})


def check_same_test(
    folder: Path, facts: EvaluationFacts, rates: Collection[Rate], mask_seeds: Collection[int | None]
) -> None:
    """Check that a folder holds no results of another test: only those that are measured anew may be replaced.

    Args:
        folder: Where the results go.
        facts: Of the new ones.
        rates, mask_seeds: What is tested; those of the results that are there have to be among them.

    Raises:
        MsaError: Naming what differs.
    """
    try:
        earlier = read_results(folder)
    except MsaError:
        # None, or nothing that can be read.
        return
    before = _test_of(earlier["method"], earlier["dataset"], earlier["protocol"], earlier.get("changes"))
    now = _test_of(facts.method, facts.dataset, facts.protocol, facts.changes)
    # What an earlier version did not note is taken to be the same.
    changed = [f"{key} {before[key]!r}, now {now.get(key)!r}" for key in before if before[key] != now.get(key)]
    for what, tested in (("rates", rates), ("mask_seeds", mask_seeds)):
        lost = [value for value in earlier["protocol"].get(what, ()) if value not in tested]
        if lost and not changed:
            changed = [f"{what.replace('_', ' ')} {', '.join(map(str, lost))}, which are not tested now"]
    if changed:
        raise MsaError(
            f"{str(folder)!r} holds results of another test ({changed[0]}), which these would replace; give another folder "
            f"as --output, e.g. {str(folder / facts.protocol['name'])!r}, or delete {str(folder / RESULTS_FILE)!r}."
        )


def _test_of(
    method: str, dataset: Mapping[str, Any], protocol: Mapping[str, Any], changes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a result is of, by the names that messages give it, as it is read from a file."""
    subset = dataset.get("subset") or {}
    found = {
        "method": method,
        "data set": dataset["name"],
        "split": dataset["split"],
        "subset": f"{subset['name']} ({subset['rule']})" if subset else "none",
        "protocol": protocol["name"],
        "--set": changes or {},
    }
    numbers = ("name", "rates", "mask_seeds")
    found |= {key: value for key, value in protocol.items() if key not in numbers}
    return dict(json.loads(json.dumps(found)))


def write_evaluation(folder: Path, predictions: "pa.Table", facts: EvaluationFacts) -> tuple[Results, list[Path]]:
    """Score predictions, and write the result with them and, where matplotlib is there, the curves.

    Args:
        folder: Where to; created where absent.
        predictions: See `predictions_table`.
        facts: What the result says beside its numbers.

    Returns:
        The content of results.json, and the files that were written, results.json first.
    """
    results = build_results(predictions, facts)
    # For a moment only; what took hours is not thrown away because another command is there.
    with folder_lock(folder, wait=_LONGEST_WAIT), atomic_files(folder) as work:
        files = []
        if importlib.util.find_spec("matplotlib") is not None:
            from .plots import plot_curves

            files += plot_curves([results], work / "curves")
        files += [work / PREDICTIONS_FILE, write_results(work, results, predictions)]
    return read_results(folder), [folder / file.name for file in reversed(files)]


def _read_runs(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The run.json of each checkpoint, or an empty one where it has none, e.g. on the Hub."""
    for name in names:
        file = Path(name) / "run.json"
        if not file.is_file():
            yield {}
            continue
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            if "expert_input" in run:
                # What the first version called it.
                run["language_model_input"] = run.pop("expert_input")
            yield {**run, "seed": int(run["seed"]), "selection": dict(run["selection"])}
        except (KeyError, TypeError, ValueError) as error:
            raise MsaError(f"{str(file)!r} is damaged ({reason(error)}); run the training command again.") from error


def _check_one_run(runs: Sequence[Mapping[str, Any]], model: str, matched: bool) -> None:
    """Check that the seeds of a folder are those of one experiment: their mean would mean nothing otherwise."""
    facts = [
        {key: str(run.get(key)) for key in ("method", "recipe", "ablation", "text_model")}
        | {"training data": str(trained_on(run)), "training rate": "match" if matched else str(run.get("train_rate"))}
        for run in runs
    ]
    for key in facts[0]:
        values = sorted({fact[key] for fact in facts})
        if len(values) > 1:
            raise MsaError(
                f"The seeds in {model!r} differ in their {key.replace('_', ' ')} ({', '.join(values)}); evaluate each by "
                "itself."
            )


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


def _warn_of_unreadable(cost: Mapping[str, Any] | None) -> None:
    if cost is not None and (cost["unreadable"] or 0) > MOST_UNREADABLE:
        logging.getLogger(__name__).warning(
            "%.1f %% of the language model's answers could not be read; look at their wording in the answers folder, and "
            "take another model, prompt or adapter.",
            100 * cost["unreadable"],
        )


def _warn_of_other_input(trained: str | None, network: MsaPreTrainedModel) -> None:
    given = network.language_model_input
    if trained is not None and given is not None and trained != given:
        logging.getLogger(__name__).warning(
            "In training and calibration the language model was given %s, here it is given %s; its thresholds may not fit.",
            LANGUAGE_MODEL_INPUTS.get(trained, trained),
            LANGUAGE_MODEL_INPUTS[given],
        )
