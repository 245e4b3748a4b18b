"""Model cards: one template, the facts of the method, and the numbers of the run.

Nothing here knows a method by name. What is true of a method lies in `model_cards/<method>.yaml`; the numbers come
from the run's own `run.json` and from `results.json`.
"""

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError

from hf_msa.errors import MsaError, reason
from hf_msa.evaluation.checkpoints import RATE_FOLDER
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.report import SAMPLE_CORPUS, data_text, format_value, results_markdown
from hf_msa.evaluation.results import LANGUAGE_MODEL_INPUTS, RESULTS_FILE, Results, read_results, result_metrics
from hf_msa.evaluation.subsets import SUBSET_FOLDER, subset_text
from hf_msa.files import atomic_write
from hf_msa.methods import METHODS, cards_folder
from hf_msa.models.configuration_msa import MsaConfig

RUN_FILE = "run.json"
CARD_FILE = "README.md"
LICENSE = "apache-2.0"
TASK = "text-classification"
"""The Hub's task under which sentiment is listed, scores on a scale included; it has none for several modalities."""

# What a card says of a data set of which run.json does not tell more.
UNKNOWN_DATASET = {
    "language": "en",
    "license": "not on record, ask the owners of the data",
    "source": "",
    "homepage": "",
    "citation": "",
    "n": {},
}

EXAMPLES = {"en": "i really liked the way they told this story", "zh": "这个故事讲得真好"}

# The ids under which the Hub knows the kinds of metric.
_HUB_METRICS = {"acc": "accuracy", "f1": "f1", "mae": "mae", "corr": "pearsonr"}

# A path that begins at the root, at home, at a drive or at the current folder; never part of a URL, fraction or word.
_START_OF_PATH = r"(?:(?:file://|~|\.{1,2})?/|[A-Za-z]:[/\\])"
_LOCAL_PATH = re.compile(rf"(?<![\w.:/~]){_START_OF_PATH}[^\s'\"`,;|(){{}}]+")
_WHOLE_PATH = re.compile(rf"{_START_OF_PATH}[^\n]+")


@dataclass(frozen=True)
class CardFacts:
    """What is true of a method whatever it was trained on; see `model_cards/README.md`.

    Attributes:
        title: The card's heading, without the data set.
        summary: What the method does.
        paper: Where it was published, in a sentence.
        bibtex: How to cite it.
        modalities: What it can read.
        inputs: What it needs to predict.
        limits: Where it should not be trusted.
    """

    title: str
    summary: str
    paper: str
    bibtex: str
    modalities: Sequence[str]
    inputs: str
    limits: Sequence[str]


def load_facts(method: str) -> CardFacts:
    """Read the facts of one method.

    Args:
        method: The method's key, e.g. ``"tcmr"``.

    Raises:
        MsaError: If there is no such method, or its facts cannot be read.
    """
    path = METHODS.find(method).card
    try:
        return CardFacts(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(CardFacts))
        raise MsaError(f"The card facts {str(path)!r} cannot be read ({reason(error)}); give {names}.") from error


