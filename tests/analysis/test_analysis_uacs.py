"""Uncertainty, risk over coverage, cost, routes and cases: made predictions, numbers by hand."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.prediction_columns import read_numbers, uncertainties
from hf_msa.analysis.uacs.accuracy_cost import (
    Recorded,
    Rules,
    oracle_scores,
    read_recorded,
    replay,
    sweep_rows,
)
from hf_msa.analysis.uacs.calibrations import calibrations, seed_configs
from hf_msa.analysis.uacs.routes import case_rows, route_rows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.evaluation.results import EvaluationFacts, build_results, predictions_table, write_results
from hf_msa.evaluation.uncertainty import auroc, coverage_risks, polarity_errors, spearman
from hf_msa.models.configuration_ubm import UNCERTAINTIES
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.uacs_rules import FAST, MLLM, ROUTES, VERIFY, WEIGHTED, threshold_for
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe

NAN, INF = math.nan, math.inf

# Six samples: sure and right, sure and wrong, and one for each thing that can happen to an unsure one.
LABELS = [1.0, -1.0, 2.0, -2.0, 1.0, 0.0]
SMALL = [1.2, 0.8, -0.5, 0.4, -0.2, 0.3]
UNSURE = [0.1, 0.2, 0.9, 0.8, 1.0, 0.6]
EXPERT = [1.0, -1.0, 2.0, -1.0, -0.6, 0.3]
EXPERT_UNSURE = [0.1, 0.1, 0.2, 0.7, 0.5, INF]
SECOND = -1.5
TAUS = {"tau_1": 0.5, "tau_2": 0.4}
CONFIG: dict[str, Any] = {
    "uncertainty_kind": "entropy",
    "label_family": "mosi",
    "neutral_zone": 0.05,
    "epsilon": 1e-12,
    "agreement_rule": "weighted",
    "disagreement_rule": "verify",
    **TAUS,
}
# The fifth: both unsure, both negative. (1 / 1.0) / (1 / 1.0 + 1 / 0.5) = 1/3; -0.2 / 3 - 0.6 * 2 / 3.
AVERAGE = -0.2 / 3 - 0.6 * 2 / 3
CASCADE = [1.2, 0.8, 2.0, SECOND, AVERAGE, 0.3]
CASCADE_ROUTES = [FAST, FAST, MLLM, VERIFY, WEIGHTED, WEIGHTED]
CASCADE_IDS = [0, 1, 2, 4, 5, 3]
CALLS = [0.0, 0.0, 1.0, 2.0, 1.0, 1.0]


def columns(route: str) -> dict[str, list[float]]:
    """What `UacsForSentimentAnalysis` writes beside the prediction."""
    asked = np.array(CALLS) > 0 if route == "cascade" else np.full(6, route == "mllm")
    calls = CALLS if route == "cascade" else asked.astype(float)
    routes = CASCADE_ROUTES if route == "cascade" else np.where(asked, MLLM, FAST)
    return {
        "small_score": SMALL,
        "uncertainty": UNSURE,
        "expert_score": np.where(asked, EXPERT, NAN).tolist(),
        "expert_uncertainty": np.where(asked, EXPERT_UNSURE, NAN).tolist(),
        "weight": [NAN, NAN, NAN, NAN, 1 / 3, 1.0] if route == "cascade" else [NAN] * 6,
        "second_score": [NAN, NAN, NAN, SECOND, NAN, NAN] if route == "cascade" else [NAN] * 6,
        "prediction": CASCADE if route == "cascade" else EXPERT if route == "mllm" else SMALL,
        "route": np.asarray(routes, dtype=float).tolist(),
        "expert_calls": np.asarray(calls).tolist(),
        "unparsed": [0.0] * 5 + [float(asked[5])],
        "seconds": (0.01 + 0.5 * np.asarray(calls)).tolist(),
    }


def write(
    folder: Path,
    values: dict[str, Any],
    *,
    labels: Any = LABELS,
    seeds: tuple[int, ...] = (1, 2),
    method: str = "uacs",
    config: dict[str, Any] | None = None,
    split: str = "test",
    rate: float = 0.0,
) -> str:
    ids = [f"clip{index}" for index in range(len(labels))]
    parts = [{"id": ids, "training_seed": s, "mask_seed": 1, "rate": rate, "label": labels} | values for s in seeds]
    table = predictions_table(
        [{k: np.asarray(v, dtype=np.float32) if k in values else v for k, v in part.items()} for part in parts]
    )
    facts = EvaluationFacts(
        method=method,
        dataset={"name": "made", "split": split, "label_family": "mosi"},
        protocol={"name": "complete"},
        config=CONFIG if config is None else config,
    )
    write_results(folder, build_results(table, facts, resamples=20), table)
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    """A cascade, with the checkpoints' configurations, and in it the expert alone."""
    folder = tmp_path / "uacs"
    fit = {"same": {"mean": 0.3, "std": 0.1, "n": 5}, "opposite": {"mean": 0.7, "std": 0.2, "n": 3}}
    for seed in (1, 2):
        (folder / f"seed-{seed}").mkdir(parents=True)
        config = CONFIG | {"calibration": {"small": fit, "expert": fit}, "threshold_lambda": 0.5}
        (folder / f"seed-{seed}" / "config.json").write_text(json.dumps(config))
    return {"cascade": write(folder, columns("cascade")), "mllm": write(folder / "mllm", columns("mllm"))}


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; one test of each tool draws."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_thresholds_are_those_of_the_evaluation(runs: dict[str, str], tmp_path: Path) -> None:
    """Lambda 1 takes the mean of the wrong ones, of each seed's own fit; a single seed's configuration is the result's."""
    folder = Path(runs["cascade"])
    for seed in (1, 2):
        file = folder / f"seed-{seed}" / "config.json"
        config = json.loads(file.read_text()) | {"threshold_beta": 0.0}
        config["calibration"]["small"]["opposite"]["mean"] = 0.6 + seed / 10
        config["tau_1"] = 0.5 * 0.3 + 0.5 * (0.6 + seed / 10)
        file.write_text(json.dumps(config))
    other = Path(write(folder / "lambda", columns("cascade")))
    results = json.loads((other / "results.json").read_text()) | {"changes": {"threshold_lambda": 1.0}}
    (other / "results.json").write_text(json.dumps(results))
    assert [config["tau_1"] for config in seed_configs(read_numbers(str(other)))] == pytest.approx([0.7, 0.8])
    assert [config["tau_1"] for config in seed_configs(read_numbers(str(folder)))] == pytest.approx([0.5, 0.55])
    single = write(folder / "single", columns("cascade"), seeds=(1,), config=CONFIG | {"tau_1": 0.9})
    assert seed_configs(read_numbers(single))[0]["tau_1"] == 0.9


