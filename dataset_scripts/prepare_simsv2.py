"""Convert CH-SIMS v2 to Parquet with a data set card: the same as `hf-msa prepare simsv2`."""

from _prepare import main

if __name__ == "__main__":
    main("simsv2")
