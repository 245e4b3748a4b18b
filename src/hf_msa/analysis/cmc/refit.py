"""What CMC's router could learn: the experts stay as they are, and routers are fitted anew to clips that no expert has seen.

Experts know the clips that they were trained on better than others, one modality's expert more so than another's. A router
that learns from the same clips learns that, too. So routers of each kind are fitted twice, to the training split and to half
of the clips of another split, and judged on the other half of these: constant weights (`StaticRouter`), the published router
(`SumRouter`) and the one that reads the modalities side by side (`RowsRouter`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Estimate, bars
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, resampled_metrics
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.modeling_cmc import CmcForSentimentAnalysis, RowsRouter, StaticRouter, SumRouter, class_score
from hf_msa.models.processing_msa import MsaProcessor

ROUTERS: Mapping[str, Callable[[CmcConfig], nn.Module]] = {
    "constant": lambda config: StaticRouter(len(config.modalities)),
    "sum": SumRouter,
    "rows": RowsRouter,
}
"""The routers that are fitted."""

_METRIC = "class_has0_acc2"
_STEPS, _CHECKED_EVERY, _BATCH, _RATE, _DECAY = 600, 20, 256, 3e-3, 1e-2
_KEPT_BACK = 5


@dataclass(frozen=True)
class Experts:
    """What a router reads and weighs.

    Attributes:
        mixed: The mixed vectors `(N, modalities, width)`.
        logits: The experts' logits `(N, modalities, classes)`.
        labels: True scores `(N,)`.
        classes: True classes `(N,)`.
        weights: Weights of the run's own router `(N, modalities)`.
    """

    mixed: Tensor
    logits: Tensor
    labels: Tensor
    classes: Tensor
    weights: Tensor

    def at(self, places: NDArray[np.int64]) -> "Experts":
        """Some of the clips."""
        chosen = torch.from_numpy(places)
        return Experts(*(part[chosen] for part in vars(self).values()))


@torch.no_grad()
def read_experts(model: CmcForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows) -> Experts:
    """Run a model on all complete rows, in their order."""
    parts, order = [], []
    for batch in masked_batches(model, processor, rows, [CompleteProtocol()], "experts"):
        outputs = model(**batch.inputs)
        labels = batch.complete["labels"].flatten()
        found = (model.fuse(outputs.embeddings), outputs.unimodal_logits, labels, model.label_classes(labels))
        parts.append([part.cpu() for part in (*found, outputs.router_weights)])
        order.append(batch.places)
    back = torch.from_numpy(np.concatenate(order)).argsort()
    return Experts(*(torch.cat(part)[back] for part in zip(*parts, strict=True)))


def fit(router: nn.Module, experts: Experts, generator: torch.Generator) -> nn.Module:
    """Fit a router to the cross entropy of the class; the experts stay as they are.

    Every fifth clip is kept back, and the weights are kept that do best on those.

    Args:
        router: Changed in place.
        experts: Of the clips that it is fitted to.
        generator: Draws the batches.
    """
    places = torch.arange(len(experts.labels))
    fitted, checked = (
        experts.at(places[kept].numpy()) for kept in (places % _KEPT_BACK > 0, places % _KEPT_BACK == 0)
    )
    optimizer = torch.optim.AdamW(router.parameters(), lr=_RATE, weight_decay=_DECAY)
    best, kept = float("inf"), router.state_dict()
    for step in range(_STEPS):
        if step % _CHECKED_EVERY == 0:
            with torch.no_grad():
                value = _loss(router, checked).item()
            if value < best:
                best, kept = value, {name: tensor.clone() for name, tensor in router.state_dict().items()}
        drawn = torch.randint(len(fitted.labels), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        _loss(router, fitted.at(drawn.numpy())).backward()
        optimizer.step()
    router.load_state_dict(kept)
    return router


def _loss(router: nn.Module, experts: Experts) -> Tensor:
    return F.cross_entropy(_weighed(router(experts.mixed).softmax(dim=-1), experts), experts.classes)


def _weighed(weights: Tensor, experts: Experts) -> Tensor:
    return (weights.unsqueeze(-1) * experts.logits).sum(dim=1)


def accuracy(logits: Tensor, experts: Experts, config: CmcConfig) -> list[float]:
    """Class Has0 Acc-2 of class logits `(N, classes)`, over all clips and each resample of them."""
    scores, counts = class_score(logits, config.family).squeeze(-1).double().numpy(), all_and_resampled(len(logits))
    labels = experts.labels.double().numpy()
    return list(resampled_metrics(scores, labels, config.family, counts, logits.double().numpy())[_METRIC])


@tool("refit", "what a router could learn from clips that the experts were not trained on", methods=("cmc",))
def analyze_refit(runs: Sequence[str], report: Report, *, data: str, split: str = "test") -> None:
    """Fit routers anew to the experts of finished runs, on clips that these were trained on and on others.

    Args:
        runs: CMC run folders.
        report: Takes what is found.
        data: Folder or Hub name of the prepared data set that they were trained on.
        split: The split that the experts have not seen: half of it is fitted to, half of it is judged.

    Raises:
        MsaError: If a run or the data will not do.
    """
    if split == "train":
        raise MsaError("--split train is what the experts were trained on; give another split.")
    found = find_runs(runs, "cmc")
    rows = {name: found[0].rows(data, name) for name in ("train", split)}
    seen: list[dict[str, list[list[float]]]] = []
    refitted: list[dict[tuple[str, str], list[float]]] = []
    mean_weights: list[dict[tuple[str, str], list[float]]] = []
    modalities: tuple[str, ...] = ()
    for run in tqdm(found, desc="refit", disable=None, leave=False):
        loaded, processor = run.load(rows[split])
        model = cast(CmcForSentimentAnalysis, loaded)
        modalities = model.config.modalities
        experts = {name: read_experts(model, processor, each) for name, each in rows.items()}
        seen.append(
            {
                name: [accuracy(each.logits[:, place], each, model.config) for place in range(len(modalities))]
                for name, each in experts.items()
            }
        )
        order = np.random.default_rng(0).permutation(len(rows[split]))
        halves = [experts[split].at(part) for part in np.array_split(order, 2)]
        sources, judged = {"train": experts["train"], f"half of {split}": halves[0]}, halves[1]
        own = {
            ("as trained", "train"): judged.weights,
            ("even", "-"): torch.ones_like(judged.weights) / len(modalities),
        }
        for kind, make in ROUTERS.items():
            for source, given in sources.items():
                torch.manual_seed(run.seed)
                router = fit(make(model.config), given, torch.Generator().manual_seed(run.seed))
                with torch.no_grad():
                    own[kind, source] = router(judged.mixed).softmax(dim=-1)
        refitted.append({key: accuracy(_weighed(own[key], judged), judged, model.config) for key in own})
        mean_weights.append({key: own[key].mean(dim=0).tolist() for key in own})
    report.summary(
        "refit.md",
        "Routers fitted anew",
        f"{found[0].name}, {counted(len(found), 'training seed')}, {METRICS[_METRIC].pretty} on complete data. First the "
        "experts by themselves, on clips that they were trained on and on others. ± is the standard deviation over training "
        "seeds, brackets hold 95 % bootstrap intervals over samples.",
        [
            {"expert": modality} | {name: Estimate.of([own[name][place] for own in seen]) for name in rows}
            for place, modality in enumerate(modalities)
        ],
    )
    estimates = {key: Estimate.of([own[key] for own in refitted]) for key in refitted[0]}
    name = METRICS[_METRIC].pretty
    report.csv("refit.csv", [{"router": k, "fitted to": s, **each.cells(name)} for (k, s), each in estimates.items()])
    report.section(
        "What routers learn of them",
        f"The experts are those of the runs, on half of {split}. `constant` are learned weights that are the same for all "
        "clips, `sum` is the published router, `rows` reads the modalities side by side; weights are means over clips and "
        "seeds.",
        [
            {
                "router": kind,
                "fitted to": source,
                name: estimate,
                "minus constant": (estimate - estimates["constant", source]).difference_text()
                if ("constant", source) in estimates and kind != "constant"
                else None,
            }
            | {
                f"weight of {modality}": float(np.mean([own[kind, source][place] for own in mean_weights]))
                for place, modality in enumerate(modalities)
            }
            for (kind, source), estimate in estimates.items()
        ],
    )
    report.figure("refit", _draw, estimates)


def _draw(figure: Figure, estimates: Mapping[tuple[str, str], Estimate]) -> None:
    figure.set_size_inches(5, 0.8 + 0.32 * len(estimates))
    panel = figure.subplots()
    means, errors = bars([estimate * 100 for estimate in estimates.values()])
    names = [f"{kind}, {source}" if source != "-" else kind for kind, source in estimates]
    panel.errorbar(means, range(len(names)), xerr=errors, fmt="o", markersize=4, capsize=2)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel(f"{METRICS[_METRIC].pretty} (%), 95 % interval over samples")
