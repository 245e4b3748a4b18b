"""Label families: their classes by hand, descriptions that will not do, and one of a user's own from data to results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.prepare import prepare_dataset
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.data.schema import facts_for
from hf_msa.errors import MsaError
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.evaluation.metrics import METRICS, class_metrics, family_metrics, regression_metrics
from hf_msa.evaluation.results import read_results, result_metrics
from hf_msa.label_families import LABEL_FAMILIES, find_label_family, register_label_family
from hf_msa.methods import METHODS
from hf_msa.models.modeling_cmc import class_score
from hf_msa.models.msa_label_families import BUILT_IN, LabelFamily
from hf_msa.models.uacs_prompts import direct_prompt
from hf_msa.models.uacs_rules import polarity
from hf_msa.pipelines import load_pipeline
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from tiny import TINY_CONFIGS, tiny_batch

STARS: dict[str, Any] = {
    "name": "stars",
    "low": 1,
    "high": 5,
    "classes": ["terrible", "poor", "fair", "good", "excellent"],
}


@pytest.fixture
def stars() -> LabelFamily:
    return LabelFamily.from_dict(STARS)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
class TestClasses:
    def test_mosi_rounds_to_the_nearest_whole_number_half_to_even(self, kind: Any) -> None:
        scores = kind([-3.4, -2.5, -1.5, -0.5, 0.5, 0.51, 1.5, 2.5, 9.0])
        assert BUILT_IN["mosi"].class_index(scores).tolist() == [0, 1, 1, 3, 3, 4, 5, 5, 6]

    def test_sims_has_right_closed_bins(self, kind: Any) -> None:
        scores = kind([-1.0, -0.7, -0.69, -0.1, 0.0, 0.1, 0.11, 0.7, 0.8])
        assert BUILT_IN["sims"].class_index(scores).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]

    def test_classes_of_ones_own_meet_in_the_middle(self, kind: Any, stars: LabelFamily) -> None:
        assert stars.edges == (1.5, 2.5, 3.5, 4.5) and list(stars.classes.values()) == [1, 2, 3, 4, 5]
        assert stars.class_index(kind([0.0, 1.5, 1.51, 3.0, 4.6])).tolist() == [0, 0, 1, 2, 4]

    def test_polarity_is_about_the_neutral_score(self, kind: Any, stars: LabelFamily) -> None:
        assert stars.polarity(kind([1.0, 2.9, 3.0, 3.1, 5.0])).tolist() == [0, 0, 1, 2, 2]
        assert BUILT_IN["mosi"].polarity(kind([-0.1, 0.0, 0.1, float("nan")])).tolist() == [0, 1, 2, 1]


class TestDescriptions:
    def test_what_is_left_out(self) -> None:
        family = LabelFamily.from_dict({"name": "percent", "low": 0, "high": 100})
        assert family.neutral == 50 and list(family.classes) == ["negative", "neutral", "positive"]
        assert family.edges == (25, 75) and family.metrics[-2:] == ("mae", "corr")

    @pytest.mark.parametrize(
        "family", [*BUILT_IN.values(), LabelFamily.from_dict(STARS)], ids=lambda family: family.name
    )
    def test_it_survives_files(self, family: LabelFamily) -> None:
        value = json.loads(json.dumps(family.to_value()))
        assert isinstance(value, str) == (family.name in BUILT_IN)
        assert LabelFamily.of(value) == find_label_family(value) == family

    def test_a_changed_built_in_is_described(self) -> None:
        changed = LabelFamily.from_dict({**STARS, "name": "mosi"})
        assert isinstance(changed.to_value(), dict) and LabelFamily.of(changed.to_value()) == changed

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hgih": 5}, "A label family has no 'hgih'; it takes accuracies, classes"),
            ({"neutral": 9}, "goes from 1.0 to 5.0 with 9.0 as neutral"),
            ({"low": 5, "high": 1}, "give the lowest score"),
            ({"classes": {"bad": 1, "good": 1}}, "give two or more in ascending order"),
            ({"classes": ["one"]}, "give two or more in ascending order"),
            ({"edges": [2, 1, 3, 4]}, "give 4 in ascending order"),
            ({"edges": [2]}, "give 4 in ascending order"),
            ({"edges": [], "classes": {"a": 1, "b": 2.5}}, "not consecutive whole numbers"),
            ({"low": "one"}, "could not convert string"),
            ({"classes": 5}, "a value that is not a number"),
        ],
    )
    def test_what_will_not_do_is_said(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(MsaError, match=message):
            find_label_family({**STARS, **changes})
        with pytest.raises(MsaError, match="A label family needs 'high'"):
            find_label_family({"name": "x", "low": 1})

    def test_the_order_of_a_file_does_not_matter(self, stars: LabelFamily) -> None:
        value = json.loads(json.dumps(stars.to_value(), sort_keys=True))
        assert list(value["classes"]) != list(stars.classes) == list(LabelFamily.from_dict(value).classes)

    def test_names_and_files(self, tmp_path: Path) -> None:
        file = tmp_path / "stars.yaml"
        file.write_text("name: stars\nlow: 1\nhigh: 5\nclasses: [terrible, poor, fair, good, excellent]\n")
        assert find_label_family(str(file)) == LabelFamily.from_dict(STARS)
        with pytest.raises(MsaError, match="Unknown label family 'mosy'. Did you mean 'mosi'.* A YAML file"):
            find_label_family("mosy")
        with pytest.raises(MsaError, match=r"in '.*nothing\.yaml' cannot be used: .*No such file"):
            find_label_family(str(tmp_path / "nothing.yaml"))
        for content, message in (
            ("- a list", "is no group of KEY: VALUE"),
            ("a: &x [1]\nb: *x", r"it has an alias \(\*name\)"),
            ("a: " + "[" * 60_000, "nested more than 10 deep"),
        ):
            file.write_text(content)
            with pytest.raises(MsaError, match=message):
                find_label_family(str(file))

    def test_a_registered_name_is_described_in_files(
        self, monkeypatch: pytest.MonkeyPatch, stars: LabelFamily
    ) -> None:
        monkeypatch.setattr(LABEL_FAMILIES, "_entries", dict(LABEL_FAMILIES._entries))
        register_label_family(stars)
        facts = facts_for("custom", "stars")
        assert facts.family == stars and isinstance(facts.to_dict()["label_family"], dict)
        assert (facts.label_low, facts.label_high) == (1, 5)
        with pytest.raises(MsaError, match="There is a label family 'stars' already"):
            register_label_family(stars)


class TestMetrics:
    def test_by_hand(self, stars: LabelFamily) -> None:
        labels, scores = [1.0, 2.0, 3.0, 4.0, 5.0], [1.2, 3.4, 2.8, 4.4, 4.6]
        found = regression_metrics(scores, labels, stars)
        assert tuple(found) == family_metrics(stars) and set(found) <= set(METRICS)
        assert found["fine_acc"] == 4 / 5, "the second is called fair"
        assert found["mae"] == pytest.approx((0.2 + 1.4 + 0.2 + 0.4 + 0.4) / 5)
        assert found["has0_acc2"] == 3 / 5, "2 as positive and 3 as negative"
        assert found["non0_acc2"] == 3 / 4
        assert found == regression_metrics(scores, labels, STARS)

    def test_two_classes_go_as_the_family_says(self, stars: LabelFamily) -> None:
        logits = [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]
        with_positive = class_metrics(logits, [3.0, 1.0], stars)
        with_negative = class_metrics(logits, [3.0, 1.0], {**STARS, "neutral_is_positive": False})
        assert (with_positive["class_has0_acc2"], with_negative["class_has0_acc2"]) == (1.0, 0.5)

    def test_a_metric_that_there_is_not(self) -> None:
        with pytest.raises(MsaError, match="Unknown metric of the label family 'stars': 'acc77'"):
            family_metrics({**STARS, "metrics": ["acc77"]})
        with pytest.raises(MsaError, match="has the metric 'acc5', but no edges for it"):
            regression_metrics([1.0, 2.0], [1.0, 2.0], {**STARS, "metrics": ["acc5", "mae"]})
        own = {**STARS, "metrics": ["acc5"], "accuracies": {"acc5": [2.0, 3.0, 3.5, 4.0]}, "main_accuracy": "acc5"}
        assert regression_metrics([2.5, 4.1], [2.9, 3.9], own)["acc5"] == 0.5


class TestMethods:
    def test_scores_of_classes_reach_both_ends(self, stars: LabelFamily) -> None:
        sure = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 50.0]])
        assert class_score(sure, stars).squeeze(1).tolist() == pytest.approx([1.0, 3.0, 5.0])
        lopsided = LabelFamily.from_dict({**STARS, "neutral": 2})
        assert class_score(sure, lopsided).squeeze(1).tolist() == pytest.approx([1.0, 2.0, 5.0])

    def test_the_neutral_zone_lies_about_the_neutral_score(self) -> None:
        assert polarity(np.array([1.0, 2.96, 3.04, 5.0]), 0.05, 3.0).tolist() == [-1, 0, 0, 1]

    def test_the_expert_is_told_the_range(self, stars: LabelFamily) -> None:
        assert "from 1 to 5? 1 is as negative as can be, 3 is neutral, 5 is" in direct_prompt(
            stars, "words", ("text",)
        )

    @pytest.mark.filterwarnings("ignore:(U-ACS|OMG-Agent) was called without:UserWarning")
    @pytest.mark.parametrize("method", list(METHODS))
    def test_every_method_learns_and_keeps_the_family(self, method: str, tmp_path: Path) -> None:
        config = TINY_CONFIGS[method](label_family=STARS)
        model = METHODS[method].model_class(config).eval()
        labels = torch.tensor([1.0, 2.5, 3.0, 5.0])
        out = model(**tiny_batch(config), labels=labels)
        assert torch.isfinite(out.loss)
        assert model.label_classes(labels).tolist() in ([0, 0, 1, 2], [0, 1, 2, 4])
        model.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path)
        assert again.config.family == LabelFamily.from_dict(STARS) and again.config.label_range == (1, 5)


def test_from_raw_data_to_a_score(tmp_path: Path) -> None:
    """One to five stars, described in a file: prepared, trained, tested, scored."""
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=2, version=1)
    (tmp_path / "raw").mkdir()
    for split in ("train", "validation", "test"):
        rows = load_msa(corpus, split)
        labels = [name for name in rows.column_names if name.startswith("label")]
        assert "label" in labels
        rows = rows.map(lambda row, labels=labels: {name: round(3 + row[name] * 2 / 3, 1) for name in labels})
        rows.to_parquet(tmp_path / "raw" / f"{split}.parquet")
    description = tmp_path / "stars.yaml"
    description.write_text("name: stars\nlow: 1\nhigh: 5\nclasses: [terrible, poor, fair, good, excellent]\n")
    with pytest.raises(MsaError, match=r"outside \[-1, 1\]"):
        prepare_dataset("custom", tmp_path / "raw", tmp_path / "wrong", label_family="sims")
    report = prepare_dataset("custom", tmp_path / "raw", tmp_path / "data", label_family=str(description))
    assert min(report.splits["train"].polarity()[0::2]) > 0, "there are negative ones, above zero though they are"
    description.unlink()
    assert dataset_facts(tmp_path / "data").family.name == "stars"
    recipe = load_recipe(
        "cmc/sample",
        text_model=str(corpus / "text_model"),
        assignments=[f"stages.{stage}.num_train_epochs=1" for stage in ("unimodal", "main")],
    )
    run = run_recipe(recipe, str(tmp_path / "data"), tmp_path / "run", 1, {"disable_tqdm": True, "use_cpu": True})
    evaluate_runs(str(run.folder), str(tmp_path / "data"), protocol="complete")
    results = read_results(run.folder)
    assert results["dataset"]["label_family"]["name"] == "stars"
    assert result_metrics(results)[:3] == ("fine_acc", "has0_acc2", "has0_f1")
    assert 0 < results["mean_over_rates"]["mae"]["mean"] < 4
    found = load_pipeline(str(run.folder))(["a film"])[0]
    assert found["range"] == [1, 5] and 1 <= found["score"] <= 5
    assert found["polarity"] == ("positive" if found["score"] > 3 else "negative")
    assert AutoProcessor.from_pretrained(run.folder) is not None
