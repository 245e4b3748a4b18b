"""Study of every method's own mechanism on the generated sample corpus: does it help where its fuel is planted, only there?

    python scripts/study.py run WORK                 # everything that study.yaml plans; what is there already stays
    python scripts/study.py run WORK --only tcmr --seeds 1 2
    python scripts/study.py report WORK              # WORK/report: for each study NAME.json, a figure, and the tools' tables
    python scripts/render_results.py keep WORK/report study

A job is one process with one thread: a corpus, a training with its evaluation, a ceiling, an analysis tool. Jobs go through
the seeds one after the other, so that a study that is stopped has whole seeds; started again, it goes on where it was.
`--jobs 2` runs two at a time. Each job writes `WORK/logs/NAME.log` and, once it is done, `WORK/jobs/NAME.json` with its
seconds. A job that fails is named at the end, and the others go on.

The report needs no training: it reads the predictions that are there and says of how many seeds they are.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hf_msa.data.loading import dataset_facts
from hf_msa.data.sample_corpus import read_planted
from hf_msa.errors import MsaError
from hf_msa.evaluation.ceiling import evaluate_ceiling
from hf_msa.evaluation.metrics import regression_metrics
from hf_msa.evaluation.results import Predictions, plain, read_predictions
from hf_msa.figures import write_figure
from hf_msa.files import write_json
from hf_msa.label_families import find_label_family

PLAN = Path(__file__).with_name("study.yaml")
CEILING = "ceiling"
ABSOLUTE, WRONG_SIGN = "absolute error", "wrong sign"
#: What a study may measure effects by, as a figure's axis has it: the sign is that of the labels that are not 0, in percent.
MEASURES = {ABSOLUTE: "lower mean absolute error", WRONG_SIGN: "fewer wrong signs, in points"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One process with one thread, or several after one another.

    Attributes:
        name: What it is called in logs and messages.
        commands: The commands, each a list of arguments of this Python.
        phase: Jobs of a phase begin once those of the earlier phases have ended.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    phase: int

    @property
    def slug(self) -> str:
        """Its name as a file name."""
        return _slug(self.name)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.]+", "-", name).strip("-")


def _cli(*arguments: object) -> tuple[str, ...]:
    return ("-m", "hf_msa_cli", *(str(argument) for argument in arguments))


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options of a mapping as `--name value ...`."""
    parts: list[str] = []
    for name, value in options.items():
        parts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return parts


def _test_flags(test: Mapping[str, Any]) -> tuple[str, ...]:
    """Options of `hf-msa evaluate` for a test of the plan."""
    evaluate = dict(test["evaluate"])
    fields = evaluate.pop("protocol_fields", {})
    values = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    return (*_flags(evaluate), *(["--protocol-set", *values] if values else []))


def _set(assignments: Sequence[str]) -> list[str]:
    return ["--set", *assignments] if assignments else []


@dataclass(frozen=True)
class Arm:
    """One row of a study on one corpus.

    Attributes:
        study: The study.
        corpus: The corpus.
        name: The arm, or a row beside the methods.
        recipe: Recipe that it is trained by; None for an arm that evaluates the runs of another one.
        options: Of the training.
        runs: The arm whose runs are evaluated.
        changes: What the evaluation changes.
        test: Options of the evaluation.
        stages_from: The arm whose early stages it takes, of the same seed, where they would be the same.
    """

    study: str
    corpus: str
    name: str
    recipe: str | None
    options: tuple[str, ...]
    runs: str
    changes: tuple[str, ...]
    test: tuple[str, ...]
    stages_from: str | None = None

    def folder(self, work: Path, kind: str, name: str | None = None) -> Path:
        """Its folder among runs or results."""
        return work / kind / _slug(self.study) / _slug(self.corpus) / _slug(name or self.name)

    def result(self, work: Path, seed: int) -> Path:
        """The folder of one seed's results."""
        return self.folder(work, "results") / f"seed-{seed}"


