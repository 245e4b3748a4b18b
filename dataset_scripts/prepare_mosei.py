"""Convert CMU-MOSEI to Parquet with a data set card: the same as `hf-msa prepare mosei`."""

from _prepare import main

if __name__ == "__main__":
    main("mosei")