def values_of(name: str) -> np.ndarray:
    return np.array(columns("cascade")[name])


class TestRanking:
    def test_auroc_by_hand(self) -> None:
        # Pairs of wrong (0.5, 0.9) and right (0.1, 0.5): 0.5 > 0.1, 0.5 = 0.5, 0.9 > both: 3.5 of 4.
        found = auroc(np.array([0.5, 0.1, 0.9, 0.5]), np.array([True, False, True, False]))
        assert found == pytest.approx([3.5 / 4])
        assert np.isnan(auroc(np.array([0.5, 0.1]), np.array([True, True]))).all()
        assert np.isnan(auroc(np.empty(0), np.empty(0, dtype=bool), np.ones((3, 0)))).tolist() == [True] * 3

    def test_auroc_is_that_of_scikit_learn(self) -> None:
        generator = np.random.default_rng(0)
        values, wrong = generator.integers(0, 20, 80) / 10, generator.random(80) < 0.3
        weights = generator.integers(0, 4, (5, 80)).astype(float)
        expected = [roc_auc_score(wrong, values, sample_weight=row) for row in weights]
        assert auroc(values, wrong, weights) == pytest.approx(expected)
        assert auroc(values, wrong)[0] == pytest.approx(roc_auc_score(wrong, values))

    def test_risks_by_hand(self) -> None:
        # In order of certainty 1, then 0 and 4 at a tie, expected 2 each, then 3.
        values, losses = np.array([0.9, 0.2, 0.5, 0.5]), np.array([3.0, 1.0, 0.0, 4.0])
        assert coverage_risks(values, losses) == pytest.approx([1.0, 1.5, 5 / 3, 2.0])
        # Twice the surest, once the least sure.
        counts = np.array([1.0, 2.0, 0.0, 0.0])
        assert coverage_risks(values, losses, counts) == pytest.approx([1.0, 1.0, 5 / 3])

    def test_ties_give_what_all_orders_give_on_average(self) -> None:
        losses, generator = np.array([5.0, 1.0, 0.0, 2.0]), np.random.default_rng(1)
        orders = [coverage_risks(generator.permutation(4).astype(float), losses) for _ in range(4000)]
        assert coverage_risks(np.zeros(4), losses) == pytest.approx(np.mean(orders, axis=0), abs=0.1)

    def test_polarity(self) -> None:
        counted, wrong = polarity_errors(np.array([[0.1, 0.0, -1.0, 1.0]]), np.array([1.0, 1.0, 1.0, 0.0]), "mosi")
        assert counted.tolist() == [[True, True, True, False]] and wrong.tolist() == [[False, True, True, True]]

    def test_rank_correlation_by_hand(self) -> None:
        # Squared differences of ranks 0, 0, 1, 1: 1 - 6 * 2 / (4 * 15).
        assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 5.0, 9.0, 8.0])) == pytest.approx([0.8])
        # Ranks 1.5, 1.5, 3 against 1, 2, 3: 1.5 / sqrt(1.5 * 2).
        assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx([1.5 / math.sqrt(3)])
        assert np.isnan(spearman(np.ones(3), np.array([1.0, 2.0, 3.0]))).all()

    def test_rank_correlation_of_resamples_is_that_of_scipy(self) -> None:
        generator = np.random.default_rng(0)
        first, second = generator.integers(0, 20, 60) / 10, generator.random(60)
        counts = generator.integers(0, 4, (5, 60))
        expected = [spearmanr(first.repeat(times), second.repeat(times)).statistic for times in counts]
        assert spearman(first, second, counts.astype(float)) == pytest.approx(expected)


