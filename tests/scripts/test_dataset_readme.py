"""The numbers of `dataset_scripts/README.md` are those that `prepare` goes by."""

from pathlib import Path

from hf_msa.data.schema import DATASETS

README = Path(__file__).parents[2] / "dataset_scripts" / "README.md"


def test_counts_and_shapes_are_those_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    for name in ("mosi", "mosei", "sims", "simsv2"):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        known = DATASETS[name]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert [int(cell) for cell in cells[1:4]] == list(known.split_sizes.values())
        for modality, cell in zip(("audio", "vision"), cells[5:], strict=True):
            assert cell == ", ".join(f"{frames} x {width}" for frames, width in known.shapes[modality])