def load_plan(path: Path = PLAN) -> dict[str, Any]:
    """Read a plan, and check that what it names is there.

    Raises:
        MsaError: If a study names a corpus, a test or an arm that the plan does not have.
    """
    plan: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, study in plan["studies"].items():
        effects = study["effects"].values()
        first = [arm for arm, values in study["arms"].items() if "stages from" not in values]
        own_arms = {"arms": list(study["arms"]), "arms that take no stages": first}
        if study.get("measure", ABSOLUTE) not in MEASURES:
            raise MsaError(
                f"The study {name!r} measures by {study['measure']!r}; give one of {', '.join(MEASURES)}, or nothing."
            )
        for known, named in (
            ("corpora", [study["fuel"], study["without"]]),
            ("tests", [study["test"]]),
            ("arms", [effect[side] for effect in effects for side in ("arm", "beside")]),
            ("arms", [arm for arms in study["tools"].values() for arm in arms]),
            ("arms", [arm["runs"] for arm in study["arms"].values() if "runs" in arm]),
            (
                "arms that take no stages",
                [arm["stages from"] for arm in study["arms"].values() if "stages from" in arm],
            ),
        ):
            among = own_arms.get(known) or plan[known]
            unknown = next((each for each in named if each not in among), None)
            if unknown is not None:
                raise MsaError(
                    f"The study {name!r} names {unknown!r}, which is not among the plan's {known}: {', '.join(among)}."
                )
    return plan


def arms_of(plan: Mapping[str, Any], study: str, corpus: str) -> list[Arm]:
    """The arms of a study on a corpus; the rows that stand beside all studies of the same test are not among them."""
    own = plan["studies"][study]
    test = _test_flags(plan["tests"][own["test"]])
    return [
        Arm(
            study,
            corpus,
            name,
            None if "runs" in arm else f"{study}/sample",
            _training_options(arm, own["set"]),
            arm.get("runs", name),
            tuple(_set(arm.get("evaluate", []))),
            test,
            arm.get("stages from"),
        )
        for name, arm in own["arms"].items()
    ]


def rows_of(plan: Mapping[str, Any], test: str, corpus: str) -> list[Arm]:
    """The rows beside the methods, trained and evaluated for one test."""
    settings = plan["tests"][test]
    return [
        Arm(
            f"rows, {test}",
            corpus,
            name,
            f"{row['method']}/sample",
            _training_options(row, settings["training"]),
            name,
            (),
            _test_flags(settings),
        )
        for name, row in plan["baselines"].items()
    ]


def _training_options(arm: Mapping[str, Any], changes: Sequence[str]) -> tuple[str, ...]:
    ablation = _flags({"ablation": arm["ablation"]}) if "ablation" in arm else []
    return (*ablation, *_set([*changes, *arm.get("set", [])]))


def _corpora(study: Mapping[str, Any]) -> list[str]:
    return [study["fuel"], study["without"]]


