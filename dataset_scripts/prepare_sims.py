"""Convert CH-SIMS to Parquet with a data set card: the same as `hf-msa prepare sims`."""

from _prepare import main

if __name__ == "__main__":
    main("sims")
