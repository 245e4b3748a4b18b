"""Completing a data set: what samples lack of sound and pictures is generated, and is marked so beside what they have.

Needs a model with `generate_missing`, as OMG-Agent is. Missing text is generated as states of a text encoder, which nothing
turns back into words: the transcript stays empty.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ._version import __version__
from .data.collator import MsaCollator
from .data.loading import dataset_facts, load_msa, load_split
from .data.missing import CompleteProtocol, MissingProtocol, protocol_from_dict
from .data.prepare import check_output, write_dataset
from .data.rows import MsaRows
from .data.schema import ANNOTATION, GENERATED, PRESENCE, TEXT, WORDS, DatasetFacts, msa_features
from .data.validation import ValidationReport
from .errors import MsaError, as_msa_errors
from .evaluation.checkpoints import checkpoint_rows, find_model, load_checkpoint, method_of, own_fields
from .files import write_json
from .methods import METHODS
from .models.modeling_msa import MsaPreTrainedModel
from .models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS
from .models.omg_batches import GeneratedBatch
from .models.omg_observation import has_modality
from .models.processing_msa import MsaProcessor

IMPUTATION_FILE = "imputation.json"
SPREAD = {modality: f"{modality}_spread" for modality in FEATURE_MODALITIES}
"""Modality name -> the column that says how far several draws of the generated features differ."""
PLAN = "plan"
EVIDENCE = "evidence"

_WHOLE_PROTOCOLS = ("modality", "fixed", "pattern")


def impute(
    model: str,
    data: str,
    output: str,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    rate: float | None = None,
    available: Sequence[str] | None = None,
    mask_seed: int | None = None,
    batch_size: int = 64,
    media: str | None = None,
    changes: Mapping[str, Any] | None = None,
    steps: int | None = None,
    draws: int | None = None,
    overwrite: bool = False,
) -> ValidationReport:
    """Write a data set anew in which audio and vision features that samples lack are generated.

    The new one has the columns of `msa_features`, with `<modality>_present` true where features were generated, and beside
    them `<modality>_generated`, the `plan` and the ids and weights of the `evidence` that it was generated from; of several
    draws their mean, and in `<modality>_spread` how far they differ: their deviation, mean over frames and features, where 1
    is that of the training data. Generated features are in the data's own units. Samples are streamed; the folder gets its
    name when everything is in it.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.
        data: Folder or Hub name of a prepared data set. It may lack a modality that the model reads; all samples get it.
        output: The folder to write.
        splits: Which splits to complete; default: all.
        protocol: Drop whole modalities first, and generate them, for studies: ``"modality"`` (with `rate`), ``"fixed"``
            (with `available`) or ``"pattern"``. A transcript that is dropped is empty afterwards. None drops nothing.
        rate, available, mask_seed: Missing rate, modalities that stay, and seed of the masks, of the protocol.
        batch_size: Samples that are completed together.
        media: Folder with the clips' recordings, see `MediaFolder`; for a language model that plans.
        changes: Values of the model's configuration to be used instead of its own, e.g. another `generation_seed`.
        steps, draws: Short for `num_inference_steps` and `num_samples` among them.
        overwrite: Whether an existing folder may be replaced, which happens only once the new one is complete.

    Returns:
        What was found in the new data set; its notes count what was generated, and compare its variance with the data's.

    Raises:
        MsaError: If model, data or an option will not do, nothing is missing, or the output exists; `output` is then as it
            was.

    Example:
        ```python
        from hf_msa import impute

        report = impute("runs/omg", "data/sample", "data/complete", protocol="fixed", available=["text", "audio"])
        ```
    """
    check_output(Path(output), overwrite)
    if Path(output).resolve() == Path(data).resolve():
        raise MsaError(f"{output} is the data that is to be completed; give another --output.")
    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    dropping = _protocol(protocol, rate, available, mask_seed)
    facts = dataset_facts(data)
    name = find_model(model)
    short = {"num_inference_steps": steps, "num_samples": draws}
    given = {**(changes or {}), **{field: value for field, value in short.items() if value is not None}}
    network, processor = load_checkpoint(name, given)
    if not hasattr(network, "generate_missing"):
        able = [method.name for method in METHODS.values() if hasattr(method.model_class, "generate_missing")]
        raise MsaError(
            f"{model!r} is a model of the method {method_of(network)!r}, which generates no features; give one of "
            f"{', '.join(able)}."
        )
    rows = {}
    for split in load_msa(data) if splits is None else dict.fromkeys(splits):
        dataset = load_split(data, split)
        if any(column in dataset.column_names for column in GENERATED.values()):
            raise MsaError(f"{data!r} was itself made by imputation; give the data that it was made from.")
        rows[split] = checkpoint_rows(network, processor, name, dataset, split, media, may_lack=True)
    source = _Completed(network, processor, rows, facts, dropping, batch_size)
    about = {
        "model": Path(name).name if Path(name).is_dir() else name,
        "method": method_of(network),
        **_identity(name, network),
        "protocol": None if dropping is None else dropping.to_dict(),
        "dataset": facts.name,
        "hf_msa": __version__,
        "config": own_fields(network.config),
    }

    def add(folder: Path) -> None:
        if not source.has_generated:
            raise MsaError(
                f"No sample of {data!r} lacks what {model!r} generates, so there is nothing to complete; use the data as it "
                "is, or drop modalities first with --protocol."
            )
        write_json(folder / IMPUTATION_FILE, {**about, "generated": source.counts(), "variance": source.variances()})
        card = folder / "README.md"
        card.write_text(card.read_text(encoding="utf-8") + "\n" + _card(about), encoding="utf-8")

    new = dataclasses.replace(facts, name=f"{facts.name}_imputed")
    return write_dataset(source, new, output, overwrite=overwrite, extra=add)


def _protocol(
    name: str | None, rate: float | None, available: Sequence[str] | None, seed: int | None
) -> MissingProtocol | None:
    fields = {"rate": rate, "available": available, "seed": seed}
    given = {field: value for field, value in fields.items() if value is not None}
    if name is None and not given:
        return None
    if name is None:
        raise MsaError(f"--{next(iter(given))} belongs to a --protocol; give --protocol modality, fixed or pattern.")
    if name not in _WHOLE_PROTOCOLS:
        raise MsaError(
            f"--protocol is {name!r}; give modality, fixed or pattern, which drop whole modalities, or leave it out to "
            "complete what the data lacks."
        )
    return protocol_from_dict({"name": name, **given})


def _identity(name: str, network: MsaPreTrainedModel) -> dict[str, str]:
    """The commit of a model on the Hub; a hash of the weights of one in a folder."""
    if not Path(name).is_dir():
        return {"revision": str(network.config._commit_hash)}
    digest = hashlib.sha256()
    for file in sorted(Path(name).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return {"weights_sha256": digest.hexdigest()}


class _Moments:
    """Mean and variance of each feature over all frames that are added."""

    def __init__(self, width: int) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(width), np.zeros(width)

    def add(self, frames: np.ndarray) -> None:
        """Add frames `(T, width)`, by Chan's way of joining two groups."""
        values = frames.astype(np.float64)
        difference, total = values.mean(axis=0) - self._mean, self._count + len(values)
        self._squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0)
        self._squares += difference**2 * (self._count * len(values) / total)
        self._mean += difference * (len(values) / total)
        self._count = total

    @property
    def variance(self) -> np.ndarray:
        """Of each feature `(width,)`."""
        return self._squares / max(self._count, 1)