def plan_jobs(plan: Mapping[str, Any], work: Path, seeds: Sequence[int], only: Sequence[str]) -> Iterator[Job]:
    """All jobs in the order in which they begin.

    Args:
        plan: See study.yaml.
        work: The folder of everything that is made.
        seeds: Training seeds.
        only: The studies and scripts.
    """
    studies = {name: study for name, study in plan["studies"].items() if name in only}
    scripts = {name: script for name, script in plan.get("scripts", {}).items() if name in only}
    corpora = [corpus for study in studies.values() for corpus in _corpora(study)]
    for corpus in dict.fromkeys([*corpora, *(script["corpus"] for script in scripts.values())]):
        yield Job(
            f"corpus {corpus}",
            (_cli("sample-corpus", *_flags(plan["corpora"][corpus]), "--output", _data(work, corpus), "--overwrite"),),
            0,
        )
    tested = dict.fromkeys((study["test"], corpus) for study in studies.values() for corpus in _corpora(study))
    for seed in seeds:
        for name, study in studies.items():
            for corpus in _corpora(study):
                arms = arms_of(plan, name, corpus)
                for arm in arms:
                    if arm.stages_from is None:
                        after = [other for other in arms if other.stages_from == arm.name]
                        yield _training(work, [arm, *after], seed)
        for test, corpus in tested:
            for arm in rows_of(plan, test, corpus):
                if seed in plan["baselines"][arm.name].get("seeds", seeds):
                    yield _training(work, [arm], seed)
    for test, corpus in tested:
        output = rows_of(plan, test, corpus)[0].folder(work, "results", CEILING)
        options = json.dumps(plan["tests"][test]["evaluate"])
        command = (str(Path(__file__).resolve()), CEILING, str(_data(work, corpus)), str(output), options)
        yield Job(f"{CEILING} {test} {corpus}", (command,), 2)
    for name, script in scripts.items():
        given = (
            *(str(PLAN.with_name(script["script"])), "--data", str(_data(work, script["corpus"]))),
            *("--output", str(work / "tools" / name), "--seeds", *map(str, seeds), *_set(script["set"])),
        )
        yield Job(f"{name} of {len(seeds)}", (given,), 2)
    for name, study in studies.items():
        for corpus in _corpora(study):
            named = {arm.name: arm for arm in arms_of(plan, name, corpus)}
            for tool, analysed in study["tools"].items():
                for each in analysed:
                    arm = named[each]
                    reads_results = tool in plan.get("tools of results", ())
                    folders = (
                        [arm.result(work, seed) for seed in seeds] if reads_results else [arm.folder(work, "runs")]
                    )
                    output = work / "tools" / name / _slug(corpus) / f"{tool}-{_slug(each)}"
                    options_of_tool = _flags(plan.get("options of tools", {}).get(tool, {}))
                    analyze = _cli(
                        "analyze", tool, *folders, "--data", _data(work, corpus), "--output", output, *options_of_tool
                    )
                    yield Job(f"{tool} {name} {corpus} {each} of {len(seeds)}", (analyze,), 3)


def _data(work: Path, corpus: str) -> Path:
    return work / "data" / _slug(corpus)


def _training(work: Path, arms: Sequence[Arm], seed: int) -> Job:
    """Training and evaluation of an arm, then of those that take stages of it."""
    commands = [command for arm in arms for command in _training_commands(work, arm, seed)]
    first = arms[0]
    # An arm that evaluates the runs of another one waits for all of them.
    return Job(
        f"{first.study} {first.corpus} {' + '.join(arm.name for arm in arms)} seed={seed}",
        tuple(commands),
        2 if first.recipe is None else 1,
    )


def _training_commands(work: Path, arm: Arm, seed: int) -> Iterator[tuple[str, ...]]:
    data, runs = _data(work, arm.corpus), arm.folder(work, "runs", arm.runs)
    shared = () if arm.stages_from is None else ("--stages-from", arm.folder(work, "runs", arm.stages_from))
    if arm.recipe is not None:
        yield _cli(
            *("train", arm.recipe, *arm.options, "--data", data, "--output", runs, "--seeds", seed, *shared),
            *("--disable_tqdm", "true"),
        )
    yield _cli(
        "evaluate", runs / f"seed-{seed}", *arm.test, *arm.changes, "--data", data, "--output", arm.result(work, seed)
    )


def run_job(job: Job, work: Path) -> float | None:
    """Run one job and note its seconds.

    Args:
        job: The job.
        work: The folder of everything that is made.

    Returns:
        Its seconds, or None if it failed.
    """
    log, done = work / "logs" / f"{job.slug}.log", work / "jobs" / f"{job.slug}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    done.parent.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {"TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        for command in job.commands:
            ended = subprocess.run(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **threads}
            )
            if ended.returncode:
                return None
    seconds = time.perf_counter() - started
    write_json(done, {"name": job.name, "seconds": round(seconds, 1)})
    return seconds


def run(jobs: Sequence[Job], work: Path, at_once: int) -> list[Job]:
    """Run all jobs that have not been run.

    Args:
        jobs: The jobs.
        work: The folder of everything that is made.
        at_once: How many run at a time.

    Returns:
        Those that failed.
    """
    failed: list[Job] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(at_once) as pool:
        shown = progress.add_task("", total=len(jobs))

        def do(job: Job) -> None:
            if not (work / "jobs" / f"{job.slug}.json").is_file():
                progress.update(shown, description=job.name)
                if run_job(job, work) is None:
                    failed.append(job)
            progress.advance(shown)

        for phase in sorted({job.phase for job in jobs}):
            list(pool.map(do, [job for job in jobs if job.phase == phase]))
            if phase == 0 and failed:  # without its corpus nothing can run
                break
    return failed


