"""Coverage-guided fuzzing of one reader: ``python tests/fuzz/with_atheris.py pickle -runs=100000``.

Options after the name are those of libFuzzer. It needs the package atheris, of the extra `fuzz`, which is there for Linux;
the damage that `test_readers` does needs nothing.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hf_msa.data", "hf_msa.label_families", "yaml", "pickletools"]):
    from targets import TARGETS, file_of


def main(name: str, options: list[str]) -> None:
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed{number}").write_bytes(seed)
        with file_of(target, Path(folder)) as read:
            atheris.Setup([sys.argv[0], str(corpus), "-timeout=5", "-rss_limit_mb=4096", *options], read)
            atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