class _Completed:
    """The completed rows as a `RowSource`, which data set builders read."""

    aligned = False

    def __init__(
        self,
        network: Any,
        processor: MsaProcessor,
        rows: Mapping[str, MsaRows],
        facts: DatasetFacts,
        protocol: MissingProtocol | None,
        batch_size: int,
    ) -> None:
        self._network, self._processor, self._rows, self._batch_size = network, processor, rows, batch_size
        self._protocol = protocol or CompleteProtocol()
        self._generated = {split: Counter[str]() for split in rows}
        self._moments: dict[tuple[str, bool], _Moments] = {}
        self.notes: list[str] = []
        self.description = f"{facts.source}, completed by {method_of(network)}"
        self.splits = list(rows)
        first = next(iter(rows.values()))
        example = first[0]
        self._read = network.config.modalities[1:]
        widths = {name: getattr(network.config, f"{name}_dim") for name in self._read}
        widths |= {name: example[name].shape[1] for name in first.lengths if name != TEXT}
        self.widths: dict[str, int] = {name: widths[name] for name in FEATURE_MODALITIES if name in widths}
        names = {"audio": facts.audio_features, "vision": facts.vision_features}
        self.feature_names = {name: known for name, known in names.items() if known is not None}
        self._schema = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=all(column in example for column in UNIMODAL_LABEL_KEYS.values()),
            annotation=ANNOTATION in example,
            presence=True,
            words=WORDS in example,
        )
        text, number, flag = (datasets.Value(kind) for kind in ("string", "float32", "bool"))
        plan = {"entity": text, "action": text, "sentiment": text, "is_fallback": flag}
        evidence = datasets.List({"id": text, "weight": number})
        generated = {GENERATED[name]: flag for name in self.widths}
        if network.config.num_samples > 1:
            generated |= {SPREAD[name]: number for name in self.widths}
        self.features = datasets.Features({**self._schema, **generated, PLAN: plan, EVIDENCE: evidence})

    def counts(self) -> dict[str, dict[str, int]]:
        """Per split its samples, and of how many each modality was generated, as far as rows were asked for."""
        return {
            split: {"samples": len(rows), **{name: self._generated[split][name] for name in self.widths}}
            for split, rows in self._rows.items()
        }

    @property
    def has_generated(self) -> bool:
        """Whether anything was, of the rows that were asked for."""
        return any(self._generated[split][name] for split in self._rows for name in self.widths)

    def variances(self) -> dict[str, float | None]:
        """Of each modality the variance of generated features over that of the data's own, median over the features.

        Below 1 what is generated varies less than what was observed, as means do. None where one of both is not there.
        """
        found: dict[str, float | None] = {}
        for name in self.widths:
            generated, own = (self._moments.get((name, made)) for made in (True, False))
            if generated is None or own is None:
                found[name] = None
                continue
            known = own.variance > 0
            ratios = generated.variance[known] / own.variance[known]
            found[name] = float(np.median(ratios)) if len(ratios) else None
        return found

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._rows[split])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        rows = self._rows[split]
        collator = MsaCollator(self._processor, self._protocol.bind(rows.ids), split=split)
        for members in rows.batches(self._batch_size):
            masks = collator.masks(members).masks
            lacking = [
                [
                    name
                    for name in (TEXT, *self.widths)
                    if not has_modality(member, name) or (name in masks and masks[name][place].any())
                ]
                for place, member in enumerate(members)
            ]
            wanted = [place for place, names in enumerate(lacking) if set(names) & set(self._read)]
            made = self._generate([members[place] for place in wanted], collator) if wanted else []
            found = dict(zip(wanted, made, strict=True))
            for place, member in enumerate(members):
                row = self._row(member, lacking[place], found.get(place, {}))
                self._generated[split].update(name for name in self.widths if row[GENERATED[name]])
                for name in self.widths:
                    if row[PRESENCE[name]]:
                        key = name, bool(row[GENERATED[name]])
                        self._moments.setdefault(key, _Moments(self.widths[name])).add(np.asarray(row[name]))
                yield row
        self.notes += [
            f"{name} was generated in {self._generated[split][name]} of {len(rows)} samples of {split!r}."
            for name in self.widths
        ]
        if split == self.splits[-1]:
            self.notes += [
                f"{name}: what was generated has {ratio:.0%} of the variance of the data's own features (their median)."
                for name, ratio in self.variances().items()
                if ratio is not None
            ]

    def _row(self, member: Mapping[str, Any], lacking: Sequence[str], made: Mapping[str, Any]) -> dict[str, Any]:
        row = {column: member[column] for column in self._schema if column in member}
        for name, width in self.widths.items():
            is_generated = name in lacking and name in made
            row |= {PRESENCE[name]: is_generated or name not in lacking, GENERATED[name]: is_generated}
            if SPREAD[name] in self.features:
                row[SPREAD[name]] = made.get(SPREAD[name]) if is_generated else None
            if name in lacking:
                row[name] = made.get(name, np.zeros((1, width), np.float32))
        if TEXT in lacking:
            row[TEXT] = ""
        return {**row, PLAN: made.get(PLAN), EVIDENCE: made.get(EVIDENCE, [])}

    def _generate(self, members: Sequence[Mapping[str, Any]], collator: MsaCollator) -> list[dict[str, Any]]:
        """Features of what each sample lacks, in the data's units, with plan and evidence."""
        batch = {key: value.to(self._network.device) for key, value in collator(members).items()}
        with as_msa_errors(), torch.inference_mode():
            made: GeneratedBatch = self._network.generate_missing(batch, members, self._processor)
        found = []
        for place, ids in enumerate(made.evidence_ids):
            entry: dict[str, Any] = {}
            for name in self._read:
                mask = made.masks[name][place]
                if mask.any():
                    frames = self._in_data_units(name, made.values[name][place][mask].float().cpu().numpy())
                    entry[name] = frames
                    if self._network.config.missing_length == "observed":
                        # Means of positions stand for the frames of the data's own time base.
                        entry[name] = stretched(frames, int(made.lengths[name][place]))
                    if name in made.spreads:
                        entry[SPREAD[name]] = float(made.spreads[name][place][mask].mean())
            if made.plans is not None:
                choice = made.plans[place]
                entry[PLAN] = {**choice.plan.to_dict(), "is_fallback": choice.is_fallback}
            if made.evidence is not None:
                # What there was no entry for stands behind the others.
                weights = made.evidence.weights[place].tolist()
                entry[EVIDENCE] = [{"id": name, "weight": one} for name, one in zip(ids, weights, strict=False)]
            found.append(entry)
        return found

    def _in_data_units(self, name: str, values: np.ndarray) -> np.ndarray:
        """Undo what the processor does to features."""
        extractor = self._processor.feature_extractor
        mean, std = getattr(extractor, f"{name}_mean"), getattr(extractor, f"{name}_std")
        if mean is None or std is None:
            return values
        return values * np.asarray(std, np.float32) + np.asarray(mean, np.float32)


