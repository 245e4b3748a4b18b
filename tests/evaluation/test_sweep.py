"""The sweep against a plain loop over the conditions, and what an evaluation refuses."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_msa.data import load_msa
from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import load_split
from hf_msa.data.missing import CompleteProtocol, Condition, FixedPattern, FrameMissing, ModalityMissing, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import check_widths, find_matched, find_models, load_checkpoint, rate_folder
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.evaluation.report import results_markdown, run_name
from hf_msa.evaluation.results import read_predictions, read_results
from hf_msa.evaluation.sweep import sweep
from hf_msa.methods import METHODS
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import prepare_run
from nonempty import some

MODALITIES = ("text", "audio", "vision")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else that an evaluation does, and has tests of its own."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )


def save_untrained(
    corpus: Path,
    folder: Path,
    method: str,
    seed: int,
    ablation: str | None = None,
    train_rate: float | None = None,
    assignments: Sequence[str] = (),
) -> None:
    """A checkpoint as training would leave it, but with the weights that it starts from."""
    recipe = load_recipe(f"{method}/sample", ablation=ablation, train_rate=train_rate, assignments=assignments)
    context = prepare_run(recipe, str(corpus), folder, seed, {"use_cpu": True})
    context.new_model(METHODS[method].model_class).save_pretrained(folder)
    context.processor.save_pretrained(folder)
    selection = {"split": "validation", "metric": "eval_loss", "value": 1.0}
    run = {"method": method, "recipe": recipe.name, "ablation": ablation, "seed": seed, "selection": selection}
    run["train_rate"] = train_rate
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        save_untrained(corpus, folder / f"seed-{seed}", "tcmr", seed)
    return folder


@pytest.fixture(scope="module")
def loaded(runs: Path) -> tuple[MsaPreTrainedModel, MsaProcessor]:
    return load_checkpoint(str(runs / "seed-1"))


@pytest.fixture(scope="module")
def rows(corpus: Path, loaded: tuple[MsaPreTrainedModel, MsaProcessor]) -> MsaRows:
    _, processor = loaded
    return MsaRows(load_msa(corpus, "test"), "test", processor.tokenizer, processor.text_max_length)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("text_model", "planted")))


# --- Conditions ---


def test_frame_conditions_are_all_seeds_by_all_rates() -> None:
    found = conditions("frame", MODALITIES, None, [3, 4])
    rates = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [(seed, rate) for seed, rate, _ in found] == [(seed, rate) for seed in (3, 4) for rate in rates]
    assert all(protocol == FrameMissing(rate=rate, seed=seed) for seed, rate, protocol in found)


def test_modality_conditions_end_at_seven_tenths() -> None:
    found = conditions("modality", MODALITIES, None, [3])
    assert [rate for _, rate, _ in found] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert found[-1][2] == ModalityMissing(rate=0.7, seed=3)
    assert [rate for _, rate, _ in conditions("modality", MODALITIES, [0.2], [3])] == [0.2]


def test_fixed_conditions_are_all_patterns_of_what_the_data_has() -> None:
    names = [rate for _, rate, _ in conditions("fixed", MODALITIES, None, [3])]
    assert names == ["audio", "vision", "text", "audio+vision", "text+audio", "text+vision", "text+audio+vision"]
    found = conditions("fixed", ("text", "audio"), None, [3])
    assert found[-1] == (3, "text+audio", FixedPattern(available=("text", "audio"))) and len(found) == 3


def test_complete_is_one_condition_whatever_the_seeds() -> None:
    assert conditions("complete", MODALITIES, None, [3, 4]) == [(3, 0.0, CompleteProtocol())]


@pytest.mark.parametrize(
    ("protocol", "rates", "seeds", "words"),
    [
        ("fram", None, [1], "Unknown protocol 'fram'.*'frame'"),
        ("fixed", [0.1], [1], "'fixed' has no rates; leave --rates out"),
        ("complete", [0.1], [1], "'complete' has no rates"),
        ("frame", [1.1], [1], "rate is 1.1; give a number from 0 to 1"),
        ("frame", [0.1, 0.1], [1], "--rates is 0.1 0.1; .* each once"),
        ("frame", [], [1], "--rates is empty; give at least one"),
        ("frame", None, [1, 2, 1], "--mask-seeds is 1 2 1; .* each once"),
        ("complete", None, [], "--mask-seeds is empty"),
    ],
)
def test_impossible_conditions_are_refused(
    protocol: str, rates: Sequence[float] | None, seeds: Sequence[int], words: str
) -> None:
    with pytest.raises(MsaError, match=words):
        conditions(protocol, MODALITIES, rates, seeds)


# --- The sweep ---


@torch.inference_mode()
def plain_loop(
    model: MsaPreTrainedModel, processor: MsaProcessor, rows: MsaRows, tested: Sequence[Condition]
) -> list[np.ndarray]:
    """One condition after the other, each with the collator that training uses, rows in their own order, 7 at a time."""
    taken = {"input_ids", "attention_mask"} | {
        f"{name}_{part}" for name in ("audio", "vision") for part in ("values", "attention_mask", "missing_mask")
    }
    scores = []
    for _, _, protocol in tested:
        collator = MsaCollator(processor, protocol.bind(rows.ids), split="test")
        parts = []
        for start in range(0, len(rows), 7):
            batch = collator([rows[index] for index in range(start, min(start + 7, len(rows)))])
            inputs = {key: value for key, value in batch.items() if key in taken or key == "text_missing_mask"}
            parts.append(model(**inputs).logits.reshape(-1).numpy())
        scores.append(np.concatenate(parts))
    return scores


@pytest.mark.parametrize("protocol", ["frame", "modality", "fixed", "complete"])
def test_the_sweep_is_a_plain_loop(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, protocol: str
) -> None:
    rates = [0.0, 0.5, 0.7] if protocol in ("frame", "modality") else None
    tested = conditions(protocol, MODALITIES, rates, [5, 6] if rates else [5])
    parts, realised = sweep(*loaded, rows, tested)
    expected = plain_loop(*loaded, rows, tested)
    assert [(part["mask_seed"], part["rate"]) for part in parts] == [(seed, rate) for seed, rate, _ in tested]
    for part, scores in zip(parts, expected, strict=True):
        assert part["id"] == rows.ids and np.array_equal(part["label"], rows.labels)
        np.testing.assert_allclose(part["prediction"], scores, atol=1e-5)
        assert part["confidence"].shape == scores.shape, "what the method says beside its score is kept"
    for seed, rate, condition in tested:
        collator = MsaCollator(loaded[1], condition.bind(rows.ids), split="test")
        shares = collator.realised(rows[index] for index in range(len(rows))).shares()
        assert realised[seed, rate] == pytest.approx(shares, nan_ok=True)
    assert len({part["prediction"].tobytes() for part in parts}) == len(set(tested) - repeats(tested))


def repeats(tested: Sequence[Condition]) -> set[Condition]:
    """Conditions that drop nothing and so repeat another: rate 0 under a second seed."""
    return {one for one in tested if one[1] == 0.0 and one[0] != tested[0][0]}


def test_predictions_do_not_depend_on_the_batch(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows
) -> None:
    tested = conditions("frame", MODALITIES, [0.0, 0.6], [5])
    whole, shares = sweep(*loaded, rows, tested, batch_size=128)
    for size in (1, 5):
        parts, others = sweep(*loaded, rows, tested, batch_size=size)
        for condition, share in some(shares.items()):
            assert others[condition] == pytest.approx(share)
        for part, other in some(zip(whole, parts, strict=True)):
            np.testing.assert_allclose(part["prediction"], other["prediction"], atol=1e-5)


def test_only_an_oracle_is_given_labels(
    corpus: Path, loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, tmp_path: Path
) -> None:
    save_untrained(corpus, tmp_path / "oracle", "tcmr", 1, ablation="ub")
    oracle = load_checkpoint(str(tmp_path / "oracle"))
    tested = conditions("complete", MODALITIES, None, [5])
    for (model, processor), gets in ((loaded, False), (oracle, True)):
        seen: list[bool] = []
        hook = model.register_forward_pre_hook(
            lambda _, __, given, seen=seen: seen.append("labels" in given), with_kwargs=True
        )
        sweep(model, processor, rows, tested)
        hook.remove()
        assert seen == [gets]


def test_an_oracle_s_results_are_marked(corpus: Path, tmp_path: Path) -> None:
    save_untrained(corpus, tmp_path / "oracle", "tcmr", 1, ablation="ub")
    made = evaluate_runs(str(tmp_path / "oracle"), str(corpus), protocol="complete", output=str(tmp_path / "out"))
    assert made.content["oracle"] is True and made.content["ablation"] == "ub"
    assert read_results(tmp_path / "out")["oracle"] is True


# --- Evaluations ---


def test_seeds_are_put_together(corpus: Path, runs: Path, tmp_path: Path) -> None:
    made = evaluate_runs(str(runs), str(corpus), rates=[0.0, 0.5], mask_seeds=[5, 6], output=str(tmp_path))
    grid = read_predictions(tmp_path)
    assert grid.training_seeds == (1, 2) and grid.mask_seeds == (5, 6) and grid.rates == (0.0, 0.5)
    assert made.content == read_results(tmp_path)
    assert made.content["per_rate"][0]["metrics"]["mae"]["n"] == 2 and made.content["oracle"] is False
    assert [entry["training_seed"] for entry in made.content["selection"]] == [1, 2]
    assert made.runs == [runs / "seed-1", runs / "seed-2"]
    names = {"results.json", "predictions.parquet", "curves.png", "curves.svg"}
    assert {file.name for file in made.files} == {path.name for path in tmp_path.iterdir()} == names
    alone, _ = sweep(
        *load_checkpoint(str(runs / "seed-2")), split_rows(corpus, runs), conditions("frame", (), [0.5], [6])
    )
    scores = dict(zip(alone[0]["id"], alone[0]["prediction"], strict=True))
    np.testing.assert_allclose(grid.scores[1, 1, 1], [scores[name] for name in grid.ids], atol=1e-6)


def split_rows(corpus: Path, runs: Path) -> MsaRows:
    _, processor = load_checkpoint(str(runs / "seed-2"))
    return MsaRows(load_msa(corpus, "test"), "test", processor.tokenizer, processor.text_max_length)


def test_results_lie_in_the_run_unless_told_otherwise(corpus: Path, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs / "seed-1", tmp_path / "run")
    made = evaluate_runs(str(run), str(corpus), protocol="complete")
    assert made.files[0] == run / "results.json" and made.files[0].is_file()


def test_a_changed_configuration_is_used_and_kept(corpus: Path, runs: Path, tmp_path: Path) -> None:
    run = str(runs / "seed-1")
    changes = {"mask_padding": False}
    made = evaluate_runs(run, str(corpus), protocol="complete", output=str(tmp_path), changes=changes)
    assert made.content["config"]["mask_padding"] is False
    assert load_checkpoint(run, changes)[0].config.mask_padding is False
    assert load_checkpoint(run)[0].config.mask_padding is True
    with pytest.raises(MsaError, match="give a folder as --output"):
        evaluate_runs(run, str(corpus), protocol="complete", changes=changes)
    with pytest.raises(MsaError, match="'mask_padding'"):
        load_checkpoint(run, {"mask_paddin": False})
    with pytest.raises(MsaError, match="No checkpoint can be loaded"):
        load_checkpoint(run, {"mask_padding": "perhaps"})


# --- Subsets ---


@pytest.mark.parametrize("protocol", ["frame", "modality", "complete"])
def test_a_subset_is_the_same_rows_of_the_whole_split(corpus: Path, runs: Path, tmp_path: Path, protocol: str) -> None:
    rates = None if protocol == "complete" else [0.5]
    names = ("inconsistent", "consistent")
    whole = evaluate_runs(
        str(runs / "seed-1"), str(corpus), protocol=protocol, rates=rates, output=str(tmp_path / "w")
    )
    grids = []
    for subset in names:
        out = tmp_path / subset
        made = evaluate_runs(
            str(runs / "seed-1"), str(corpus), protocol=protocol, rates=rates, output=str(out), subset=subset
        )
        grids.append(read_predictions(out))
        of = {"name": subset, "rule": "differs_from_M", "n_of": whole.content["dataset"]["n"]}
        assert made.content["dataset"]["subset"] == of == read_results(out)["dataset"]["subset"]
        assert made.content["dataset"]["n"] == len(grids[-1].ids) > 0
    everything = read_predictions(tmp_path / "w")
    assert sorted(grids[0].ids + grids[1].ids) == list(everything.ids)
    assert "subset" not in whole.content["dataset"]
    place = {name: index for index, name in enumerate(everything.ids)}
    for grid in grids:
        # What is dropped of a sample does not depend on which others are looked at.
        same = everything.scores[..., [place[name] for name in grid.ids]]
        np.testing.assert_allclose(grid.scores, same, atol=1e-5)
    planted = load_msa(corpus, "test")
    signs = {name: np.sign(planted[name][:]) for name in ("label", "label_text", "label_audio", "label_vision")}
    differs = np.any([signs[name] != signs["label"] for name in list(signs)[1:]], axis=0)
    assert set(grids[0].ids) == {name for name, differ in zip(planted["id"][:], differs, strict=True) if differ}


def test_a_subset_leaves_the_results_of_the_whole_split_alone(corpus: Path, runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs, tmp_path / "run")
    evaluate_runs(str(run), str(corpus), protocol="complete")
    before = (run / "results.json").read_bytes()
    made = evaluate_runs(str(run), str(corpus), protocol="complete", subset="inconsistent")
    other = evaluate_runs(
        str(run), str(corpus), protocol="complete", subset="inconsistent", subset_rule="polarity_conflict"
    )
    assert (run / "results.json").read_bytes() == before
    assert made.files[0] == run / "subset-inconsistent" / "results.json"
    assert other.files[0] == run / "subset-inconsistent-polarity_conflict" / "results.json"
    assert made.files[0].is_file() and other.files[0].is_file()
    # The folders of subsets are no seeds.
    assert find_models(str(run)) == [str(run / "seed-1"), str(run / "seed-2")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subset": "inconsistnt"}, "Unknown subset 'inconsistnt'. Did you mean 'inconsistent'"),
        (
            {"subset": "consistent", "subset_rule": "differs"},
            "Unknown subset rule 'differs'. Did you mean 'differs_from",
        ),
        ({"subset_rule": "not_all_equal"}, "--subset-rule not_all_equal .*; give --subset as well"),
    ],
)
def test_wrong_subsets_are_one_sentence(
    corpus: Path, runs: Path, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(MsaError, match=words):
        evaluate_runs(str(runs), str(corpus), output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_data_without_unimodal_labels_has_no_subsets(corpus: Path, runs: Path, tmp_path: Path) -> None:
    data = corpus
    for column in ("label_text", "label_audio", "label_vision"):
        data = without_column(data, tmp_path / column, column)
    with pytest.raises(MsaError, match="has 0 columns of unimodal labels"):
        evaluate_runs(str(runs), str(data), output=str(tmp_path / "out"), subset="inconsistent")
    assert not (tmp_path / "out").exists()


def test_class_logits_get_their_metrics(
    corpus: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns come from what a model says per sample; here a made-up classifier that follows the score."""
    said = MsaPreTrainedModel.per_sample_outputs

    def with_classes(self: MsaPreTrainedModel, outputs: Any) -> dict[str, torch.Tensor]:
        score = said(self, outputs)["logits"]
        named = {"negative": -score, "neutral": torch.full_like(score, -9.0), "positive": score}
        return {**said(self, outputs), **{f"class_logits_{name}": value for name, value in named.items()}}

    monkeypatch.setattr(MsaPreTrainedModel, "per_sample_outputs", with_classes)
    metrics = evaluate_runs(str(runs), str(corpus), protocol="complete", output=str(tmp_path)).content["per_rate"][0][
        "metrics"
    ]
    assert {"class_acc3", "class_non0_f1"} <= set(metrics)
    assert metrics["class_non0_acc2"]["mean"] == pytest.approx(metrics["non0_acc2"]["mean"])
    assert metrics["class_non0_f1"]["ci_low"] == pytest.approx(metrics["non0_f1"]["ci_low"])
    assert {"class_logits_neutral"} <= set(pq.read_schema(tmp_path / "predictions.parquet").names)