def without_local_paths(value: Any) -> Any:
    """Replace each local path inside a JSON value by its last part, so that nothing of a machine gets published.

    Args:
        value: Anything that JSON can hold; it is not changed.
    """
    if isinstance(value, str):
        # A path that fills the whole string may hold spaces; one inside a sentence ends at the first.
        return (
            _last_part(value) if _WHOLE_PATH.fullmatch(value) else _LOCAL_PATH.sub(lambda m: _last_part(m[0]), value)
        )
    if isinstance(value, Mapping):
        return {without_local_paths(key): without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    return value


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `run.json` of a finished run.

    Args:
        folder: The run's folder, e.g. ``out/seed-1111``.

    Raises:
        MsaError: If it is absent, is not JSON or names a method that does not exist.
    """
    path = Path(folder) / RUN_FILE
    try:
        # An undefined number, e.g. a loss that is none, is None.
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda constant: None)
        _check_types(run, _RUN, "it")
    except FileNotFoundError:
        raise MsaError(
            f"{folder} has no {RUN_FILE}, so it is not a finished run; give the seed folder that `hf-msa train` wrote."
        ) from None
    except (RecursionError, ValueError) as error:
        raise MsaError(f"{path} cannot be read ({reason(error)}); train again, or restore the file.") from error
    METHODS.find(run["method"])
    if "expert_input" in run:
        # What the first version called it.
        run["language_model_input"] = run.pop("expert_input")
    return run


_SELECTION = {
    **dict.fromkeys(("metric!", "split!", "rule"), str),
    **dict.fromkeys(("rate", "epoch", "step", "value"), (int, float)),
    "protocol": {"rate": (int, float)},
}
_STAGE = {"name!": str, "epochs": (int, float), "seconds": (int, float), "batch": {"global": int}}
# What a card reads of run.json, by type; a dict is a group with such keys, those with "!" needed, and a list has such items.
_RUN = {
    **dict.fromkeys(("method!", "recipe!", "ablation", "text_model", "language_model_input"), str),
    "seed!": int,
    "train_rate": (int, float),
    "dataset!": {
        **dict.fromkeys(("name!", "language", "license", "source", "homepage", "citation"), str),
        "label_family": (str, dict),
        "n": {},
    },
    "selection": _SELECTION,
    "stages": [_STAGE],
    "versions!": {},
    "devices": {"processes": int, "type": str, "name": str},
}


def _check_types(value: Any, kind: Any, place: str) -> None:
    """Check what is there of a JSON value; what is not needed may be None or absent.

    Raises:
        ValueError: Naming the place that is of another type.
    """
    wanted: Any = type(kind) if isinstance(kind, dict | list) else kind
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"{place} is {'absent' if value is None else f'a {type(value).__name__}'}")
    if isinstance(kind, dict):
        for key, inner in kind.items():
            found = value.get(key.removesuffix("!"))
            if found is not None or key.endswith("!"):
                _check_types(found, inner, f"{key.removesuffix('!')} of {place}")
    if isinstance(kind, list):
        for item in value:
            _check_types(item, kind[0], f"an item of {place}")


def find_results(folder: str | os.PathLike[str], run: Mapping[str, Any]) -> Results | None:
    """Find the results of a run: in its folder, else in the one above, where several seeds are evaluated together.

    Models that were each trained at one missing rate are evaluated together one folder higher still.

    Args:
        folder: The run's folder.
        run: Its `run.json`. Results of another method, ablation, training seed or training rate are passed over.

    Raises:
        MsaError: If there is a file that is no result.
    """
    return next((results for place in _places(folder) for results in _results_of(run, place)), None)


def find_subset_results(folder: str | os.PathLike[str], run: Mapping[str, Any]) -> list[Results]:
    """Find the results of a run on subsets, in the places where `find_results` looks.

    Args:
        folder: The run's folder.
        run: Its `run.json`. Results of another method, ablation, training seed or training rate are passed over.

    Raises:
        MsaError: If there is a file that is no result.
    """
    found: dict[str, Results] = {}
    for place in _places(folder):
        for file in sorted(place.glob(f"{SUBSET_FOLDER}*/{RESULTS_FILE}")):
            for results in _results_of(run, file.parent):
                found.setdefault(file.parent.name, results)
    return list(found.values())


def _places(folder: str | os.PathLike[str]) -> list[Path]:
    """Where results of a run may lie, the nearest first."""
    above = Path(folder).resolve().parent
    return [Path(folder), above, *([above.parent] if above.name.startswith(RATE_FOLDER) else [])]


def _results_of(run: Mapping[str, Any], place: Path) -> list[Results]:
    """The results in a folder, where they are of this run."""
    if not (place / RESULTS_FILE).is_file():
        return []
    results = read_results(place)
    try:
        _check_types(results["selection"], [_SELECTION], "the selection")
    except ValueError as error:
        raise MsaError(f"{place / RESULTS_FILE} is damaged: {reason(error)}; evaluate the model again.") from error
    same = results["method"] == run["method"] and results["ablation"] == run.get("ablation")
    rates = [entry["rate"] for entry in results["per_rate"]] if _is_matched(results) else [results.get("train_rate")]
    return [results] if same and run["seed"] in _training_seeds(results) and run.get("train_rate") in rates else []


def _is_matched(results: Results) -> bool:
    """Whether each missing rate of a result is that of models trained at it."""
    return results.get("train_rate") == "match"


def _own_part(run: Mapping[str, Any], results: Results) -> Results:
    """Of a result of models trained at one missing rate each, what is about this run's rate; any other as it is."""
    if not _is_matched(results):
        return results
    rate = run["train_rate"]
    [entry] = [entry for entry in results["per_rate"] if entry["rate"] == rate]
    return {
        **results,
        "protocol": {**results["protocol"], "rates": [rate]},
        "runs": [one for one in results["runs"] if one["rate"] == rate],
        "per_rate": [entry],
        "mean_over_rates": entry["metrics"],
    }


def render_card(
    run: Mapping[str, Any],
    results: Results | None,
    facts: CardFacts,
    config: MsaConfig,
    repo_id: str | None = None,
    subsets: Sequence[Results] = (),
) -> str:
    """Render a model card.

    Args:
        run: `run.json` of the checkpoint.
        results: `results.json`, or None where it has not been evaluated.
        facts: The method's facts.
        config: The checkpoint's configuration.
        repo_id: Its name on the Hub; None for a card that stays in a folder.
        subsets: Results on subsets of the data, shown after those on the whole split.

    Returns:
        YAML front matter and Markdown, without any path of this machine.
    """
    import jinja2

    base_model = _hub_name(run.get("text_model"))
    run, results = without_local_paths(run), without_local_paths(results)
    own = _own_part(run, results) if results else None
    about = _dataset_facts(run["dataset"])
    modalities = [modality for modality in config.modalities if modality in facts.modalities]
    title = f"{facts.title} on {about['name']}"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(cards_folder()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Markdown
    )
    return environment.get_template("template.md").render(
        card_data=_card_data(run, own, about, base_model, repo_id, title).to_yaml(),
        title=title,
        run=run,
        dataset=about,
        facts=facts,
        config=config,
        expert_given=LANGUAGE_MODEL_INPUTS.get(run.get("language_model_input", "")),
        ablation=f"ablation `{run['ablation']}`" if run.get("ablation") else "the full method",
        label_range=[f"{bound:g}" for bound in config.label_range],
        modalities=modalities,
        widths={m: getattr(config, f"{m}_dim") for m in modalities if m != "text"},
        example_text=EXAMPLES.get(about["language"], EXAMPLES["en"]),
        repo_id=repo_id or "path/to/this/folder",
        selections=_selections(run, results),
        results=results_markdown(results) if results else None,
        subsets=[
            (subset_text(part["dataset"]["subset"]), results_markdown(part))
            for part in map(without_local_paths, subsets)
        ],
        about_results=_about_results(results) if results else None,
        own_results=_own_results(run, own) if own is not None and (own is not results or _is_mean(own)) else None,
        matched_rate=f"{run['train_rate']:g}" if results and _is_matched(results) else None,
        devices=run.get("devices"),
        stages={stage["name"]: _stage_text(stage) for stage in run.get("stages") or ()},
    )


def write_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> Path:
    """Write the card of a finished run into its folder, with its results where there are any.

    Args:
        folder: The run's folder: config.json, run.json and, here or one level up, results.json.
        repo_id: Its name on the Hub; None for a card that stays in the folder.

    Returns:
        The path of the card.

    Raises:
        MsaError: If the folder holds no finished run.
    """
    path = Path(folder) / CARD_FILE
    text = card_of(folder, repo_id)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def card_of(folder: str | os.PathLike[str], repo_id: str | None = None) -> str:
    """Render the card of a finished run; arguments and errors as in `write_card`."""
    run = read_run(folder)
    if not (Path(folder) / "config.json").is_file():
        raise MsaError(f"{folder} has no config.json, so it is not a finished run; let the training finish.")
    try:
        config = METHODS[run["method"]].config_class.from_pretrained(folder)
    except (OSError, StrictDataclassError, TypeError, ValueError) as error:
        raise MsaError(
            f"The configuration in {folder} cannot be read ({reason(error)}); copy or train it again."
        ) from error
    facts, subsets = load_facts(run["method"]), find_subset_results(folder, run)
    return render_card(run, find_results(folder, run), facts, config, repo_id, subsets)


def _last_part(path: str) -> str:
    """The file or folder name that a path ends with."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _dataset_facts(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data set: of a benchmark by its name, and what the run recorded."""
    from hf_msa.data.schema import DATASETS

    known = DATASETS.get(recorded["name"])
    facts = {**(known.facts.to_dict() if known else {}), **recorded}
    return {**UNKNOWN_DATASET, **{key: value for key, value in facts.items() if value not in (None, "", "unknown")}}


def _card_data(
    run: Mapping[str, Any],
    results: Results | None,
    dataset: Mapping[str, Any],
    base_model: str | None,
    repo_id: str | None,
    title: str,
) -> Any:
    """Build the front matter: `huggingface_hub.ModelCardData` with one `EvalResult` per metric."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        language=dataset["language"],
        license=LICENSE,
        library_name="transformers",
        tags=["hf_msa", "multimodal-sentiment-analysis", "missing-modalities", run["method"], *_generated(dataset)],
        datasets=[dataset["name"]],
        base_model=base_model,
        metrics=list(dict.fromkeys(_hub_metric(name) for name in (result_metrics(results) if results else ())))
        or None,
        model_name=repo_id.split("/")[-1] if repo_id else title,
        eval_results=_eval_results(results) if results else None,
    )


def _generated(dataset: Mapping[str, Any]) -> list[str]:
    """The tag of models that were trained on generated data."""
    return ["generated"] if dataset["name"] == SAMPLE_CORPUS else []


def _eval_results(results: Results) -> list[Any]:
    """The mean over rates and seeds of each metric, as plain numbers, with how they were measured."""
    from huggingface_hub import EvalResult

    dataset, protocol = results["dataset"], results["protocol"]
    subset = dataset.get("subset")
    over = f", {subset_text(subset)}" if subset else ""
    over += " (mean over the missing rates)" if len(protocol["rates"]) > 1 else ""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Multimodal sentiment analysis",
            dataset_type=dataset["name"],
            dataset_name=data_text(dataset["name"]),
            dataset_split=dataset["split"],
            dataset_args={
                "protocol": protocol["name"],
                "rates": protocol["rates"],
                "training_seeds": _training_seeds(results),
                "mask_seeds": protocol["mask_seeds"],
                **({"subset": subset} if subset else {}),
            },
            metric_type=_hub_metric(name),
            metric_name=METRICS[name].pretty + over,
            metric_value=round(float(estimate["mean"]), 6),
        )
        for name in result_metrics(results)
        if (estimate := results["mean_over_rates"][name])["mean"] is not None
    ]


def _about_results(results: Results) -> str:
    """How the numbers were measured, in two sentences."""
    from hf_msa.data.missing import PROTOCOLS

    name = results["protocol"]["name"]
    meaning = (inspect.getdoc(PROTOCOLS[name]) or "").split("\n")[0] if name in PROTOCOLS else ""
    masks = ", ".join(str(seed) for seed in results["protocol"]["mask_seeds"] if seed is not None)
    oracle = (
        "These are upper bounds: predicting needed the true labels or other inputs that no user has."
        if results["oracle"]
        else ""
    )
    return " ".join(
        part for part in (f"Protocol `{name}`:", meaning, masks and f"Mask seeds {masks}.", oracle) if part
    )


def _is_mean(results: Results) -> bool:
    """Whether a result is of several training seeds."""
    return len(_training_seeds(results)) > 1


def _own_results(run: Mapping[str, Any], results: Results) -> str:
    """The means of this one checkpoint."""
    own = [one["metrics"] for one in results["runs"] if one["training_seed"] == run["seed"]]
    means = []
    for name in result_metrics(results):
        values = [metrics.get(name) for metrics in own]
        mean = None if None in values else sum(values) / len(values)
        means.append(f"{METRICS[name].pretty} {format_value(name, mean)}")
    return ", ".join(means)


def _selections(run: Mapping[str, Any], results: Results | None) -> list[str]:
    """One sentence per training seed on which checkpoint was taken and why."""
    if results and len(results["selection"]) == len(_training_seeds(results)):
        chosen = dict(zip(_training_seeds(results), results["selection"], strict=True))
    else:
        chosen = {run["seed"]: run.get("selection")}
    return [_selection_text(seed, selection) for seed, selection in chosen.items() if selection]


def _selection_text(seed: int, selection: Mapping[str, Any]) -> str:
    metric = selection["metric"].removeprefix("eval_")
    rule = "the last checkpoint, none chosen; its" if selection.get("rule") == "last" else "best"
    text = f"Training seed {seed}: {rule} {METRICS[metric].pretty if metric in METRICS else metric} on the "
    text += f"**{selection['split']}** split"
    rate = selection.get("rate", (selection.get("protocol") or {}).get("rate"))
    if rate is not None:
        text += f" at missing rate {rate:g}"
    if selection.get("repeats"):
        text += f", mask draws averaged: {selection['repeats']}"
    found = [f"stage {selection['stage']}"] if selection.get("stage") is not None else []
    found += [f"{key} {selection[key]:g}" for key in ("epoch", "step") if selection.get(key) is not None]
    if selection.get("value") is not None:
        found.append(f"value {selection['value']:.4f}")
    return text + (f" ({', '.join(found)})." if found else ".")


def _stage_text(stage: Mapping[str, Any]) -> str:
    parts = []
    if stage.get("epochs") is not None:
        parts.append(f"{stage['epochs']:g} epochs")
    if stage.get("batch") is not None:
        parts.append(f"batches of {stage['batch']['global']}")
    if stage.get("seconds") is not None:
        parts.append(f"{stage['seconds']:.0f} s")
    return ", ".join(parts) or "finished"


def _training_seeds(results: Results) -> list[Any]:
    return list(dict.fromkeys(one["training_seed"] for one in results["runs"]))


def _hub_metric(name: str) -> str:
    return next((hub for part, hub in _HUB_METRICS.items() if part in name), name)


def _hub_name(text_model: str | None) -> str | None:
    """The text model where it is `owner/name` on the Hub; a folder on this machine is nobody else's business."""
    is_name = text_model is not None and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text_model) is not None
    return text_model if is_name and not Path(str(text_model)).exists() else None