class TestReading:
    def test_numbers_of_complete_data(self, runs: dict[str, str]) -> None:
        numbers = read_numbers(runs["cascade"])
        assert numbers.seeds == (1, 2) and numbers.labels.tolist() == LABELS
        assert numbers.columns["expert_score"][1] == pytest.approx([NAN, NAN, *EXPERT[2:]], nan_ok=True)
        assert [kind.name for kind in uncertainties(numbers)] == [
            "small model, entropy",
            "small model, -|score|",
            "expert, token entropy",
        ]
        assert [config["tau_1"] for config in seed_configs(numbers)] == [0.5, 0.5]
        assert seed_configs(read_numbers(runs["mllm"]))[0]["threshold_lambda"] == 0.5, "those of the run around it"

    def test_the_trivial_uncertainty_is_not_shown_twice(self, tmp_path: Path) -> None:
        values = {"prediction": SMALL, "uncertainty": (-np.abs(SMALL)).tolist()}
        run = write(tmp_path, values, method="ubm", config={"uncertainty_kind": "score"})
        assert [kind.name for kind in uncertainties(read_numbers(run))] == ["-|score|"]

    def test_missing_data_and_other_methods(self, tmp_path: Path) -> None:
        run = write(tmp_path / "a", {"prediction": SMALL}, method="text", rate=0.5)
        with pytest.raises(MsaError, match="not evaluated on complete data"):
            run_tool("risk-coverage", [run])
        run = write(tmp_path / "b", {"prediction": SMALL}, method="text")
        for tool, column in (
            ("uncertainty", "uncertainty"),
            ("routes", "small_score"),
            ("accuracy-cost", "small_score"),
        ):
            with pytest.raises(MsaError, match=f"no column '{column}'"):
                run_tool(tool, [run])


