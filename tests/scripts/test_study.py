"""The study of mechanisms: its plan, its jobs, and the numbers of its report."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hf_msa.errors import MsaError

_PATH = Path(__file__).resolve().parents[2] / "scripts" / "study.py"
_SPEC = importlib.util.spec_from_file_location("study", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
study = importlib.util.module_from_spec(_SPEC)
sys.modules["study"] = study
_SPEC.loader.exec_module(study)

TINY: dict[str, Any] = {
    "seeds": [1, 2],
    "corpora": {"with": {"preset": "tiny"}, "without it": {"preset": "tiny", "audio-articulation": 0}},
    "tests": {
        "frames": {
            "evaluate": {"protocol": "frame", "rates": [0.0, 0.5]},
            "training": ["stages.main.num_train_epochs=1"],
        }
    },
    "baselines": {"constant": {"method": "ridge", "ablation": "constant"}, "text": {"method": "text"}},
    "studies": {
        "pglh": {
            "question": "Does it help?",
            "fuel": "with",
            "without": "without it",
            "test": "frames",
            "set": ["stages.main.num_train_epochs=1"],
            "arms": {
                "PGLH": {},
                "no prompt": {"ablation": "wo_prompt"},
                "again": {"runs": "PGLH", "evaluate": ["w_task=2"]},
            },
            "effects": {
                "prompt": {"arm": "PGLH", "beside": "no prompt"},
                "lies": {"arm": "PGLH", "beside": "no prompt", "clips": "conflicting"},
            },
            "tools": {"reconstruction": ["PGLH"]},
        }
    },
}


def test_tools_of_results_are_given_those_of_each_seed() -> None:
    jobs = list(study.plan_jobs(study.load_plan(), Path("work"), [1, 2], ["cmc"]))
    router, *_ = [job.commands[0] for job in jobs if job.name.startswith("router cmc lies CMC")]
    results = Path("work/results/cmc/lies/CMC")
    assert router[4:6] == (str(results / "seed-1"), str(results / "seed-2"))


def test_an_arm_that_takes_stages_of_another_is_trained_after_it_in_the_same_job() -> None:
    arms = {"PGLH": {}, "alone": {}, "no prompt": {"ablation": "wo_prompt", "stages from": "PGLH"}}
    plan = {**TINY, "studies": {"pglh": {**TINY["studies"]["pglh"], "arms": arms}}}
    jobs = {job.name: job for job in study.plan_jobs(plan, Path("work"), [1], ["pglh"]) if job.name[:9] == "pglh with"}
    assert [name for name in jobs if " with " in name] == [
        "pglh with PGLH + no prompt seed=1",
        "pglh with alone seed=1",
    ]
    commands = jobs["pglh with PGLH + no prompt seed=1"].commands
    assert [each[2] for each in commands] == ["train", "evaluate"] * 2
    first, second = commands[::2]
    runs = Path("work/runs/pglh/with")
    assert "--stages-from" not in first and second[second.index("--stages-from") + 1] == str(runs / "PGLH")
    assert second[second.index("--output") + 1] == str(runs / "no-prompt")


def test_wrong_signs_are_counted_where_the_label_has_one() -> None:
    arm = study.Row(("a", "b", "c"), np.array([1.0, 0.0, -2.0]), (0.0,), (1,), np.array([[[0.1, -1.0, 0.5]]]))
    beside = study.Row(arm.ids, arm.labels, (0.0,), (1,), np.array([[[-0.1, 1.0, 0.5]]]))
    assert (arm.error(study.WRONG_SIGN), beside.error(study.WRONG_SIGN)) == (50, 100)
    found = study.effect(arm, beside, measure=study.WRONG_SIGN)
    assert (found["difference"], found["clips"]) == (50, 2)
    assert study.effect(arm, beside, np.array([True, True, False]), study.WRONG_SIGN)["difference"] == 100


def _row(seeds: tuple[int, ...], scores: Any, labels: Any = (0.0, 0.0)) -> Any:
    array = np.asarray(scores, dtype=np.float64)
    return study.Row(("a", "b"), np.asarray(labels, dtype=np.float64), tuple(range(array.shape[1])), seeds, array)


def test_the_interval_of_an_effect_covers_chance_of_seeds_and_of_clips() -> None:
    # One setting; errors of the arm are 0, those beside it 1, 3 and 2, 6: differences (1, 3) and (2, 6), mean 3.
    arm, beside = _row((1, 2), [[[0, 0]], [[0, 0]]]), _row((1, 2), [[[1, -3]], [[2, -6]]])
    found = study.effect(arm, beside)
    # Means of seeds 2 and 4: variance 2, over 2 seeds 1. Means of clips 1.5 and 4.5: variance 4.5, over 2 clips 2.25.
    reach = 12.706204736 * math.sqrt(1 + 2.25)
    assert found["difference"] == 3
    assert found["low"] == pytest.approx(3 - reach) and found["high"] == pytest.approx(3 + reach)
    assert (found["seeds"], found["clips"]) == (2, 2)


def test_an_effect_is_of_the_setting_that_counts() -> None:
    arm = study.Row(("a",), np.zeros(1), (0.0, 0.9), (1,), np.zeros((1, 2, 1)))
    beside = study.Row(("a",), np.zeros(1), (0.0, 0.9), (1,), np.array([[[1.0], [5.0]]]))
    assert [study.effect(arm, beside, setting=each)["difference"] for each in (None, 0.0, 0.9)] == [3, 1, 5]
    with pytest.raises(MsaError, match=r"No arm was tested at 0\.5, but at 0\.0, 0\.9; change the effect\.$"):
        study.effect(arm, beside, setting=0.5)


def test_an_effect_is_paired_by_seed_and_of_the_clips_that_count() -> None:
    arm = _row((1, 3), [[[0, 0]], [[9, 9]]])
    beside = _row((2, 1), [[[7, 7]], [[1, 5]]])
    assert study.effect(arm, beside, np.array([False, True])) == {
        "difference": 5,
        "low": None,
        "high": None,
        "seeds": 1,
        "clips": 1,
    }
    with pytest.raises(MsaError, match="no training seed in common"):
        study.effect(arm, _row((2,), [[[7, 7]]]))


def test_settings_are_averaged_before_clips_are_compared() -> None:
    arm, beside = _row((1,), [[[0, 0], [1, 1]]]), _row((1,), [[[2, 4], [3, -5]]])
    # (2 + 2) / 2 and (4 + 4) / 2.
    assert study.effect(arm, beside)["difference"] == 3


def test_the_share_of_the_way_to_the_ceiling() -> None:
    assert study.share_of_way(0.8, text=1.0, ceiling=0.5) == pytest.approx(0.4)
    assert study.share_of_way(1.1, text=1.0, ceiling=0.5) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fuel", "nothing", "'nothing', which is not among the plan's corpora: with, without it"),
        ("test", "none", "'none', which is not among the plan's tests: frames"),
        ("effects", {"x": {"arm": "PGLH", "beside": "that"}}, "'that', which is not among the plan's arms"),
        ("tools", {"proxy": ["TCMR"]}, "'TCMR', which is not among the plan's arms"),
        ("arms", {"PGLH": {}, "no prompt": {}, "again": {"runs": "it"}}, "'it', which is not among the plan's arms"),
        (
            "arms",
            {"PGLH": {}, "no prompt": {"stages from": "PGLH"}, "again": {"stages from": "no prompt"}},
            "'no prompt', which is not among the plan's arms that take no stages: PGLH",
        ),
    ],
)
def test_a_plan_that_names_what_it_lacks_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    plan = {**TINY, "studies": {"pglh": {**TINY["studies"]["pglh"], key: value}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(MsaError, match=message):
        study.load_plan(tmp_path / "plan.yaml")


def test_the_plan_of_the_repository_holds_and_its_recipes_load() -> None:
    from hf_msa.training.recipes import load_recipe

    plan = study.load_plan()
    assert len(plan["seeds"]) >= 5
    for test in plan["tests"].values():
        for row in plan["baselines"].values():
            load_recipe(f"{row['method']}/sample", ablation=row.get("ablation"), assignments=test["training"])
    for script in plan["scripts"].values():
        assert _PATH.with_name(script["script"]).is_file() and script["corpus"] in plan["corpora"]
        load_recipe("ubm/sample", assignments=script["set"])
    for name, own in plan["studies"].items():
        assert own["fuel"] != own["without"]
        for arm in own["arms"].values():
            load_recipe(f"{name}/sample", ablation=arm.get("ablation"), assignments=[*own["set"], *arm.get("set", [])])


def test_jobs_are_planned_seed_by_seed_and_each_once(tmp_path: Path) -> None:
    jobs = list(study.plan_jobs(TINY, tmp_path, [1, 2], ["pglh"]))
    assert len({job.slug for job in jobs}) == len(jobs) == 2 + 2 * (2 * 3 + 2 * 2) + 2 + 2
    seeds = [job.name[-1] for job in jobs if "seed=" in job.name]
    assert seeds == ["1"] * 10 + ["2"] * 10
    assert [job.phase for job in jobs if " again " in job.name] == [2] * 4
    script = {"x": {"script": "uacs_stub_study.py", "corpus": "with", "set": []}}
    corpus, job = study.plan_jobs({**TINY, "scripts": script}, tmp_path, [1, 2], ["x"])
    assert (corpus.name, corpus.phase, job.phase) == ("corpus with", 0, 2)
    assert job.commands[0][-3:] == ("--seeds", "1", "2")


def _fake(monkeypatch: pytest.MonkeyPatch, failing: str) -> list[list[str]]:
    called: list[list[str]] = []

    def ran(command: list[str], **_: Any) -> Any:
        called.append(command)
        return type("Ended", (), {"returncode": int(failing in command)})

    monkeypatch.setattr(study.subprocess, "run", ran)
    return called


def test_a_job_that_fails_is_named_and_run_again_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    command = ["--plan", str(plan), "run", str(tmp_path / "work"), "--seeds", "1"]
    _fake(monkeypatch, "wo_prompt")
    assert study.main(command) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" seed=")[0] for line in told] == [
        "failed: pglh with no prompt",
        "failed: pglh without it no prompt",
    ]
    called = _fake(monkeypatch, "nothing fails")
    assert study.main(command) == 0
    # Training and test of the two that failed.
    assert len(called) == 4
    assert study.main(command) == 0
    assert len(called) == 4


def test_a_study_that_there_is_not_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert study.main(["run", str(tmp_path), "--only", "ridge"]) == 2
    assert capsys.readouterr().err == "error: There is no study 'ridge'; there are tcmr, pglh, cmc, omg, uacs.\n"


def test_a_report_of_scripts_alone_has_their_summary_and_their_drawings(tmp_path: Path) -> None:
    drawings = tmp_path / "tools" / "x" / "analysis" / "accuracy-cost"
    drawings.mkdir(parents=True)
    (drawings / "accuracy_cost.svg").write_text("<svg/>", encoding="utf-8")
    (tmp_path / "tools" / "x" / "summary.md").write_text("# x", encoding="utf-8")
    plan = {"studies": {}, "scripts": {"x": {"script": "x.py", "corpus": "on"}}}
    study.report(plan, tmp_path, tmp_path / "report")
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["x-accuracy-cost.svg", "x.md"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_study_runs_from_corpus_to_report(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    assert study.main(["--plan", str(plan), "run", str(tmp_path / "work"), "--seeds", "1"]) == 0
    assert study.main(["--plan", str(plan), "report", str(tmp_path / "work"), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "pglh.json").read_text(encoding="utf-8"))["corpora"]
    assert list(found) == ["with", "without it"]
    rows = found["with"]["arms"]
    assert list(rows) == ["constant", "text", "ceiling", "PGLH", "no prompt", "again"]
    assert (rows["ceiling"]["way"], rows["text"]["way"]) == pytest.approx((1, 0), abs=1e-6)
    assert rows["again"]["mae"] == rows["PGLH"]["mae"] != rows["no prompt"]["mae"]
    gained = rows["no prompt"]["mae"]["mean"] - rows["PGLH"]["mae"]["mean"]
    assert found["with"]["effects"]["prompt"]["difference"] == pytest.approx(gained, abs=1e-6)
    assert (tmp_path / "out" / "pglh.png").is_file()
    assert len(list((tmp_path / "out").glob("pglh-*-reconstruction-PGLH.md"))) == 2