# --- The report ---


@dataclass(frozen=True)
class Row:
    """What the seeds of one arm predicted.

    Attributes:
        ids: The N clips.
        labels: Their labels (N,).
        settings: R missing rates or patterns.
        seeds: S training seeds.
        scores: Predictions (S, R, N).
    """

    ids: tuple[str, ...]
    labels: Floats
    settings: tuple[Any, ...]
    seeds: tuple[int, ...]
    scores: Floats

    def errors(self, measure: str) -> Floats:
        """Errors (S, R, N) by a measure of `MEASURES`."""
        if measure == WRONG_SIGN:
            return np.asarray(100.0 * ((self.scores > 0) != (self.labels > 0)), dtype=np.float64)
        return np.asarray(np.abs(self.scores - self.labels), dtype=np.float64)

    def judged(self, measure: str) -> NDArray[np.bool_]:
        """The clips (N,) that a measure can judge."""
        return np.asarray(self.labels != 0) if measure == WRONG_SIGN else np.ones(len(self.ids), dtype=bool)

    def error(self, measure: str) -> float:
        """Mean error by a measure."""
        return float(self.errors(measure)[:, :, self.judged(measure)].mean())


def read_row(folders: Mapping[int, Path]) -> Row | None:
    """Read the predictions of an arm; None where there are none.

    Args:
        folders: A folder for each training seed.

    Raises:
        MsaError: If two seeds were not tested on the same clips and settings.
    """
    there = {seed: folder for seed, folder in folders.items() if (folder / "results.json").is_file()}
    found = {seed: read_predictions(folder) for seed, folder in there.items()}
    if not found:
        return None
    first = next(iter(found.values()))
    for seed, other in found.items():
        if other.fingerprint != first.fingerprint or other.rates != first.rates:
            raise MsaError(f"{there[seed]} was not tested as the other seeds were; remove it and run the study again.")
    scores = np.stack([_one_seed(each) for each in found.values()])
    return Row(first.ids, first.labels.astype(np.float64), first.rates, tuple(found), scores)


def _one_seed(predictions: Predictions) -> Floats:
    return np.asarray(predictions.scores.mean(axis=(0, 1), dtype=np.float64))


def effect(
    arm: Row, beside: Row, clips: NDArray[np.bool_] | None = None, measure: str = ABSOLUTE, setting: Any = None
) -> dict[str, Any]:
    """How much lower the error of one arm is than another's, over the seeds that both have.

    The interval covers chance of training and of test clips at once: the variance of the mean is that over seeds of a seed's
    mean difference, divided by the seeds, plus that over clips of a clip's mean difference, divided by the clips; the
    quantile is Student's for the seeds. What seeds and clips share is counted twice, so it is a little too wide.

    Args:
        arm: The arm.
        beside: What it is compared with, on the same clips and settings.
        clips: The clips that count (N,); default: all.
        measure: One of `MEASURES`.
        setting: The one missing rate or pattern that counts; default: the mean over all.

    Returns:
        `difference` (positive: the arm is better), `low`, `high` (None for a single seed), `seeds` and `clips`.

    Raises:
        MsaError: If they have no seed in common, or were not tested on the same clips and settings.
    """
    from scipy.stats import t

    both = [seed for seed in arm.seeds if seed in beside.seeds]
    seeds = len(both)
    if arm.ids != beside.ids or arm.settings != beside.settings:
        raise MsaError("The two arms were not tested alike; remove the results of one and run the study again.")
    if not both:
        raise MsaError("The two arms have no training seed in common; run the study with the same seeds for both.")
    if setting is not None and setting not in arm.settings:
        raise MsaError(
            f"No arm was tested at {setting!r}, but at {', '.join(map(str, arm.settings))}; change the effect."
        )
    gained = (
        beside.errors(measure)[[beside.seeds.index(seed) for seed in both]]
        - arm.errors(measure)[[arm.seeds.index(seed) for seed in both]]
    )
    gained = gained.mean(axis=1) if setting is None else gained[:, arm.settings.index(setting)]
    gained = gained[:, arm.judged(measure) & (True if clips is None else clips)]
    difference = float(gained.mean())
    found: dict[str, Any] = {"difference": difference, "low": None, "high": None}
    if seeds > 1:
        variance = gained.mean(axis=1).var(ddof=1) / seeds + gained.mean(axis=0).var(ddof=1) / gained.shape[1]
        reach = float(t.ppf(0.975, seeds - 1)) * math.sqrt(float(variance))
        found |= {"low": difference - reach, "high": difference + reach}
    return found | {"seeds": seeds, "clips": gained.shape[1]}