# --- Models that were each trained at one missing rate ---


@pytest.fixture(scope="module")
def matched(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matched")
    for number, rate in enumerate((0.0, 0.4, 0.7)):
        for seed in (1, 2):
            place = rate_folder(folder, rate) / f"seed-{seed}"
            save_untrained(corpus, place, "text", seed + 10 * number, train_rate=rate)
            run = json.loads((place / "run.json").read_text(encoding="utf-8"))
            (place / "run.json").write_text(json.dumps(run | {"seed": seed}), encoding="utf-8")
    return folder


def test_each_rate_is_tested_by_the_models_trained_at_it(corpus: Path, matched: Path, tmp_path: Path) -> None:
    folder = copy_of(matched, tmp_path / "matched")
    assert list(find_matched(str(folder))) == [0.0, 0.4, 0.7] and find_matched(str(folder / "rate-0.4")) == {}
    made = evaluate_runs(str(folder), str(corpus), protocol="modality", mask_seeds=[3, 4])
    assert made.files[0] == folder / "results.json" and len(made.runs) == 6
    results = read_results(folder)
    assert results["train_rate"] == "match" and results["protocol"]["rates"] == [0.0, 0.4, 0.7]
    assert run_name(results) == "text (match)"
    assert "each missing rate by models trained at it; " in results_markdown(results)
    assert [(s["train_rate"], s["training_seed"]) for s in results["selection"]] == [
        (rate, seed) for rate in (0.0, 0.4, 0.7) for seed in (1, 2)
    ]
    grid = read_predictions(folder)
    for index, rate in enumerate((0.0, 0.4, 0.7)):
        out = tmp_path / f"alone-{rate}"
        alone = evaluate_runs(
            str(rate_folder(folder, rate)), str(corpus), protocol="modality", rates=[rate], mask_seeds=[3, 4],
            output=str(out),
        )  # fmt: skip
        assert np.array_equal(read_predictions(out).scores[:, :, 0], grid.scores[:, :, index])
        assert alone.content["mean_over_rates"] == results["per_rate"][index]["metrics"]
        assert alone.content["train_rate"] == rate
        assert run_name(alone.content) == f"text (trained at {rate:g})"
        assert f"trained at missing rate {rate:g}; " in results_markdown(alone.content)
        realised = {(one["mask_seed"], one["rate"]): one["realised"] for one in results["runs"]}
        assert all(realised[one["mask_seed"], rate] == one["realised"] for one in alone.content["runs"])
    # Some of the rates, and a subset in a folder of its own.
    some = evaluate_runs(
        str(folder), str(corpus), protocol="modality", rates=[0.7], subset="inconsistent", output=None
    )
    assert some.files[0] == folder / "subset-inconsistent" / "results.json"
    assert some.content["protocol"]["rates"] == [0.7] and len(some.runs) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"protocol": "frame"},
            r"tested at it alone, .* 'modality'; .* for 'frame' the folder of one rate, .*rate-0.0'",
        ),
        ({"protocol": "fixed"}, "for 'fixed' the folder of one rate"),
        (
            {"protocol": "modality", "rates": [0.4, 0.5]},
            "no models trained at the missing rate 0.5, but at 0.0, 0.4, 0.7",
        ),
        ({"protocol": "modality", "rates": [0.4, 0.4]}, "--rates is 0.4 0.4; give at least one, and each once"),
    ],
)
def test_other_tests_of_matched_models_are_one_sentence(
    corpus: Path, matched: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MsaError, match=words):
        evaluate_runs(str(matched), str(corpus), output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_matched_models_that_do_not_belong_together(corpus: Path, matched: Path, tmp_path: Path) -> None:
    def evaluate(folder: Path, **options: Any) -> Any:
        return evaluate_runs(
            str(folder), str(corpus), protocol="modality", output=str(tmp_path / "out"), **options
        ).content

    folder = copy_of(matched, tmp_path / "a")
    shutil.rmtree(folder / "rate-0.4" / "seed-2")
    with pytest.raises(MsaError, match="has seed-1, seed-2 at the missing rate 0.0, but seed-1 at 0.4; finish"):
        evaluate(folder)
    assert evaluate(folder, rates=[0.0, 0.7])["protocol"]["rates"] == [0.0, 0.7]
    shutil.move(folder / "rate-0.7", folder / "rate-0.3")
    with pytest.raises(MsaError, match="rate-0.3/seed-1' was trained at the missing rate 0.7, not at the one"):
        evaluate(folder, rates=[0.3])
    shutil.copytree(folder / "rate-0.3" / "seed-1", folder / "seed-1")
    with pytest.raises(MsaError, match="models of one training rate each .* and also the checkpoint '.*seed-1'"):
        evaluate(folder)
    with pytest.raises(
        MsaError, match=r"each trained at another missing rate; give the folder of one rate, e.g. '.*0.0'"
    ):
        find_models(str(matched))
    # Seeds of one folder were trained alike, too.
    both = tmp_path / "both"
    shutil.copytree(matched / "rate-0.4" / "seed-1", both / "seed-1")
    shutil.copytree(matched / "rate-0.7" / "seed-2", both / "seed-2")
    with pytest.raises(MsaError, match=r"differ in their training rate \(0.4, 0.7\)"):
        evaluate(both)


# --- Another data set than that of training ---


def renamed(corpus: Path, target: Path, name: str, audio: int | None = None) -> Path:
    """The corpus under another name, and perhaps with audio of another width."""
    folder = copy_of(corpus, target)
    facts = json.loads((folder / "msa_dataset.json").read_text(encoding="utf-8"))
    facts["name"] = name
    facts.get("feature_names", {}).pop("audio", None)
    (folder / "msa_dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    for file in (folder / "data").iterdir() if audio else ():
        table = pq.read_table(file)
        rows = pa.array([[[0.5] * audio] * 3] * len(table), table.schema.field("audio").type)
        place = table.column_names.index("audio")
        pq.write_table(table.set_column(place, "audio", rows).replace_schema_metadata(None), file)
    return folder


def test_a_transfer_says_where_the_model_comes_from(corpus: Path, runs: Path, tmp_path: Path) -> None:
    folder = copy_of(runs, tmp_path / "run")
    for seed in ("seed-1", "seed-2"):
        run = json.loads((folder / seed / "run.json").read_text(encoding="utf-8"))
        (folder / seed / "run.json").write_text(json.dumps(run | {"dataset": {"name": "source"}}), encoding="utf-8")
    other = renamed(corpus, tmp_path / "other", "target")
    made = evaluate_runs(str(folder), str(other), protocol="complete", output=str(tmp_path / "out"))
    results = read_results(tmp_path / "out")
    assert made.content["trained_on"] == results["trained_on"] == "source" != results["dataset"]["name"]
    assert run_name(results) == "tcmr (trained on source)"
    assert "target, test split" in results_markdown(results) and "; trained on source; " in results_markdown(results)
    home = evaluate_runs(str(folder), str(corpus), protocol="complete", output=str(tmp_path / "home")).content
    assert home["dataset"]["name"] != "source"
    home["dataset"]["name"] = "source"
    assert run_name(home) == "tcmr" and "trained on" not in results_markdown(home)


def test_a_transfer_to_features_of_another_width_is_refused(corpus: Path, runs: Path, tmp_path: Path) -> None:
    other = renamed(corpus, tmp_path / "other", "target", audio=7)
    with pytest.raises(
        MsaError, match="The data has audio of width 7, but the checkpoint .*audio_dim=5; use a data set"
    ):
        evaluate_runs(str(runs), str(other), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    # A model of language alone does not care.
    save_untrained(
        corpus, tmp_path / "words", "text", 1, assignments=["model.audio_dim=null", "model.vision_dim=null"]
    )
    home, away = (
        evaluate_runs(str(tmp_path / "words"), str(data), protocol="complete", output=str(tmp_path / data.name))
        for data in (corpus, other)
    )
    assert home.content["mean_over_rates"] == away.content["mean_over_rates"]


# --- What the data must have ---


def without_column(corpus: Path, target: Path, column: str) -> Path:
    folder = copy_of(corpus, target)
    for file in (folder / "data").iterdir():
        table = pq.read_table(file).drop_columns([column])
        pq.write_table(table.replace_schema_metadata(None), file)
    return folder


def test_a_modality_that_the_model_reads_must_be_there(corpus: Path, runs: Path, tmp_path: Path) -> None:
    data = without_column(corpus, tmp_path / "data", "vision")
    with pytest.raises(MsaError, match=r"seed-1' reads vision, but the data has no vision column\.$"):
        evaluate_runs(str(runs), str(data), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_widths_must_be_those_of_the_checkpoint(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_widths(loaded[0], rows, "m")
    monkeypatch.setattr(loaded[0].config, "audio_dim", 9)
    with pytest.raises(MsaError, match="audio of width 5, but the checkpoint 'm' was built for audio_dim=9"):
        check_widths(loaded[0], rows, "m")


def test_who_reads_text_alone_is_tested_on_data_without_sound(corpus: Path, runs: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    rows = load_msa(corpus)
    columns = [name for name in rows["test"].column_names if name.startswith("audio")]
    for split in rows:
        (silent / "data").mkdir(parents=True, exist_ok=True)
        rows[split].remove_columns(columns).to_parquet(silent / "data" / f"{split}-00000-of-00001.parquet")
    shutil.copy(corpus / "msa_dataset.json", silent)
    save_untrained(corpus, tmp_path / "text" / "seed-1", "text", 1)
    found = [evaluate_runs(str(tmp_path / "text"), str(data), rates=[0.0]).content for data in (corpus, silent)]
    assert found[0]["mean_over_rates"]["mae"]["mean"] == found[1]["mean_over_rates"]["mae"]["mean"]
    with pytest.raises(MsaError, match="reads audio, but the data has no audio column"):
        evaluate_runs(str(runs), str(silent))


def test_seeds_of_two_experiments_have_no_mean(corpus: Path, runs: Path, tmp_path: Path) -> None:
    mixed = copy_of(runs, tmp_path / "mixed")
    run = json.loads((mixed / "seed-2" / "run.json").read_text(encoding="utf-8"))
    (mixed / "seed-2" / "run.json").write_text(json.dumps(run | {"ablation": "wo_tce"}), encoding="utf-8")
    with pytest.raises(MsaError, match=r"differ in their ablation \(None, wo_tce\)"):
        evaluate_runs(str(mixed), str(corpus), output=str(tmp_path / "out"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"seed": 1}', '{"seed": "x", "selection": {}}'])
def test_a_damaged_run_file_is_named(corpus: Path, runs: Path, tmp_path: Path, text: str) -> None:
    run = copy_of(runs / "seed-1", tmp_path / "run")
    (run / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(MsaError, match=r"run\.json' is damaged .*run the training command again\.$"):
        evaluate_runs(str(run), str(corpus), output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tset"}, "Unknown split 'tset'.*'test'"),
        ({"batch_size": 0}, "--batch-size is 0; give at least 1"),
        ({"output": __file__}, "is a file; give a folder as --output"),
    ],
)
def test_wrong_options_are_one_sentence(
    corpus: Path, runs: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MsaError, match=words):
        evaluate_runs(str(runs), str(corpus), **{"output": str(tmp_path / "out"), **options})
    assert not (tmp_path / "out").exists()


# --- Checkpoints and splits ---


def test_models_are_found_in_order(runs: Path, tmp_path: Path) -> None:
    assert find_models(str(runs)) == [str(runs / "seed-1"), str(runs / "seed-2")]
    assert find_models(str(runs / "seed-2")) == [str(runs / "seed-2")]
    assert find_models("org/name") == ["org/name"]
    with pytest.raises(MsaError, match="no finished checkpoint .*train one first"):
        find_models(str(tmp_path))


def test_a_checkpoint_without_some_weights_is_refused(runs: Path, tmp_path: Path) -> None:
    run = copy_of(runs / "seed-1", tmp_path / "run")
    weights = load_file(run / "model.safetensors")
    del weights["regressor.weight"]
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(MsaError, match="'model.safetensors' has [0-9]+ bytes instead of [0-9]+"):
        load_checkpoint(str(run))
    (run / "hf_msa_files.json").unlink()
    with pytest.raises(MsaError, match="lacks 1 weights of its model, e.g. 'regressor.weight'"):
        load_checkpoint(str(run))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model.safetensors", "cut"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "hf_msa_tcmr", "num_tokens": 0}'),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(runs: Path, tmp_path: Path, file: str, text: str) -> None:
    run = copy_of(runs / "seed-1", tmp_path / "run")
    (run / file).write_text(text, encoding="utf-8")
    with pytest.raises(MsaError, match=r"No checkpoint can be loaded from '[^\n]*\.$") as error:
        load_checkpoint(str(run))
    assert "\n" not in str(error.value)


def test_another_model_is_no_checkpoint_of_ours(corpus: Path) -> None:
    with pytest.raises(MsaError, match="is no hf_msa checkpoint but a BertModel"):
        load_checkpoint(str(corpus / "text_model"))


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_split_without_rows_is_one_sentence(corpus: Path, tmp_path: Path, damage: str) -> None:
    folder = copy_of(corpus, tmp_path / "data")
    [file] = (folder / "data").glob("test-*")
    if damage == "empty":
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    else:
        file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(
        MsaError, match="The split 'test' of .* is empty|test-.* cannot be read as Parquet .* it is damaged"
    ):
        load_split(str(folder), "test")


def test_a_method_that_reads_rows_gets_those_of_the_batch(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    forward = model.predict_rows
    seen: list[str] = []

    def read(inputs: dict[str, torch.Tensor], members: list[dict[str, Any]], given: MsaProcessor) -> Any:
        assert given is processor and len(members) == len(inputs["input_ids"])
        for member, ids in zip(members, inputs["input_ids"], strict=True):
            assert ids[: len(member["input_ids"])].tolist() == member["input_ids"].tolist()
        seen.extend(member["id"] for member in members)
        return forward(inputs, members, given)

    monkeypatch.setattr(model, "predict_rows", read)
    sweep(model, processor, rows, [(1, 0.0, CompleteProtocol())], batch_size=7)
    assert sorted(seen) == sorted(rows.ids)


def test_a_method_may_take_several_batches_before_it_answers(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[Condition] = [(1, rate, FrameMissing(rate=rate, seed=1)) for rate in (0.0, 0.5)]
    expected, shares = sweep(*loaded, rows, tested, batch_size=7)
    model = loaded[0]

    def at_the_end(batches: Any, processor: MsaProcessor) -> Any:
        return iter([model.predict_rows(*batch, processor) for batch in list(batches)])

    monkeypatch.setattr(model, "predict_batches", at_the_end)
    found, again = sweep(*loaded, rows, tested, batch_size=7)
    assert again == shares
    for part, other in zip(found, expected, strict=True):
        assert np.array_equal(part["prediction"], other["prediction"]) and part["rate"] == other["rate"]


def test_what_a_method_cannot_have_is_one_sentence(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("The expert cannot be reached.")

    monkeypatch.setattr(loaded[0], "predict_rows", refuse)
    with pytest.raises(MsaError, match=r"^The expert cannot be reached\.$"):
        sweep(*loaded, rows, [(1, 0.0, CompleteProtocol())])


def test_a_tokenizer_without_its_files_is_not_used(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "seed-1", tmp_path / "run")
    (run / "tokenizer.json").unlink()
    with pytest.raises(MsaError, match="not whole: 'tokenizer.json' is missing"):
        load_checkpoint(str(run))
    (run / "hf_msa_files.json").unlink()
    with pytest.raises(MsaError, match=r"tokenizer of the checkpoint .* knows no words: its files \(tokenizer.json\)"):
        load_checkpoint(str(run))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff", b'{"processor_class": 3}', b"[" * 100_000]
)
def test_a_damaged_file_of_a_checkpoint_is_one_sentence(runs: Path, tmp_path: Path, name: str, content: bytes) -> None:
    run = copy_of(runs / "seed-1", tmp_path / "run")
    (run / name).write_bytes(content)
    try:
        load_checkpoint(str(run))
    except MsaError as error:
        assert "\n" not in str(error) and str(run) in str(error)
    else:
        # The tokenizer's class is known by the processor's configuration, too.
        assert (name, content) in (("tokenizer_config.json", b'{"processor_class": 3}'),)


def test_a_server_is_asked_where_the_caller_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_msa.models.msa_mllm_endpoint._allowed", {})
    monkeypatch.delenv("HF_MSA_ENDPOINT", raising=False)
    fixture = str(Path(__file__).parents[1] / "fixtures" / "checkpoints" / "uacs")
    address = {"expert_kind": "endpoint", "expert_model": "http://127.0.0.1:1/v1", "expert_adapter": False}
    named: Any = load_checkpoint(fixture, {**address, "route": "cascade"})[0]
    assert named.expert.name == "http://127.0.0.1:1/v1"
    # As somebody may publish it.
    monkeypatch.setattr("hf_msa.models.msa_mllm_endpoint._allowed", {})
    copy = copy_of(Path(fixture), tmp_path / "published")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **address, "route": "cascade"}))
    published: Any = load_checkpoint(str(copy))[0]
    with pytest.raises(ValueError, match="is a server, .* has not been allowed"):
        _ = published.expert


# --- Predictions that are none ---


def test_a_score_that_is_no_number_is_refused_with_its_samples(
    loaded: tuple[MsaPreTrainedModel, MsaProcessor], rows: MsaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    lost = {rows.ids[3], rows.ids[7]}
    predict = model.predict_rows

    def broken(inputs: Any, members: Any, given: Any) -> Any:
        outputs = predict(inputs, members, given)
        for place, member in enumerate(members):
            if member["id"] in lost:
                outputs.logits[place] = float("nan")
        return outputs

    monkeypatch.setattr(model, "predict_rows", broken)
    with pytest.raises(MsaError, match=f"not a finite number for 2 of {len(rows)} samples") as error:
        sweep(model, processor, rows, conditions("frame", MODALITIES, [0.3], [3]))
    assert all(repr(name) in str(error.value) for name in lost) and "at 0.3" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_evaluated_in_full(runs: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Its processor gives float32, and its weights are read as such."""
    model, processor = load_checkpoint(str(runs / "seed-1"))
    model.to(dtype).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {
        value.dtype for value in load_file(tmp_path / "model.safetensors").values() if value.is_floating_point()
    } == {dtype}
    loaded, _ = load_checkpoint(str(tmp_path))
    whole, _ = load_checkpoint(str(runs / "seed-1"))
    inputs = processor(["so it was"], audio=None, vision=None)
    with torch.no_grad():
        assert loaded(**inputs).logits.item() == pytest.approx(whole(**inputs).logits.item(), abs=0.05)
