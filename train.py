"""Train by a recipe, under any launcher: `accelerate launch train.py tcmr/mosi --data DIR --output DIR`."""

import sys

from hf_msa_cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