class TestUncertainty:
    def test_numbers_by_hand(self, runs: dict[str, str], tmp_path: Path) -> None:
        paths = run_tool("uncertainty", [runs["cascade"]], output=str(tmp_path / "out"))
        assert {path.name for path in paths} == {
            "fits.csv",
            *(f"uncertainty.{end}" for end in ("csv", "md", "png", "svg")),
            *(f"comparison.{end}" for end in ("csv", "png", "svg")),
        }
        own, trivial, expert = read(tmp_path / "out" / "uncertainty.csv")
        # Labels other than 0: the first five. Wrong at 0.2, 0.9, 0.8, 1.0, right at 0.1: all four above.
        assert (float(own["n"]), float(own["auroc"]), own["sure by"]) == (5, 1, "tau")
        # Of two sure ones (0.1, 0.2) one is wrong, of three unsure ones all.
        assert [float(own[f"errors {side}"]) for side in ("sure", "unsure")] == [0.5, 1]
        assert float(own["share unsure"]) == pytest.approx(0.6)
        # -|score|: right at -1.2, below all. As many are sure as by tau, two: 1.2 and 0.8.
        assert trivial["sure by"] == "equal share" and float(trivial["auroc"]) == 1
        assert float(trivial["errors sure"]) == 0.5
        # The expert answered four; the last has no polarity and no number. Right: 0.2 and 0.7, wrong: 0.5.
        assert (float(expert["n"]), float(expert["auroc"]), expert["sure by"]) == (3, 0.5, "tau")
        assert float(expert["errors sure"]) == 0 and float(expert["errors unsure"]) == 0.5
        assert float(own["auroc low"]) <= float(own["auroc"]) <= float(own["auroc high"])
        rows = {row["uncertainty"]: row for row in read(tmp_path / "out" / "fits.csv")}
        fit = rows["small model, entropy"]
        assert float(fit["opposite mean"]) == pytest.approx(0.725) and int(fit["opposite n"]) == 4
        assert (float(fit["validation same mean"]), float(fit["tau"])) == (0.3, 0.5)
        assert rows["small model, -|score|"]["tau"] == ""

    @pytest.mark.usefixtures("quick_figures")
    def test_thresholds_come_from_validation(self, tmp_path: Path) -> None:
        values = {"prediction": SMALL, "uncertainty": UNSURE}
        config = {"uncertainty_kind": "entropy"}
        run = write(tmp_path / "test", values, method="ubm", config=config)
        held_out = {"prediction": [1.0, -1.0, 2.0, 2.0, 1.0, 1.0], "uncertainty": [0.2, 0.4, 0.0, 0.9, 0.2, 5.0]}
        other = write(tmp_path / "validation", held_out, method="ubm", config=config, split="validation")
        taus = calibrations(read_numbers(run), read_numbers(other))
        # Right: 0.2, 0.4, 0.0, 0.2; wrong: 0.9; the neutral one is left out.
        assert [calibration.tau for calibration in taus["own"]] == pytest.approx([(0.2 + 0.9) / 2] * 2)
        assert [calibration.tau for calibration in taus["trivial"]] == pytest.approx([(-1.25 - 2) / 2] * 2)
        out = str(tmp_path / "out")
        run_tool("uncertainty", [run], validation=[other], output=out)
        assert "No threshold" not in (tmp_path / "out" / "uncertainty.md").read_text()
        run_tool("uncertainty", [run], output=out)
        assert "No threshold is known for ubm: entropy" in (tmp_path / "out" / "uncertainty.md").read_text()
        assert {row["sure by"] for row in read(tmp_path / "out" / "uncertainty.csv")} == {"half"}
        with pytest.raises(MsaError, match="a result on the test split"):
            run_tool("uncertainty", [run], validation=[run])
        with pytest.raises(MsaError, match="1 results for 2 runs"):
            run_tool("uncertainty", [run, run], validation=[other])
        single = write(tmp_path / "single", held_out, method="ubm", config=config, split="validation", seeds=(1,))
        with pytest.raises(MsaError, match="different training seeds"):
            run_tool("uncertainty", [run], validation=[single])


