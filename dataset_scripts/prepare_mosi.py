"""Convert CMU-MOSI to Parquet with a data set card: the same as `hf-msa prepare mosi`."""

from _prepare import main

if __name__ == "__main__":
    main("mosi")
