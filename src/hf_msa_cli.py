"""The `hf-msa` command: only the parser, so that `--help` answers at once; the work is in `hf_msa.cli`.

This module stands beside the package on purpose: importing anything from `hf_msa` registers all methods with transformers,
which takes seconds.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        metavar="{mosi,mosei,sims,simsv2,custom}",
        help="what the source holds; also a name that an installed package adds",
    )
    parser.add_argument("--source", required=True, help="MMSA pickle, label.csv with features, Parquet or .csd files")
    parser.add_argument("--output", required=True, help="folder to write the prepared data set to")
    parser.add_argument("--features", help="folder of feature files (.npy/.csv/.mat) beside a label.csv")
    parser.add_argument(
        "--label-family",
        help="label range, classes and metrics of a custom data set: mosi, sims, or a YAML file with name, low, high ...",
    )
    parser.add_argument(
        "--split-by-video",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of new splits without a video in two of them, for data without official splits, e.g. 0.6 0.2 0.2",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="also upload it to the Hub")
    parser.add_argument("--private", action="store_true", help="make the Hub data set private")


def _sample_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="small", help="tiny, small, mosi or study (default: small)")
    parser.add_argument("--output", required=True, help="folder to write the corpus to")
    parser.add_argument("--seed", type=int, default=1111, help="seed of everything (default: 1111)")
    parser.add_argument("--version", type=int, default=2, help="version of the corpus, 1 or 2 (default: 2)")
    for split in ("train", "validation", "test"):
        parser.add_argument(
            f"--{split}", type=int, metavar="N", help=f"clips in the {split} split (default: the preset's)"
        )
    for modality, width in (("audio", 5), ("vision", 20)):
        parser.add_argument(
            f"--{modality}-dim", type=int, metavar="N", help=f"width of {modality} frames (default: {width})"
        )
        parser.add_argument(
            f"--{modality}-fps",
            type=float,
            metavar="X",
            help=f"{modality} frames per second, in which some 3 words are said (default: the preset's)",
        )
    parser.add_argument(
        "--sentiment", help="how strongly audio and vision show it: weak, normal or strong (default: normal)"
    )
    for option, default, text in (
        ("audio-sentiment", 0.45, "correlation of a linear probe on time-averaged audio with the label, 0 = off"),
        ("vision-sentiment", 0.4, "the same for vision"),
        ("audio-articulation", 0.35, "share of audio's variance within clips that the words explain, 0 = off"),
        ("vision-articulation", 0.2, "the same for vision"),
        ("persona", 0.25, "share of the variance of frames and tempo that the persona explains, 0 = off"),
        ("persona-gain", 0.35, "spread of the logarithm of how strongly a persona shows sentiment, 0 = off"),
        ("persona-flips", 0.2, "share of the personas with a flipped sign in audio or vision, 0 = off"),
        ("conflict-rate", 0.2, "share of the clips in which one modality lies, 0 = off"),
    ):
        parser.add_argument(f"--{option}", type=float, metavar="X", help=f"{text} (default: {default})")
    parser.add_argument("--personas", type=int, metavar="N", help="how many personas there are (default: 400)")
    parser.add_argument(
        "--recordings",
        type=int,
        default=0,
        metavar="N",
        help="also speak N of the clips, by espeak-ng where it is installed: recordings/ with a manifest.csv (default: 0)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")


def _extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifest",
        help="a folder of clips; a CSV or JSONL file with path, text, label, split, start, end; or a data set of the "
        "library datasets with a column of sound or video, as a folder or by its Hub name",
    )
    parser.add_argument("--output", required=True, help="folder to write the data set to")
    parser.add_argument(
        "--label-family",
        required=True,
        help="label range, classes and metrics: mosi, sims, or a YAML file with name, low, high ...",
    )
    parser.add_argument("--audio-set", metavar="NAME", help="audio features: prosody, librosa33, logmel or egemaps25")
    parser.add_argument("--vision-set", metavar="NAME", help="vision features")
    parser.add_argument("--face-model", metavar="FILE", help="face landmark model (.task) of MediaPipe")
    parser.add_argument(
        "--transcribe",
        metavar="MODEL",
        help="write the transcripts that are not given: a Whisper model, by size, folder or Hub name",
    )
    parser.add_argument("--language", help="language of the speech, e.g. en (default: the transcriber finds out)")
    parser.add_argument("--align", action="store_true", help="average features over each transcribed word")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="<method>/<dataset>, or a YAML file; see `hf-msa recipes`")
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument("--output", required=True, help="folder of the runs; each seed gets seed-<N> in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111], help="training seeds (default: 1111)")
    parser.add_argument("--ablation", help="a row of the method's ablation table")
    parser.add_argument(
        "--train-rate",
        default="mixed",
        metavar="{mixed,match,RATE}",
        help="mixed: what the recipe drops in training; RATE: whole modalities at this rate; match: a model for each of the "
        "rates 0.0 to 0.7, in rate-<R> of the output (default: mixed)",
    )
    parser.add_argument(
        "--stages-from",
        metavar="DIR",
        help="--output of earlier runs, e.g. of the full model for its ablations: stages that were made there of the same "
        "data, settings and seed are taken and not trained again",
    )
    _media(parser)
    parser.add_argument("--text-model", help="folder or Hub name of a BERT-family checkpoint")
    _assignments(parser, "--set", "assignments", "override the recipe, e.g. model.num_tokens=4")
    parser.epilog = "Any flag of transformers.TrainingArguments is taken too, e.g. --num_train_epochs 5 --bf16."


def _assignments(parser: argparse.ArgumentParser, flag: str, name: str, help_text: str) -> None:
    parser.add_argument(flag, dest=name, action="extend", nargs="+", default=[], metavar="FIELD=VALUE", help=help_text)


def _media(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--media",
        metavar="DIR",
        help="folder with <video_id>/<clip_id>.wav or .mp4 (also flac, mp3, mkv, webm, avi) for the expert of methods that "
        "ask one",
    )


def _protocol(parser: argparse.ArgumentParser, default: str | None, default_help: str) -> None:
    parser.add_argument(
        "--protocol",
        default=default,
        help=f"frame, block, modality, pattern, fixed, user, legacy_lnln or complete (default: {default_help})",
    )
    _assignments(
        parser,
        "--protocol-set",
        "protocol_assignments",
        "settings of the protocol, e.g. blocks=2 for block, source=masks.json for user, audio_width=9 for legacy_lnln",
    )
    parser.add_argument("--rates", type=float, nargs="+", help="missing rates (default: the protocol's own)")
    parser.add_argument("--mask-seeds", type=int, nargs="+", default=[1111], help="seeds of the masks (default: 1111)")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (one seed or all of them), a saved model, or a Hub name")
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument(
        "--output",
        help="folder for the results (default: the run itself; for a subset subset-<name> in it); those of another test "
        "that are there are not replaced",
    )
    _protocol(parser, None, "the one that its recipe chose the model under, or frame")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--subset", help="consistent or inconsistent: samples whose modalities agree or not, by their unimodal labels"
    )
    parser.add_argument(
        "--subset-rule",
        help="what is inconsistent: differs_from_M, not_all_equal or polarity_conflict (default: differs_from_M)",
    )
    _assignments(
        parser,
        "--set",
        "assignments",
        "change the model's configuration, e.g. route=mllm for U-ACS; needs --output",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code in a checkpoint of a method that is not registered here",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="rows per batch (default: 128)")
    _media(parser)


def _evaluate_predictions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions",
        help="Parquet or CSV with id, prediction, label and rate or pattern; also training_seed and mask_seed",
    )
    parser.add_argument("--data", required=True, help="folder or Hub name of the prepared data set that they are of")
    parser.add_argument("--name", required=True, help="what the method is called in tables")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument(
        "--protocol", help="how data were missing, e.g. frame or modality (default: complete, or fixed)"
    )
    _assignments(parser, "--protocol-set", "protocol_assignments", "the protocol's other fields, e.g. blocks=2")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")


def _baselines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument(
        "--output", required=True, help="folder of the rows, one folder each, which `hf-msa compare` takes"
    )
    parser.add_argument("--recipe", metavar="DATASET", help="whose recipes: sample or mosi (default: the data set's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111], help="training seeds (default: 1111)")
    parser.add_argument("--text-model", help="folder or Hub name of a BERT-family checkpoint")
    _assignments(parser, "--set", "assignments", "override the recipes, e.g. missing.train.name=modality")
    _protocol(parser, "frame", "frame")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.epilog = "Any flag of transformers.TrainingArguments is taken too, e.g. --num_train_epochs 5 --bf16."


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run of uacs (one seed or all of them), a saved model, or a Hub name")
    parser.add_argument(
        "--data", required=True, help="folder or Hub name of the data set, whose validation split is used"
    )
    parser.add_argument(
        "--output", required=True, help="folder of the run with the new thresholds, e.g. RUN/another-expert"
    )
    _assignments(
        parser, "--set", "assignments", "change the configuration, e.g. expert_model=org/name expert_adapter=false"
    )
    parser.add_argument(
        "--budget",
        metavar="SHARE|SECONDS",
        help="hand on at most this share of the samples (20%%), or take at most so many seconds per sample (2s)",
    )
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter for the expert")
    _media(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", help="folders with a results.json; the first is what the others are compared with"
    )
    parser.add_argument(
        "--paper",
        action="append",
        default=[],
        help="a paper whose tables to put beside, e.g. tcmr; may be given several times",
    )
    parser.add_argument("--metrics", nargs="+", help="metrics to show (default: all)")
    parser.add_argument(
        "--allow-oracle", action="store_true", help="show upper bounds beside usable models, marked as such"
    )
    parser.add_argument("--output", help="folder for the tables (Markdown, CSV, LaTeX) and curves (PNG, SVG)")


def _analyze(parser: argparse.ArgumentParser) -> None:
    # Each tool has a parser of its own, --help included, which takes the package; see `hf_msa.analysis.tools`.
    parser.add_argument("-h", "--help", action="store_true", dest="wants_help")
    parser.add_argument("tool", nargs="?")
    parser.add_argument("options", nargs=argparse.REMAINDER)


def _predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run, a saved model or a Hub name")
    parser.add_argument("clips", nargs="*", help="recordings, or folders of them, to score one by one")
    parser.add_argument(
        "--manifest", metavar="FILE", help="a CSV or JSONL list of recordings: path, text, start, end, ..."
    )
    parser.add_argument("--output", metavar="FILE", help="write a table of the scores: .csv, .jsonl or .parquet")
    parser.add_argument("--text", help="the transcript of a single utterance")
    parser.add_argument("--audio", help="its sound: a recording, or features (frames x width) in .npy, .csv or .mat")
    parser.add_argument(
        "--vision",
        "--openface",
        help="its vision features (frames x width): .npy, or .csv, also as OpenFace writes it",
    )
    parser.add_argument("--video", help="its recording, of whose sound and pictures the features are made")
    parser.add_argument("--face-model", metavar="FILE", help="face landmark model (.task) of MediaPipe")
    parser.add_argument("--transcribe", metavar="MODEL", help="a Whisper model for recordings without a text")
    parser.add_argument("--language", help="language of the speech, e.g. en (default: the transcriber finds out)")
    parser.add_argument(
        "--explain",
        metavar="FIGURE",
        help="draw by how much the score of the utterance changes without each modality and each word",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="clips at once (default: 8)")
    _assignments(parser, "--set", "assignments", "override the model's configuration, e.g. route=fast")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (one seed), a saved model or a Hub name")
    parser.add_argument("--export", metavar="DIR", help="write a Space for the Hub instead of serving the page")
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860 on)")
    parser.add_argument("--transcribe", metavar="MODEL", help="a Whisper model for recordings without a text")
    parser.add_argument("--face-model", metavar="FILE", help="face landmark model (.task) of MediaPipe")


def _impute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (one seed), a saved model or a Hub name, of a method that generates: omg")
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument("--output", required=True, help="folder to write the completed data set to")
    parser.add_argument("--splits", nargs="+", help="splits to complete (default: all)")
    parser.add_argument(
        "--protocol",
        help="drop whole modalities first, for studies: modality, fixed or pattern (default: complete what is absent)",
    )
    parser.add_argument("--rate", type=float, help="missing rate of the protocol modality")
    parser.add_argument("--available", nargs="+", help="modalities that the protocol fixed leaves")
    parser.add_argument("--mask-seed", type=int, help="seed of the masks (default: 1111)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the model's num_inference_steps)")
    parser.add_argument("--draws", type=int, help="draws whose mean is taken (default: the model's num_samples)")
    _assignments(parser, "--set", "assignments", "override the model's configuration, e.g. generation_seed=1")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per batch (default: 64)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    _media(parser)


def _kb_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run of omg (one seed), a saved model or a Hub name")
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument("--output", required=True, help="folder to write the knowledge base to")
    parser.add_argument("--split", default="train", help="train, validation or test (default: train)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per batch (default: 64)")
    _media(parser)


def _kb_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a knowledge base, or a run that has one (one seed or all of them)")
    parser.add_argument("--id", help="show the entries whose observations are nearest to this one's")
    parser.add_argument("--neighbours", type=int, default=10, help="how many of them (default: 10)")


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a finished run, e.g. runs/tcmr/seed-1111")
    parser.add_argument("repo", metavar="ORG/NAME", help="the Hub repository")
    parser.add_argument("--private", action="store_true", help="make it private")
    parser.add_argument("--no-verify", action="store_true", help="do not download it again to compare predictions")


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="only those of one method")


@dataclass(frozen=True)
class Command:
    """A command of `hf-msa`.

    Args:
        name: One word, or two, of which the first is one of `GROUPS`.
        help: What it does, in a line.
        add_arguments: Adds its arguments to a parser.
        target: `module:function` that does it, imported when the command is run; it takes the arguments by name.
        takes_training_flags: Whether what the parser does not know is handed on as `flags`.
        has_own_help: Whether `--help` is an argument like any other.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    target: str
    takes_training_flags: bool = False
    has_own_help: bool = False


