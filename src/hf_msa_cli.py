"""The `hf-msa` command: only the parser, so that `--help` answers at once; the work is in `hf_msa.cli`.

This module stands beside the package on purpose: importing anything from `hf_msa` registers all methods with transformers,
which takes seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        metavar="{mosi,mosei,sims,simsv2,custom}",
        help="what the source holds; also a name that an installed package adds",
    )
    parser.add_argument("--source", required=True, help="MMSA pickle, folder with label.csv and features, or Parquet")
    parser.add_argument("--output", required=True, help="folder to write the prepared data set to")
    parser.add_argument("--features", help="folder of feature files (.npy/.csv) beside a label.csv")
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
    parser.add_argument("--preset", default="small", help="tiny, small or mosi (default: small)")
    parser.add_argument("--output", required=True, help="folder to write the corpus to")
    parser.add_argument("--seed", type=int, default=1111, help="seed of everything (default: 1111)")
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
    _media(parser)
    parser.add_argument("--text-model", help="folder or Hub name of a BERT-family checkpoint")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override the recipe, e.g. model.num_tokens=4",
    )
    parser.epilog = "Any flag of transformers.TrainingArguments is taken too, e.g. --num_train_epochs 5 --bf16."


def _media(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--media",
        metavar="DIR",
        help="folder with <video_id>/<clip_id>.wav or .mp4 (also flac, mp3, mkv, webm, avi) for the expert of methods that "
        "ask one",
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (one seed or all of them), a saved model, or a Hub name")
    parser.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    parser.add_argument(
        "--output", help="folder for the results (default: the run itself; for a subset subset-<name> in it)"
    )
    parser.add_argument(
        "--protocol",
        default="frame",
        help="frame, block, modality, pattern, fixed, user, legacy_lnln or complete (default: frame)",
    )
    parser.add_argument(
        "--protocol-set",
        dest="protocol_assignments",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="settings of the protocol, e.g. blocks=2 for block, source=masks.json for user, audio_width=9 for legacy_lnln",
    )
    parser.add_argument("--rates", type=float, nargs="+", help="missing rates (default: the protocol's own)")
    parser.add_argument("--mask-seeds", type=int, nargs="+", default=[1111], help="seeds of the masks (default: 1111)")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--subset", help="consistent or inconsistent: samples whose modalities agree or not, by their unimodal labels"
    )
    parser.add_argument(
        "--subset-rule",
        help="what is inconsistent: differs_from_M, not_all_equal or polarity_conflict (default: differs_from_M)",
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="change the model's configuration, e.g. route=mllm for U-ACS; needs --output",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="rows per batch (default: 128)")
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
    parser.add_argument("--output", help="folder for comparison curves (PNG and SVG)")


def _analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tool", help="which analysis; `hf-msa analyze list` names them")
    parser.add_argument("runs", nargs="*", help="runs of one method")
    parser.add_argument("--data", help="folder or Hub name of a prepared data set")
    parser.add_argument("--output", help="folder for tables and figures (default: analysis/<tool> in the first run)")
    parser.add_argument("--split", help="split to analyse, or all where a tool takes that (default: the tool's own)")
    parser.add_argument("--rates", type=float, nargs="+", help="missing rates; for quadrants a low and a high one")
    parser.add_argument("--metrics", nargs="+", help="metrics to draw")
    parser.add_argument("--thresholds", type=float, nargs="+", help="true-class probabilities that clues start from")
    parser.add_argument("--pieces", action="store_true", default=None, help="mask word pieces instead of whole words")
    parser.add_argument("--cues", help="file of cue words: one per line, or a CSV with a column 'word'")
    parser.add_argument("--examples", action="store_true", default=None, help="put utterances into the summary, too")
    parser.add_argument("--steps", type=int, help="batches of the gradient probe")
    parser.add_argument(
        "--vary",
        nargs="+",
        metavar="FIELD=VALUE,VALUE",
        help="values of configuration fields to try, e.g. top_k=1,5,10,20,50; several fields give the grid",
    )
    parser.add_argument("--batch-size", type=int, help="rows per batch (default: the tool's own)")
    parser.add_argument(
        "--samples", type=int, help="how many samples, the first of the split (default: the tool's own)"
    )
    parser.add_argument("--ids", nargs="+", help="ids of the samples to trace instead of the first")
    parser.add_argument("--available", nargs="+", help="modalities that a trace leaves (default: all but text)")
    parser.add_argument(
        "--structure",
        action="store_true",
        default=None,
        help="keep words, ids and labels of the data out of a trace, to publish it",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        help="results of the same runs on the validation split, in the same order: thresholds come from there",
    )
    parser.add_argument(
        "--subset-rule",
        help="what is inconsistent: differs_from_M, not_all_equal or polarity_conflict (default: differs_from_M)",
    )


def _predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run, a saved model or a Hub name")
    parser.add_argument("--text", required=True, help="the transcript")
    parser.add_argument("--audio", help="audio features (frames x width): .npy or .csv")
    parser.add_argument("--vision", help="vision features (frames x width): .npy or .csv")


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
    parser.add_argument("--batch-size", type=int, default=64, help="rows per batch (default: 64)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    _media(parser)


def _kb(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    help_text = "encode the complete rows of a data set into a knowledge base for a trained model"
    build = actions.add_parser("build", help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    build.add_argument("model", help="a run of omg (one seed), a saved model or a Hub name")
    build.add_argument("--data", required=True, help="folder or Hub name of a prepared data set")
    build.add_argument("--output", required=True, help="folder to write the knowledge base to")
    build.add_argument("--split", default="train", help="train, validation or test (default: train)")
    build.add_argument("--batch-size", type=int, default=64, help="rows per batch (default: 64)")
    _media(build)
    help_text = "say what a knowledge base holds, and what lies nearest to an entry"
    inspect = actions.add_parser("inspect", help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    inspect.add_argument("folder", help="a knowledge base, or a run that has one (one seed or all of them)")
    inspect.add_argument("--id", help="show the entries whose observations are nearest to this one's")
    inspect.add_argument("--neighbours", type=int, default=10, help="how many of them (default: 10)")


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a finished run, e.g. runs/tcmr/seed-1111")
    parser.add_argument("repo", metavar="ORG/NAME", help="the Hub repository")
    parser.add_argument("--private", action="store_true", help="make it private")
    parser.add_argument("--no-verify", action="store_true", help="do not download it again to compare predictions")


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", help="only those of one method")


_COMMANDS = {
    "prepare": (_prepare, "convert raw benchmark files to a data set that load_dataset reads"),
    "sample-corpus": (_sample_corpus, "generate a data set with known truth: try everything with no download"),
    "recipes": (_recipes, "list methods, recipes and ablations"),
    "train": (_train, "train a method by a recipe, all stages, any number of seeds"),
    "evaluate": (_evaluate, "test a model over missing rates or patterns"),
    "compare": (_compare, "put results side by side, with paired tests, and beside the papers'"),
    "analyze": (_analyze, "look into a trained model with its paper's analysis tools"),
    "predict": (_predict, "score one utterance"),
    "impute": (_impute, "write a data set with the features that samples lack generated"),
    "kb": (_kb, "build knowledge bases of OMG-Agent, and look into them"),
    "push": (_push, "upload a run to the Hub and check what arrived"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of all options in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `hf-msa` command."""
    parser = _Parser(
        prog="hf-msa", description="Multimodal sentiment analysis with missing modalities, on top of transformers."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (add_arguments, help_text) in _COMMANDS.items():
        add_arguments(
            commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; default: those of the process.

    Returns:
        The exit status: 0 done, 2 input that cannot be used (one sentence says why).
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "train":
        parser.error(f"{arguments.command} takes no {' '.join(rest)}")
    if arguments.version:
        from hf_msa._version import __version__

        sys.stdout.write(f"hf-msa {__version__}\n")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 0
    from hf_msa.cli import run_command

    return run_command(arguments, rest)


if __name__ == "__main__":
    sys.exit(main())