class TestComparison:
    LABELS = (1.0, 1.0, -1.0, -2.0)
    VALUES: ClassVar[dict[str, list[float]]] = {
        "prediction": [2.0, 1.5, 0.5, -2.0],
        "uncertainty": [0.4, 0.1, 0.3, 0.2],
    }

    @pytest.mark.usefixtures("quick_figures")
    def test_numbers_by_hand(self, tmp_path: Path) -> None:
        config = {"uncertainty_kind": "mc_dropout"}
        values = self.VALUES | {"interval_low": [1.1, 1.0, -1.5, -2.5], "interval_high": [2.9, 2.0, 2.5, -1.5]}
        run = write(tmp_path / "run", values, labels=self.LABELS, method="ubm", config=config)
        run_tool("uncertainty", [run], output=str(tmp_path / "out"))
        rows = {row["uncertainty"]: row for row in read(tmp_path / "out" / "comparison.csv")}
        assert list(rows) == ["mc-dropout", "-|score|", "oracle", "random"]
        # Errors 1, 0.5, 1.5, 0 have ranks 3, 2, 4, 1; those of the uncertainty are 4, 1, 3, 2, of -|score| 1.5, 3, 4, 1.5.
        told = {name: row["Spearman, error"] for name, row in rows.items()}
        assert float(told["mc-dropout"]) == pytest.approx(1 - 6 * 4 / 60)
        assert float(told["-|score|"]) == pytest.approx(3 / math.sqrt(4.5 * 5), rel=1e-5)
        assert float(told["oracle"]) == 1 and told["random"] == ""
        assert float(rows["mc-dropout"]["Spearman, trivial"]) == pytest.approx(-1 / math.sqrt(4.5 * 5), rel=1e-5)
        # In order 0.5, 0, 1.5, 1; 0.5 twice (a tie of 1 and 0), then 0.5, 1.5; 0, 0.5, 1, 1.5; at random 0.75 throughout.
        areas = [float(row["area"]) for row in rows.values()]
        assert areas == pytest.approx([(0.5 + 0.25 + 2 / 3 + 0.75) / 4, (3 * 0.5 + 0.75) / 4, 1.5 / 4, 0.75], rel=1e-5)
        assert float(rows["mc-dropout"]["area - trivial"]) == pytest.approx(areas[0] - areas[1], rel=1e-4)
        assert float(rows["mc-dropout"]["area low"]) <= areas[0] <= float(rows["mc-dropout"]["area high"])
        # The first label is left out; widths 1.8, 1, 4, 1.
        (interval,) = read(tmp_path / "out" / "intervals.csv")
        assert float(interval["covered"]) == 0.75 and float(interval["width"]) == pytest.approx(1.95)
        text = (tmp_path / "out" / "uncertainty.md").read_text()
        assert "## Comparison" in text and "## Intervals" in text

    @pytest.mark.slow
    @pytest.mark.usefixtures("quick_figures")
    def test_all_kinds_that_a_checkpoint_can_give(self, tmp_path: Path) -> None:
        corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=7, version=1)
        kinds = "[prediction_truth,members,heads,modality_disagreement,conformal]"
        small = ["model.fusion_dim=16", "model.head_dim=8", "model.ensemble_size=2", "stages.main.num_train_epochs=1"]
        recipe = load_recipe("ubm/sample", assignments=[*small, f"model.uncertainty_candidates={kinds}"])
        run = tmp_path / "run"
        run_recipe(recipe, str(corpus), run, 1, {"disable_tqdm": True, "use_cpu": True})
        evaluate_runs(str(run), str(corpus), protocol="complete")
        run_tool("uncertainty", [str(run)], data=str(corpus), output=str(tmp_path / "out"))
        rows = {row["uncertainty"]: row for row in read(tmp_path / "out" / "comparison.csv")}
        given = [kind.replace("_", "-") for kind in UNCERTAINTIES if kind != "score"]
        assert list(rows) == [*given, "-|score|", "oracle", "random"]
        own = read_numbers(str(run))
        entropy = own.columns["uncertainty"]
        errors = np.abs(own.columns["prediction"] - own.labels)
        expected = spearman(entropy[0], errors[0])
        assert [float(rows["entropy"]["Spearman, error"])] == pytest.approx(expected, abs=1e-4)
        assert rows["conformal"]["area"] == rows["learned-error"]["area"], "in proportion"
        (interval,) = read(tmp_path / "out" / "intervals.csv")
        assert 0.5 < float(interval["covered"]) <= 1
        other = write_sample_corpus(tmp_path / "other", preset="tiny", seed=8, version=1)
        with pytest.raises(MsaError, match="give other scores than it has|has other samples"):
            run_tool("uncertainty", [str(run)], data=str(other))

    def test_checkpoints_that_are_not_there(self, tmp_path: Path) -> None:
        run = write(
            tmp_path / "run", self.VALUES, labels=self.LABELS, method="ubm", config={"uncertainty_kind": "score"}
        )
        with pytest.raises(MsaError, match="are not beside it"):
            run_tool("uncertainty", [run], data="anywhere")


