"""Looking into trained models: the analyses of the papers, each a tool that writes tables, a summary and figures.

`hf-msa analyze TOOL RUN...` and `run_tool` are the same. A tool's module says what it measures and how.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_msa.analysis.cmc.pseudo_labels import analyze_pseudo_labels
from hf_msa.analysis.cmc.router import analyze_router
from hf_msa.analysis.common.consistency_gap import analyze_consistency_gap
from hf_msa.analysis.common.curves import analyze_curves
from hf_msa.analysis.common.error_parts import analyze_error_parts
from hf_msa.analysis.common.risk_coverage import analyze_risk_coverage
from hf_msa.analysis.common.selection import analyze_selection
from hf_msa.analysis.omg.evidence import analyze_evidence
from hf_msa.analysis.omg.imputation import analyze_imputation
from hf_msa.analysis.omg.latency import analyze_latency
from hf_msa.analysis.omg.settings import analyze_settings
from hf_msa.analysis.omg.trace import analyze_trace
from hf_msa.analysis.pglh.prompts import analyze_prompts
from hf_msa.analysis.pglh.reconstruction import analyze_reconstruction
from hf_msa.analysis.tcmr.clues import analyze_clues
from hf_msa.analysis.tcmr.confidence import analyze_confidence
from hf_msa.analysis.tcmr.gradients import analyze_gradients
from hf_msa.analysis.tcmr.quadrants import analyze_quadrants
from hf_msa.analysis.tcmr.upper_bound import analyze_upper_bound
from hf_msa.analysis.uacs.accuracy_cost import analyze_accuracy_cost
from hf_msa.analysis.uacs.routes import analyze_cases, analyze_routes
from hf_msa.analysis.uacs.uncertainty import analyze_uncertainty
from hf_msa.errors import MsaError, unknown_name

__all__ = ["TOOLS", "Tool", "run_tool"]


@dataclass(frozen=True)
class Tool:
    """An analysis.

    Attributes:
        function: Takes the runs, then by name ``output`` and any of its options; returns the paths that it wrote.
        title: What it shows, in one line.
        method: Whose runs it needs; None for runs of any method.
    """

    function: Callable[..., list[Path]]
    title: str
    method: str | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "output")

    @property
    def flags(self) -> tuple[str, ...]:
        """Its options as the command line spells them."""
        return tuple(map(_flag, self.options))

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without ``data``."""
        parameter = inspect.signature(self.function).parameters.get("data")
        return parameter is not None and parameter.default is parameter.empty


TOOLS: dict[str, Tool] = {
    "clues": Tool(analyze_clues, "words whose masking alone flips the polarity classifier to the opposite", "tcmr"),
    "curves": Tool(analyze_curves, "metrics over missing rates, several runs in one figure"),
    "error-parts": Tool(analyze_error_parts, "how much of the error is a common shift, and what it would be without"),
    "upper-bound": Tool(
        analyze_upper_bound, "the method beside its upper bound, which is told the confidence", "tcmr"
    ),
    "confidence": Tool(
        analyze_confidence, "predicted confidence against missing rate and true-class probability", "tcmr"
    ),
    "quadrants": Tool(analyze_quadrants, "low or high missing rate, key cue words kept or dropped", "tcmr"),
    "gradients": Tool(analyze_gradients, "do the confidence and the task pull the text encoder apart?", "tcmr"),
    "selection": Tool(
        analyze_selection, "what choosing the checkpoint on test instead of validation would have given"
    ),
    "reconstruction": Tool(
        analyze_reconstruction, "error of what is rebuilt, masked and visible, beside that of the mean", "pglh"
    ),
    "prompts": Tool(analyze_prompts, "the learned shares of the prompts over training", "pglh"),
    "router": Tool(analyze_router, "weight of each modality, and whether it falls where the modality lies", "cmc"),
    "pseudo-labels": Tool(
        analyze_pseudo_labels,
        "how the labels of each modality moved, and whether they came closer to the truth",
        "cmc",
    ),
    "consistency-gap": Tool(
        analyze_consistency_gap, "accuracy where the modalities agree and where they do not, several runs in one table"
    ),
    "uncertainty": Tool(
        analyze_uncertainty, "the uncertainty where polarity is right and where it is wrong", "ubm or uacs"
    ),
    "risk-coverage": Tool(
        analyze_risk_coverage, "error when the least certain samples are left out, several runs in one figure"
    ),
    "accuracy-cost": Tool(
        analyze_accuracy_cost, "error over the share of samples handed to the expert, and over seconds", "uacs"
    ),
    "routes": Tool(analyze_routes, "counts, seconds, calls and errors per route", "uacs"),
    "cases": Tool(analyze_cases, "a few samples of each route with all their numbers", "uacs"),
    "evidence": Tool(
        analyze_evidence, "share of the retrieved evidence with the sample's sentiment, beside chance", "omg"
    ),
    "imputation": Tool(
        analyze_imputation, "error of what is generated, beside the mean, the evidence and the truth", "omg"
    ),
    "settings": Tool(
        analyze_settings, "metrics and time for values of fields that matter at inference, e.g. top_k", "omg"
    ),
    "latency": Tool(
        analyze_latency, "milliseconds per sample of planning, retrieval, execution and classification", "omg"
    ),
    "trace": Tool(analyze_trace, "plan, evidence, steps of generation and utility of single samples", "omg"),
}
"""Every tool by the name that the command line uses."""


def run_tool(
    tool: str,
    runs: Sequence[str],
    *,
    data: str | None = None,
    output: str | None = None,
    split: str | None = None,
    **options: Any,
) -> list[Path]:
    """Run one analysis.

    Args:
        tool: A key of `TOOLS`.
        runs: Folders that `hf-msa train` wrote (one seed, or all of them), or, for tools that read results, folders
            with a ``results.json``.
        data: Folder or Hub name of the prepared data set, for tools that run the model or read its labels.
        output: Where to write; default: ``analysis/<tool>`` in the first run.
        split: The split to look at; default: the tool's own.
        **options: Options of the tool, see its function; None stands for the default.

    Returns:
        The files that were written.

    Raises:
        MsaError: For an unknown tool, an option that it does not have, no run, no data where it needs some, or runs
            that it cannot use.
    """
    if tool not in TOOLS:
        raise unknown_name("analysis tool", tool, TOOLS)
    known = TOOLS[tool].options
    given = {k: v for k, v in {"data": data, "split": split, **options}.items() if v is not None}
    for name in given:
        if name not in known:
            has = ", ".join(TOOLS[tool].flags) or "no options"
            raise MsaError(f"The tool {tool!r} has no {_flag(name)}; it has {has}.")
    if not runs:
        raise MsaError(f"The tool {tool!r} needs a run; give a folder that `hf-msa train` or `hf-msa evaluate` wrote.")
    if TOOLS[tool].needs_data and data is None:
        raise MsaError(f"The tool {tool!r} needs the data set; give it with --data.")
    first = Path(runs[0])
    folder = first if first.is_dir() or first.suffix != ".json" else first.parent
    target = folder / "analysis" / tool if output is None else Path(output)
    return TOOLS[tool].function(list(runs), output=target, **given)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