def stretched(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeat frames `(T, width)` evenly to a length; a shorter one leaves them as they are."""
    return frames[np.arange(length) * len(frames) // length] if length > len(frames) else frames


def _card(about: Mapping[str, Any]) -> str:
    kind, digest = ("revision", "revision") if "revision" in about else ("weights sha256", "weights_sha256")
    dropped = (
        "Nothing was dropped before: what is generated is what the data lacked."
        if about["protocol"] is None
        else f"Before that, whole modalities were dropped by the protocol `{json.dumps(about['protocol'])}`."
    )
    return f"""## What is generated

Features that samples lacked were generated by the model `{about["model"]}` ({METHODS[about["method"]].title}; {kind}
`{about[digest]}`). They are a plausible guess under what was observed, no recording of what was said or shown, and results
on them have to say so. {dropped} `{IMPUTATION_FILE}` has the counts and the model's whole configuration, seeds included.

- `audio_generated`, `vision_generated`: whether the features are generated; `audio_present`, `vision_present` are true then
- `plan`: what the planner took the sample to express; empty where nothing was generated
- `audio_spread`, `vision_spread` (of several draws): how far they differ, 1 is the deviation of the training data
- `evidence`: ids and weights of the samples that were retrieved, best first
- `text`: a missing transcript is empty, as what is generated of text are states of a text encoder
"""