class TestRiskCoverage:
    def test_numbers_by_hand(self, tmp_path: Path) -> None:
        labels, values = (
            [1.0, 1.0, -1.0, -2.0],
            {"prediction": [2.0, 1.5, 0.5, -2.0], "uncertainty": [0.4, 0.1, 0.3, 0.2]},
        )
        run = write(tmp_path / "run", values, labels=labels, method="ubm", config={"uncertainty_kind": "entropy"})
        paths = run_tool("risk-coverage", [run], output=str(tmp_path / "out"))
        assert {path.name for path in paths} == {f"risk_coverage.{end}" for end in ("csv", "md", "png", "svg")}
        rows = {(row["uncertainty"], row["coverage"]): row for row in read(tmp_path / "out" / "risk_coverage.csv")}
        # Errors 1, 0.5, 1.5, 0. By entropy: 0.5, 0, 1.5, 1; by -|score| 1 and 0 at a tie, then 0.5, 1.5.
        entropy = [float(rows["entropy", c]["mae"]) for c in ("0.25", "0.5", "0.75", "1")]
        assert entropy == pytest.approx([0.5, 0.25, 2 / 3, 0.75], rel=1e-5)
        trivial = [float(rows["-|score|", c]["mae"]) for c in ("0.25", "0.5", "0.75", "1")]
        assert trivial == pytest.approx([0.5, 0.5, 0.5, 0.75])
        assert [float(rows["entropy", c]["polarity"]) for c in ("0.5", "0.75")] == pytest.approx([0, 1 / 3], rel=1e-5)
        summary = (tmp_path / "out" / "risk_coverage.md").read_text()
        assert "| ubm | entropy | 0.750 ± 0.000 | 0.542 ± 0.000 [" in summary, "the mean of the four"
        # Wrong at 0.3; right at 0.4, 0.1 and 0.2.
        assert "0.667 ± 0.000 [" in summary

    @pytest.mark.usefixtures("quick_figures")
    def test_runs_together(self, runs: dict[str, str], tmp_path: Path) -> None:
        run_tool("risk-coverage", [runs["cascade"], runs["mllm"]], output=str(tmp_path / "out"))
        rows = read(tmp_path / "out" / "risk_coverage.csv")
        assert {row["uncertainty"] for row in rows} == {"small model, entropy", "small model, -|score|"}, (
            "an expert with an answer that has no number has no uncertainty for it"
        )
        other = write(tmp_path / "other", {"prediction": SMALL}, labels=[2.0, *LABELS[1:]], method="text")
        with pytest.raises(MsaError, match="different samples"):
            run_tool("risk-coverage", [runs["cascade"], other], output=str(tmp_path / "out"))


