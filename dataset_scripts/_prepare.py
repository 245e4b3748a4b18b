"""The command line that the scripts in this folder share."""

import argparse
import sys

from rich.console import Console

from hf_msa.data import prepare_dataset
from hf_msa.data.schema import DATASETS
from hf_msa.errors import MsaError


def main(name: str) -> None:
    """Convert the data set `name` as the arguments of the process say; exit with 2 and one sentence on bad input."""
    parser = argparse.ArgumentParser(description=f"Convert {DATASETS[name].title} to Parquet with a data set card.")
    parser.add_argument(
        "--source", required=True, help="MMSA pickle, label.csv, or a folder with label.csv, Parquet or .csd files"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--features", help="for a label.csv: the folder that holds audio/ and vision/")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the result to this data set repository")
    parser.add_argument("--private", action="store_true", help="make the repository private when it is created")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    given = parser.parse_args()
    try:
        report = prepare_dataset(
            name,
            given.source,
            given.output,
            features=given.features,
            push_to_hub=given.push_to_hub,
            private=given.private,
            overwrite=given.overwrite,
        )
    except MsaError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    Console().print(report)