def share_of_way(error: float, text: float, ceiling: float) -> float:
    """How much of the way from the text baseline to the ceiling a method goes: 0 = the baseline, 1 = the ceiling."""
    return (text - error) / (text - ceiling)


def _means(values: Sequence[float]) -> dict[str, float | None]:
    array = np.asarray(values, dtype=np.float64)
    return {"mean": float(array.mean()), "sd": float(array.std(ddof=1)) if len(array) > 1 else None}


def _table_row(row: Row, family: Any, measure: str, ways: Mapping[str, float]) -> dict[str, Any]:
    seeds = [[regression_metrics(scores, row.labels, family) for scores in each] for each in row.scores]
    found: dict[str, Any] = {"seeds": len(row.scores)}
    for metric in ("mae", "corr", "non0_acc2"):
        found[metric] = _means([float(np.mean([cell[metric] for cell in each])) for each in seeds])
    found["settings"] = {
        str(setting): _means([each[place]["mae"] for each in seeds]) for place, setting in enumerate(row.settings)
    }
    if ways:
        found["way"] = share_of_way(row.error(measure), ways["text"], ways[CEILING])
    return found


def report(plan: Mapping[str, Any], work: Path, output: Path) -> None:
    """Compute tables and effects of what has been run, and write them with figures.

    Args:
        plan: See study.yaml.
        work: The folder that `run` filled.
        output: Where a JSON file and a figure for each study and the tools' tables shall be.
    """
    for name, study in plan["studies"].items():
        own = {corpus: _corpus_report(plan, work, name, corpus) for corpus in _corpora(study)}
        own = {corpus: part for corpus, part in own.items() if part["arms"]}
        if not own:
            continue
        measure = study.get("measure", ABSOLUTE)
        facts = {"question": study["question"], "fuel": study["fuel"], "measure": measure}
        facts["core hours"] = _core_hours(plan, work, name)
        write_json(output / f"{name}.json", plain({**facts, "corpora": own}))
        if any(part["effects"] for part in own.values()):
            write_figure(output / name, partial(_draw, corpora=own, measure=measure))
        for summary in sorted((work / "tools" / name).glob("*/*/*.md")):
            target = output / f"{name}-{summary.parent.parent.name}-{summary.parent.name}.md"
            shutil.copyfile(summary, target)
    output.mkdir(parents=True, exist_ok=True)
    for name in plan.get("scripts", {}):
        own = work / "tools" / name
        for file in (*own.glob("*.md"), *own.glob("*.json")):
            shutil.copyfile(file, output / f"{name}{file.suffix}")
        for drawing in own.glob("analysis/*/*.svg"):
            shutil.copyfile(drawing, output / f"{name}-{drawing.parent.name}.svg")


def _core_hours(plan: Mapping[str, Any], work: Path, study: str) -> float:
    """Of one study, with the rows beside it."""
    files = [work / "jobs" / f"{job.slug}.json" for job in plan_jobs(plan, work, plan["seeds"], [study])]
    seconds = [float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in files if file.is_file()]
    return round(sum(seconds) / 3600, 1)