class TestAccuracyCost:
    @pytest.fixture
    def recorded(self, runs: dict[str, str]) -> Recorded:
        first, second = read_recorded([read_numbers(runs["mllm"]), read_numbers(runs["cascade"])])
        assert first.second == pytest.approx(second.second, nan_ok=True)
        return first

    def test_the_cascade_is_replayed(self, recorded: Recorded) -> None:
        made = replay(recorded, Rules(**TAUS))
        assert made.scores == pytest.approx(CASCADE, rel=1e-6) and made.routes.tolist() == CASCADE_ROUTES
        assert made.calls.tolist() == CALLS and not made.missing.any()
        assert made.seconds == pytest.approx(0.01 + 0.5 * np.array(CALLS), rel=1e-5)

    def test_second_answers_that_nobody_gave(self, recorded: Recorded) -> None:
        """With everything uncertain the first sample agrees, the second does not and was never verified."""
        made = replay(recorded, Rules(tau_1=-1.0, tau_2=-1.0))
        assert made.routes.tolist() == [WEIGHTED, VERIFY, VERIFY, VERIFY, WEIGHTED, WEIGHTED]
        assert np.flatnonzero(made.missing).tolist() == [1, 2]
        # Weights 1/3 and 2/3: 0.8 / 3 - 2 / 3.
        assert made.scores[1] == pytest.approx(-0.4, rel=1e-5) and made.scores[3] == SECOND
        assert made.calls.tolist() == [1, 2, 2, 2, 1, 1]

    def test_rules_of_a_configuration(self) -> None:
        assert Rules.of(CONFIG, "x") == Rules(**TAUS)
        assert Rules.of(CONFIG | {"uncertainty_kind": "score"}, "x").offset == 3.0
        stars = {"name": "stars", "low": 1, "high": 5, "neutral": 2}
        rules = Rules.of(CONFIG | {"uncertainty_kind": "score", "label_family": stars}, "x")
        assert (rules.neutral, rules.offset) == (2.0, 3.0)
        with pytest.raises(MsaError, match="no threshold tau_2"):
            Rules.of({**CONFIG, "tau_2": None}, "x")

    def test_thresholds_by_count(self) -> None:
        values = np.array([0.3, 0.1, 0.2])
        assert [(values > threshold_for(values, count)).sum() for count in range(4)] == [0, 1, 2, 3]
        # Halfway between the samples that it parts; the largest where nothing is handed on, and no bound where all are.
        ordered = np.array([8.0, 1.0, 4.0, 2.0])
        assert [threshold_for(ordered, count) for count in range(5)] == [8, 6, 3, 1.5, -math.inf]

    def test_points_by_hand(self, recorded: Recorded) -> None:
        rows = sweep_rows([recorded], [Rules(**TAUS)], np.array(LABELS), BUILT_IN["mosi"])
        small, calibrated, expert = (
            next(r for r in rows if r["point"] == n) for n in ("small model", "calibrated", "expert")
        )
        errors = {
            "small": [0.2, 1.8, 2.5, 2.4, 1.2, 0.3],
            "expert": [0, 0, 0, 1, 1.6, 0.3],
            "cascade": [0.2, 1.8, 0, 0.5, 1 - AVERAGE, 0.3],
        }
        mae = {name: np.mean(each) for name, each in errors.items()}
        assert (small["mae"], small["share"], small["calls"]) == (pytest.approx(mae["small"]), 0, 0)
        assert (expert["mae"], expert["share"], expert["calls"]) == (pytest.approx(mae["expert"]), 1, 1)
        assert (calibrated["mae"], calibrated["share"]) == (
            pytest.approx(mae["cascade"], rel=1e-5),
            pytest.approx(4 / 6),
        )
        assert calibrated["calls"] == pytest.approx(5 / 6)
        assert calibrated["mae, random, equal share"] == pytest.approx(
            mae["small"] / 3 + mae["expert"] * 2 / 3, rel=1e-5
        )
        assert calibrated["mae, random, equal calls"] == pytest.approx(
            mae["small"] / 6 + mae["expert"] * 5 / 6, rel=1e-5
        )
        # Of five with a polarity the small model has one right, the cascade three, the expert four.
        assert [row["non0_acc2"] for row in (small, calibrated, expert)] == pytest.approx([0.2, 0.6, 0.8])
        assert calibrated["non0_acc2, random, equal calls"] == pytest.approx(0.2 / 6 + 0.8 * 5 / 6)
        assert expert["seconds"] == pytest.approx(0.51, rel=1e-5) and small["seconds"] == pytest.approx(0.01, rel=1e-5)
        assert calibrated["seconds"] == pytest.approx(0.01 + 0.5 * 5 / 6, rel=1e-5)

    def test_the_oracle_asks_where_it_helps_and_no_more_than_the_cascade(self, recorded: Recorded) -> None:
        """By the fourth call the expert has helped with 2.5, 1.8, 1.4 and 0.2; with the fifth sample it would harm."""
        labels = np.array(LABELS)
        errors = [np.abs(oracle_scores(recorded, labels, calls) - labels).sum() for calls in (0, 1, 2, 4, 6)]
        assert errors == pytest.approx([8.4, 5.9, 4.1, 2.5, 2.5])
        rows = sweep_rows([recorded], [Rules(**TAUS)], labels, BUILT_IN["mosi"])
        (calibrated,) = (row for row in rows if row["point"] == "calibrated")
        assert calibrated["mae, oracle, equal calls"] == pytest.approx(2.5 / 6, rel=1e-5), (
            "of five calls four are of use"
        )

    def test_what_stands_for_an_unreadable_answer_is_the_expert_s_alone(self, recorded: Recorded) -> None:
        other = dataclasses.replace(recorded, expert=np.array([*EXPERT[:5], -2.0]))
        before, after = (
            {
                row["point"]: row["mae"]
                for row in sweep_rows([one], [Rules(**TAUS)], np.array(LABELS), BUILT_IN["mosi"])
            }
            for one in (recorded, other)
        )
        assert after == before | {"expert": pytest.approx(before["expert"] + (2.0 - 0.3) / 6)}

    def test_random_routing_is_the_mean_of_its_draws(self, recorded: Recorded) -> None:
        generator, labels = np.random.default_rng(0), np.array(LABELS)
        drawn = []
        for _ in range(4000):
            chosen = generator.permutation(6) < 4
            drawn.append(np.abs(np.where(chosen, recorded.expert, recorded.small) - labels).mean())
        rows = sweep_rows([recorded], [Rules(**TAUS)], labels, BUILT_IN["mosi"])
        (calibrated,) = (row for row in rows if row["point"] == "calibrated")
        assert calibrated["mae, random, equal share"] == pytest.approx(np.mean(drawn), abs=0.02)

    def test_the_tool(self, runs: dict[str, str], tmp_path: Path) -> None:
        paths = run_tool("accuracy-cost", [runs["cascade"], runs["mllm"]], output=str(tmp_path / "both"))
        assert {path.name for path in paths} == {f"accuracy_cost.{end}" for end in ("csv", "md", "png", "svg")}
        rows = read(tmp_path / "both" / "accuracy_cost.csv")
        assert len(rows) == 1 + 20 + 1 + 1
        assert "Every second answer" in (tmp_path / "both" / "accuracy_cost.md").read_text()
        run_tool("accuracy-cost", [runs["mllm"]], output=str(tmp_path / "alone"))
        assert "1.0 of 6 samples have no second answer" in (tmp_path / "alone" / "accuracy_cost.md").read_text()

    def test_runs_that_do_not_belong_together(self, runs: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="--set route=mllm"):
            run_tool("accuracy-cost", [runs["cascade"]])
        with pytest.raises(MsaError, match="3 runs were given"):
            run_tool("accuracy-cost", [runs["cascade"]] * 3)
        other = write(tmp_path / "other", columns("mllm") | {"small_score": [0.0] * 6})
        with pytest.raises(MsaError, match="different small models"):
            run_tool("accuracy-cost", [runs["cascade"], other])