COMMANDS = (
    Command(
        "prepare",
        "convert raw benchmark files to a data set that load_dataset reads",
        _prepare,
        "hf_msa.cli:prepare",
    ),
    Command(
        "sample-corpus",
        "generate a data set with known truth: try everything with no download",
        _sample_corpus,
        "hf_msa.cli:sample_corpus",
    ),
    Command("extract", "make a data set of recordings: features and transcripts", _extract, "hf_msa.cli:extract"),
    Command("recipes", "list methods, recipes and ablations", _recipes, "hf_msa.cli:recipes"),
    Command(
        "train",
        "train a method by a recipe, all stages, any number of seeds",
        _train,
        "hf_msa.cli:train",
        takes_training_flags=True,
    ),
    Command("evaluate", "test a model over missing rates or patterns", _evaluate, "hf_msa.cli:evaluate"),
    Command(
        "evaluate-predictions",
        "score predictions that another program made, for compare",
        _evaluate_predictions,
        "hf_msa.cli:evaluate_predictions",
    ),
    Command(
        "baselines",
        "make the rows beside which numbers mean something: best constant, ridge, text, late fusion, ceiling",
        _baselines,
        "hf_msa.cli:baselines",
        takes_training_flags=True,
    ),
    Command(
        "calibrate",
        "set the thresholds of U-ACS for another expert, adapter or budget, without training",
        _calibrate,
        "hf_msa.uacs_calibration:run_command",
    ),
    Command(
        "compare",
        "put results side by side, with paired tests, and beside the papers'",
        _compare,
        "hf_msa.cli:compare",
    ),
    Command(
        "analyze",
        "look into a trained model with its paper's analysis tools",
        _analyze,
        "hf_msa.cli:analyze",
        has_own_help=True,
    ),
    Command("predict", "score recordings, or one utterance", _predict, "hf_msa.cli:predict"),
    Command("demo", "serve a page to try a model, or write a Space of it", _demo, "hf_msa.cli:demo"),
    Command("impute", "write a data set with the features that samples lack generated", _impute, "hf_msa.cli:impute"),
    Command(
        "kb build",
        "encode the complete rows of a data set into a knowledge base for a trained model",
        _kb_build,
        "hf_msa.omg_knowledge_bases:build",
    ),
    Command(
        "kb inspect",
        "say what a knowledge base holds, and what lies nearest to an entry",
        _kb_inspect,
        "hf_msa.omg_knowledge_bases:inspect",
    ),
    Command("push", "upload a run to the Hub and check what arrived", _push, "hf_msa.cli:push"),
)
GROUPS = {"kb": "build knowledge bases of OMG-Agent, and look into them"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of all options in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `hf-msa` command; what it parses has the chosen `Command` as `command`."""
    parser = _Parser(
        prog="hf-msa", description="Multimodal sentiment analysis with missing modalities, on top of transformers."
    )
    parser.add_argument("--version", dest="is_asked_for_version", action="store_true", help="print the version")
    parser.set_defaults(command=None)
    places = {"": parser.add_subparsers(metavar="COMMAND")}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group not in places:
            opened = places[""].add_parser(group, help=GROUPS[group], description=_sentence(GROUPS[group]))
            places[group] = opened.add_subparsers(metavar="ACTION", required=True)
        added = places[group].add_parser(
            name, help=command.help, description=_sentence(command.help), add_help=not command.has_own_help
        )
        command.add_arguments(added)
        added.set_defaults(command=command)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; default: those of the process.

    Returns:
        The exit status: 0 done, 2 input that cannot be used (one sentence says why).
    """
    parser = build_parser()
    parsed, rest = parser.parse_known_args(argv)
    arguments = vars(parsed)
    command: Command | None = arguments.pop("command")
    if arguments.pop("is_asked_for_version"):
        from hf_msa._version import __version__

        if sys.stdout is not None:
            sys.stdout.write(f"hf-msa {__version__}\n")
        return 0
    if rest and (command is None or not command.takes_training_flags):
        parser.error(f"{'hf-msa' if command is None else command.name} takes no {' '.join(rest)}")
    if command is None:
        parser.print_help()
        return 0
    try:
        # Libraries ask for it when they are imported.
        os.getcwd()
    except FileNotFoundError:
        parser.exit(2, "hf-msa: the current folder does not exist any more; change to another one.\n")
    try:
        from hf_msa.cli import run_command
    except KeyboardInterrupt:
        sys.stderr.write(f"hf-msa {command.name}: interrupted.\n")
        return 130

    flags = {"flags": rest} if command.takes_training_flags else {}
    return run_command(command.name, command.target, {**arguments, **flags})


if __name__ == "__main__":
    sys.exit(main())