def _corpus_report(plan: Mapping[str, Any], work: Path, name: str, corpus: str) -> dict[str, Any]:
    study = plan["studies"][name]
    beside = rows_of(plan, study["test"], corpus)
    rows = {
        arm.name: row
        for arm in [*beside, *arms_of(plan, name, corpus)]
        if (row := read_row({seed: arm.result(work, seed) for seed in plan["seeds"]})) is not None
    }
    ceiling = read_row({0: beside[0].folder(work, "results", CEILING)})
    if ceiling is not None:
        rows[CEILING] = ceiling
    if len({row.settings for row in rows.values()}) > 1:
        raise MsaError(
            f"The rows of {name!r} on {corpus!r} were not tested alike; remove their results and run it again."
        )
    arms = [arm for arm in study["arms"] if arm in rows]
    if not arms:
        return {"arms": {}, "effects": {}}
    measure = study.get("measure", ABSOLUTE)
    family = find_label_family(dataset_facts(str(_data(work, corpus))).label_family)
    ways = {}
    if "text" in rows and ceiling is not None:
        ways = {each: rows[each].error(measure) for each in ("text", CEILING)}
    planted = {row["id"]: row["kind"] for row in read_planted(_data(work, corpus), "test").rows}
    effects = {}
    for label, wanted in study["effects"].items():
        if wanted["arm"] in rows and wanted["beside"] in rows:
            arm = rows[wanted["arm"]]
            clips = np.array([planted[each] == wanted["clips"] for each in arm.ids]) if "clips" in wanted else None
            if clips is None or clips.any():
                effects[label] = effect(arm, rows[wanted["beside"]], clips, measure, wanted.get("setting"))
    table = {
        each: _table_row(rows[each], family, measure, ways)
        for each in [*plan["baselines"], CEILING, *arms]
        if each in rows
    }
    return {"arms": table, "effects": effects}


def _draw(figure: Any, corpora: Mapping[str, Mapping[str, Any]], measure: str) -> None:
    labels = list(dict.fromkeys(label for part in corpora.values() for label in part["effects"]))
    figure.set_size_inches(5.5, 0.9 + 0.45 * len(labels))
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=0.8)
    for number, (corpus, part) in enumerate(corpora.items()):
        for label, found in part["effects"].items():
            height = len(labels) - 1 - labels.index(label) + 0.13 - 0.26 * number
            known = found["low"] is not None
            reach = [[found["difference"] - found["low"]], [found["high"] - found["difference"]]] if known else None
            axes.errorbar(
                found["difference"],
                height,
                xerr=reach,
                fmt="o",
                markersize=4,
                color=f"C{number}",
                capsize=2,
                label=corpus if label == next(iter(part["effects"])) else None,
            )
    axes.set_yticks(range(len(labels)), labels[::-1])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(f"{MEASURES[measure]} (95 % interval over seeds and clips)")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(corpora))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study, or report it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=PLAN, help="the plan (default: study.yaml beside this script)")
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("run", help="run what has not been run")
    part.add_argument("work", type=Path, help="folder of everything that is made")
    part.add_argument("--only", nargs="+", metavar="STUDY", help="these studies alone")
    part.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: the plan's)")
    part.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="how many at a time, one thread each")
    part = commands.add_parser("report", help="tables, effects and figures of what has been run")
    part.add_argument("work", type=Path, help="folder that `run` filled")
    part.add_argument("--output", type=Path, help="where to write (default: report in that folder)")
    part = commands.add_parser(CEILING, help="the ceiling of one corpus, a job of `run`")
    part.add_argument("data", help="the corpus")
    part.add_argument("output", help="folder of the results")
    part.add_argument("options", help="protocol of the evaluation, as JSON")
    arguments = parser.parse_args(argv)
    try:
        plan = load_plan(arguments.plan)
        if arguments.command == "report":
            report(plan, arguments.work, arguments.output or arguments.work / "report")
            return 0
        if arguments.command == CEILING:
            evaluate_ceiling(arguments.data, arguments.output, **json.loads(arguments.options))
            return 0
        known = [*plan["studies"], *plan.get("scripts", {})]
        only = arguments.only or known
        unknown = next((name for name in only if name not in known), None)
        if unknown is not None:
            raise MsaError(f"There is no study {unknown!r}; there are {', '.join(known)}.")
    except MsaError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    work = arguments.work.resolve()
    failed = run(list(plan_jobs(plan, work, arguments.seeds or plan["seeds"], only)), work, arguments.jobs)
    for job in failed:
        sys.stderr.write(f"failed: {job.name}; see {work / 'logs' / job.slug}.log\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
