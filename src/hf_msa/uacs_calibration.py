"""New thresholds for a trained U-ACS: for another expert, adapter, kind of uncertainty or budget. Nothing is trained."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .assignments import set_value
from .data.loading import dataset_facts, load_split
from .data.missing import CompleteProtocol, MissingProtocol, protocol_from_dict
from .data.rows import MsaRows
from .errors import MsaError, next_step
from .evaluation.checkpoints import (
    attach_answers,
    attach_media,
    check_feature_sets,
    check_widths,
    find_models,
    load_checkpoint,
    method_of,
    own_fields,
    whole_path,
)
from .files import atomic_directory, read_json, write_json
from .hub.cards import write_card
from .models.modeling_uacs import UacsForSentimentAnalysis
from .training.run_folder import RUN_FILE, read_facts
from .training.uacs.calibration import find_thresholds

_SPLIT = "validation"
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(%|s)")


def run_command(*, output: str, data: str, **options: Any) -> None:
    """Calibrate, and say what came of it; see `calibrate` for the options."""
    for name, place, report in _calibrate_each(output=output, data=data, **options):
        for line in report:
            print(line)
        print(f"Calibrated {name}: {place}")
    recordings = () if options.get("media") is None else ("--media", options["media"])
    print(next_step("evaluate", output, "--data", data, "--protocol", "complete", *recordings))


def calibrate(
    run: str,
    data: str,
    output: str,
    *,
    assignments: Sequence[str] = (),
    budget: str | None = None,
    adapter: str | None = None,
    media: str | None = None,
) -> list[Path]:
    """Set the thresholds of a run anew, and write it with them; after an interruption the same call goes on.

    Args:
        run: A run folder (one seed or all of them), a saved model or a Hub name.
        data: Folder or Hub name of the prepared data set; its validation split is used.
        output: Folder of the new run: each seed gets `seed-<N>` in it.
        assignments: Changes of the configuration, e.g. `expert_model=org/name`.
        budget: `"20%"`: hand on at most this share of the samples; `"2s"`: at most so many seconds per sample.
        adapter: Folder of an adapter for the expert.
        media: Folder with the clips' recordings, see `MediaFolder`.

    Returns:
        The folders of the new runs, seed by seed.

    Raises:
        MsaError: If one of these will not do, or the thresholds cannot be found.

    Example:
        ```python
        from hf_msa import calibrate

        calibrate("runs/uacs", "data/sample", "runs/uacs-20", budget="20%")
        ```
    """
    each = _calibrate_each(run, data, output, assignments, budget, adapter, media)
    return [place for _, place, _ in each]


def _calibrate_each(
    run: str,
    data: str,
    output: str,
    assignments: Sequence[str] = (),
    budget: str | None = None,
    adapter: str | None = None,
    media: str | None = None,
) -> Iterator[tuple[str, Path, list[str]]]:
    """Give each run, where it lies with its new thresholds, and what is to be said of them if they were found just now."""
    changes = {**_budget(budget)}
    for assignment in assignments:
        set_value(changes, assignment)
    if isinstance(expert := changes.get("expert_model"), str):
        changes["expert_model"] = whole_path(expert)
    if adapter is not None:
        changes["expert_adapter"] = True
    names = find_models(run)
    places = [_place(Path(output), name) for name in names]
    made = {"from": Path(run).name, "dataset": dataset_facts(data).name, "split": _SPLIT, "changes": changes}
    made |= {} if adapter is None else {"adapter": Path(adapter).name}
    finished = [_is_finished(place, made) for place in places]
    for name, place, is_there in zip(names, places, finished, strict=True):
        yield name, place, [] if is_there else _calibrate_one(name, data, place, changes, made, adapter, media)


def _budget(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise MsaError(
            f"--budget is {text!r}; give a share of the samples such as 20%, or seconds per sample such as 2s."
        )
    number, unit = float(found[1]), found[2]
    return {"budget_share": number / 100} if unit == "%" else {"budget_seconds": number}


def _place(output: Path, name: str) -> Path:
    """Where the new run goes: as with training, a seed into a folder of its own."""
    return output / Path(name).name if (Path(name) / RUN_FILE).is_file() else output


def _is_finished(place: Path, made: Mapping[str, Any]) -> bool:
    """Whether this calibration is there already.

    Raises:
        MsaError: If something else is.
    """
    if not place.exists():
        return False
    record = place / RUN_FILE
    if record.is_file() and read_facts(record).get("calibration") == made:
        return True
    raise MsaError(f"{str(place)!r} exists and holds something else; give another folder as --output.")


def _calibrate_one(
    name: str,
    data: str,
    place: Path,
    changes: Mapping[str, Any],
    made: Mapping[str, Any],
    adapter: str | None,
    media: str | None,
) -> list[str]:
    # The old thresholds go, so that nothing refuses to part from them.
    forgotten = {"tau_1": None, "tau_2": None, "calibration": None}
    network, processor = load_checkpoint(name, {**forgotten, **changes})
    if not isinstance(network, UacsForSentimentAnalysis):
        raise MsaError(
            f"{name!r} is a model of the method {method_of(network)!r}, which has no thresholds; give one of 'uacs'."
        )
    config = network.config
    if config.route == "fast" and any(field.startswith("expert_") for field in changes):
        raise MsaError(f"{name!r} takes the route 'fast' and asks no expert; add --set route=cascade.")
    if "expert_model" in changes and config.expert_adapter and not {"expert_adapter"} & changes.keys():
        raise MsaError(
            f"The adapter of {name!r} was trained for another expert; give one for {config.expert_model!r} as --adapter, or "
            "do without: --set expert_adapter=false."
        )
    if adapter is not None:
        network.set_adapter_folder(adapter)
    facts = dataset_facts(data)
    rows = MsaRows(load_split(data, _SPLIT), _SPLIT, processor.tokenizer, processor.text_max_length)
    check_feature_sets(processor, facts, name)
    check_widths(network, rows, name)
    counts = attach_media(network, media, rows, name)
    attach_answers(network, name)
    record = Path(name) / RUN_FILE
    told = read_json(record) if record.is_file() else None
    found = find_thresholds(network, processor, rows, _protocol(told, rows))
    for field in ("tau_1", "tau_2", "calibration", "calibrated_with"):
        setattr(config, field, found[field])
    with atomic_directory(place) as work:
        network.save_pretrained(work)
        processor.save_pretrained(work)
        if told is not None:
            told |= {"config": own_fields(config), "language_model_input": network.language_model_input}
            told |= {"media": None if counts is None else {_SPLIT: counts}, "calibration": made}
            write_json(work / RUN_FILE, told)
    if told is not None:
        write_card(place)
    return _report(config.tau_1, config.tau_2, found["expected"])


def _protocol(run: Mapping[str, Any] | None, rows: MsaRows) -> MissingProtocol:
    """What was dropped of the validation split when the run was trained; nothing where that is not known."""
    given = ((run or {}).get("settings") or {}).get("missing", {}).get("validation")
    protocol = CompleteProtocol() if given is None else protocol_from_dict(given)
    return protocol.bind(rows.ids)


def _report(tau_1: float | None, tau_2: float | None, expected: Mapping[str, float]) -> list[str]:
    taus = [f"{name} {value:.4g}" for name, value in (("tau_1", tau_1), ("tau_2", tau_2)) if value is not None]
    costs = [f"{expected[name]:.3g} {name}" for name in ("calls", "seconds") if name in expected]
    by_sample = f", {' and '.join(costs)} per sample" if costs else ""
    return [f"  {', '.join(taus)}: on validation {100 * expected['share']:.1f} % are handed on{by_sample}"]
