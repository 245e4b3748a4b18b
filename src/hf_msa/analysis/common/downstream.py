"""Worth of a completed data set to models that are trained on it: a recipe on four versions of it, tested on complete data.

The versions differ in nothing but the audio and vision features that `hf-msa impute` has generated in training and
validation rows: they are the true ones (complete), left missing, the mean per position of the training rows that have the
modality, or the generated ones. A transcript that was dropped is missing in all but the complete version. Nothing is
dropped in training beside that, and the test split is that of the complete data, so what is compared is what was learned.

A generator is worth its while where models that were trained on what it made are better than those that were trained on what
was left, and than those that were trained on means: those cost nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from hf_msa.analysis.common.position_means import PositionMeans
from hf_msa.analysis.estimates import Estimate, Floats, bars
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.missing import conditions
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import GENERATED, ID, PRESENCE
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import checkpoint_rows, load_checkpoint
from hf_msa.evaluation.metrics import METRICS, regression_metrics, resampled_metrics
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.evaluation.sweep import sweep
from hf_msa.figures import label_lines
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.training.recipes import Recipe, load_recipe
from hf_msa.training.stages import run_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETE, MISSING, MEAN, MADE = "complete", "left missing", "mean per position", "generated"
VERSIONS = (COMPLETE, MISSING, MEAN, MADE)
"""What a model was trained on."""

# In training nothing is dropped: the data says what is missing.
_AS_IT_IS = ("missing.train={name: complete}", "missing.validation={name: complete}", "missing.selection_repeats=1")

Splits = Mapping[str, datasets.Dataset]


class _RowsOfMeans(MsaRows):
    """Rows in which means stand for what was generated, of the same lengths."""

    def __init__(self, means: Mapping[str, PositionMeans], *args: Any) -> None:
        super().__init__(*args)
        self._means = means

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        for name, mean in self._means.items():
            if row[GENERATED[name]]:
                row[name] = mean(len(row[name])).astype(np.float32)
        return row


@dataclass(frozen=True)
class Versions:
    """Training and validation splits of a data set that was completed.

    Attributes:
        made: As it was completed.
        left: With what was generated marked as missing.
        means: Modality -> the mean per position of training rows that have it.
    """

    made: Splits
    left: Splits
    means: Mapping[str, PositionMeans]

    def rows(
        self, version: str, tokenizer: "PreTrainedTokenizerBase | None" = None, longest: int | None = None
    ) -> dict[str, MsaRows]:
        """The rows of a version by split; see `MsaRows`."""
        if version == MEAN:
            return {
                split: _RowsOfMeans(self.means, dataset, split, tokenizer, longest)
                for split, dataset in self.made.items()
            }
        splits = {MISSING: self.left, MADE: self.made}[version]
        return {split: MsaRows(dataset, split, tokenizer, longest) for split, dataset in splits.items()}


def versions_of(data: str, completed: str) -> Versions:
    """Read all versions but the complete one.

    Args:
        data: Folder or Hub name of the complete data set.
        completed: That of the one that was completed from what was left of it.

    Raises:
        MsaError: If nothing was generated in the training split, or the rows are not those of the complete data.
    """
    made = {split: load_split(completed, split) for split in ("train", "validation")}
    for split, dataset in made.items():
        if dataset[ID][:] != load_split(data, split)[ID][:]:
            raise MsaError(
                f"The rows of {split!r} in {completed!r} are not those of {data!r}; give the data that it was made from."
            )
    names = [name for name, column in GENERATED.items() if column in made["train"].column_names]
    if not any(any(made["train"][GENERATED[name]]) for name in names):
        raise MsaError(
            f"No training row of {completed!r} has generated features; give a data set that `hf-msa impute` wrote."
        )
    left = {split: _without_generated(dataset, names) for split, dataset in made.items()}
    means = {name: PositionMeans() for name in names}
    for members in MsaRows(left["train"], "train").batches():
        for row, name in itertools.product(members, names):
            if row[PRESENCE[name]]:
                means[name].add(row[name])
    for name in names:
        if means[name].is_empty:
            raise MsaError(f"{name} was generated in all training rows of {completed!r}, so there is no mean of it.")
    return Versions(made, left, means)


def _without_generated(dataset: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset:
    for name in names:
        there = np.array(dataset[PRESENCE[name]]) & ~np.array(dataset[GENERATED[name]])
        dataset = dataset.remove_columns(PRESENCE[name]).add_column(PRESENCE[name], there.tolist())
    return dataset


def train_and_predict(
    recipe: Recipe, data: str, versions: Versions, seeds: Sequence[int], folder: Path
) -> dict[str, Floats]:
    """Train a recipe on all versions, and predict the complete test split: version -> scores (S, N).

    Args:
        recipe: What to train.
        data: The complete data set.
        versions: See `versions_of`.
        seeds: S training seeds.
        folder: Keeps the runs; those that are finished are not repeated.
    """
    test = load_split(data, "test")
    found: dict[str, list[Floats]] = {version: [] for version in VERSIONS}
    tokenised: dict[str, dict[str, MsaRows]] = {}
    for seed in seeds:
        for version in VERSIONS:
            place = folder / version.replace(" ", "_")
            context = run_recipe(recipe, data, place, seed, rows=tokenised.get(version))
            if not tokenised:
                processor = context.processor
                tokenised = {COMPLETE: context.rows} | {
                    other: versions.rows(other, processor.tokenizer, processor.text_max_length)
                    for other in VERSIONS[1:]
                }
            name = str(context.folder)
            model, processor = load_checkpoint(name)
            rows = checkpoint_rows(model, processor, name, test, "test")
            parts, _ = sweep(model, processor, rows, conditions("complete", model.modalities))
            found[version].append(np.asarray(parts[0]["prediction"], dtype=np.float64))
    return {version: np.stack(scores) for version, scores in found.items()}


@tool("downstream", "what a completed data set is worth to models trained on it, beside what was left, means, and all")
def analyze_downstream(
    report: Report, *, data: str, completed: str, recipe: Sequence[str], seeds: Sequence[int] = (1111, 1112, 1113)
) -> None:
    """Train recipes on a completed data set and on what stands beside it, and test them on complete data.

    Args:
        report: Takes what is found.
        data: Folder or Hub name of the complete data set, with a test split.
        completed: The one that `hf-msa impute --protocol ...` wrote from it.
        recipe: What to train, e.g. ridge/mosi late_fusion/mosi.
        seeds: Training seeds.
    """
    facts = dataset_facts(data)
    recipes = {name: load_recipe(name, assignments=_AS_IT_IS) for name in dict.fromkeys(recipe)}
    versions = versions_of(data, completed)
    folder = report.folder / "runs"
    scores = {
        name: train_and_predict(settings, data, versions, seeds, folder / settings.method / Path(name).stem)
        for name, settings in recipes.items()
    }
    test = MsaRows(load_split(data, "test"), "test")
    report.csv("downstream.csv", seed_rows(scores, seeds, test.labels, facts.family))
    table = score_summary(scores, test.labels, facts.family)
    train = versions.made["train"]
    shares = [
        f"{name} in {100 * np.mean(train[column]):.0f} %"
        for name, column in GENERATED.items()
        if column in train.column_names
    ]
    report.summary(
        "downstream.md",
        "What a completed data set is worth",
        f"{facts.name}: {len(train)} training rows, of which {' and '.join(shares)} were generated; {len(test)} complete "
        f"test rows; {counted(len(seeds), 'training seed')}. ± is the standard deviation over training seeds, brackets are "
        "95 % bootstrap intervals over test rows, and those of differences are paired. The generator may have been trained "
        "on the complete training rows: if so, it has seen what it completes, and new data will gain less.",
        table,
    )
    report.figure("downstream", _draw, scores, test.labels, facts.family)


def seed_rows(
    scores: Mapping[str, Mapping[str, Floats]], seeds: Sequence[int], labels: Any, family: LabelFamily
) -> list[dict[str, Any]]:
    """All metrics on the test split, one row per recipe, version and training seed.

    Args:
        scores: Recipe -> version -> scores (S, N).
        seeds: S training seeds.
        labels: (N,).
        family: The label family.
    """
    return [
        {"recipe": recipe, "trained on": version, "training seed": seed, "n": len(labels)}
        | regression_metrics(of_version[place], labels, family)
        for recipe, of_recipe in scores.items()
        for version, of_version in of_recipe.items()
        for place, seed in enumerate(seeds)
    ]


def _estimates(of_recipe: Mapping[str, Floats], labels: Any, family: LabelFamily, metric: str) -> dict[str, Estimate]:
    counts = all_and_resampled(len(labels))
    return {
        version: Estimate.of([resampled_metrics(own, labels, family, counts)[metric] for own in seeds])
        for version, seeds in of_recipe.items()
    }


def score_summary(
    scores: Mapping[str, Mapping[str, Floats]], labels: Any, family: LabelFamily
) -> list[dict[str, Any]]:
    """Error and accuracy over all seeds, and differences of the error to that of what was left and of means.

    Arguments as of `seed_rows`.
    """
    rows = []
    for recipe, of_recipe in scores.items():
        error, accuracy = (_estimates(of_recipe, labels, family, metric) for metric in ("mae", family.main_accuracy))
        for version in of_recipe:
            row: dict[str, Any] = {"recipe": recipe, "trained on": version, METRICS["mae"].pretty: error[version]}
            row[METRICS[family.main_accuracy].pretty] = accuracy[version]
            for other in (MISSING, MEAN):
                is_other = version != other
                difference = (error[version] - error[other]).difference_text() if is_other else None
                row[f"{METRICS['mae'].pretty}, minus that of {other}"] = difference
            rows.append(row)
    return rows


def _draw(figure: Figure, scores: Mapping[str, Mapping[str, Floats]], labels: Any, family: LabelFamily) -> None:
    figure.set_size_inches(2.6 + 1.8 * len(scores), 2.8)
    panel = figure.subplots()
    width = 0.8 / len(VERSIONS)
    for number, version in enumerate(VERSIONS):
        estimates = [_estimates(of_recipe, labels, family, "mae")[version] for of_recipe in scores.values()]
        means, errors = bars(estimates)
        places = np.arange(len(scores)) + (number - (len(VERSIONS) - 1) / 2) * width
        panel.bar(places, means, width, yerr=errors, error_kw={"linewidth": 0.7}, label=version)
    panel.set_xticks(range(len(scores)), [label_lines(name) for name in scores])
    panel.set_ylabel(f"{METRICS['mae'].pretty} on complete test rows")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