class TestRoutes:
    def test_numbers_by_hand(self, runs: dict[str, str], tmp_path: Path) -> None:
        rows = {row["route"]: row for row in route_rows(read_numbers(runs["cascade"])) if row["training seed"] == 1}
        assert [rows[name]["n"] for name in (*ROUTES, "all")] == [2, 1, 2, 1, 6]
        assert [rows[name]["calls"] for name in (*ROUTES, "all")] == [0, 1, 2, 2, 5]
        assert rows["weighted"]["unreadable"] == rows["all"]["unreadable"] == 1
        assert rows["verify"]["seconds per sample"] == pytest.approx(1.01)
        assert rows["fast"]["mae"] == pytest.approx(1.0) and rows["fast"]["wrong polarity"] == 0.5
        assert rows["mllm"]["wrong polarity"] == 0 and rows["mllm"]["wrong polarity of the small model"] == 1
        # The last has no polarity: of the two averages one counts.
        assert rows["weighted"]["wrong polarity"] == 1
        paths = run_tool("routes", [runs["cascade"], runs["mllm"]], output=str(tmp_path / "out"))
        assert {path.name for path in paths} == {f"routes.{end}" for end in ("csv", "md", "png", "svg")}
        summary = (tmp_path / "out" / "routes.md").read_text()
        assert "uacs, uacs: 0.833 calls per sample, 2.560 seconds for 6 samples" in summary
        assert "uacs, mllm: 1.000 calls per sample" in summary

    def test_cases_show_every_number(self, runs: dict[str, str], tmp_path: Path) -> None:
        rows = case_rows(read_numbers(runs["cascade"]))
        assert [row["route"] for row in rows] == ["fast", "fast", "mllm", "weighted", "weighted", "verify"]
        assert all(row["id"] == f"clip{CASCADE_IDS[place]}" for place, row in enumerate(rows))
        paths = run_tool("cases", [runs["cascade"]], output=str(tmp_path / "out"))
        assert [path.name for path in paths] == ["cases.csv", "cases.md"]
        text = paths[1].read_text()
        assert "thresholds: tau_1 0.500, tau_2 0.400" in text
        assert "**clip3**, route verify, label -2.0" in text
        assert "asked again with both predictions: -1.500\n- final: **-1.500**, 2 calls, 1.01 seconds" in text
        assert "weight of the small model in the average: 0.333" in text
        assert "no number in its answer" in text and "words" not in text
