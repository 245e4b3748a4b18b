"""What pyproject.toml cannot say: the model card files at the top of the repository go into the wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARDS = Path(__file__).parent / "model_cards"


class BuildWithModelCards(build_py):
    """Copies model_cards/ to hf_msa/model_cards; an editable install reads it where it lies."""

    def run(self) -> None:
        """Build the package, then add the cards."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "hf_msa" / "model_cards"
            self.mkpath(str(target))
            for source in (CARDS / "template.md", *CARDS.glob("*.yaml")):
                self.copy_file(str(source), str(target / source.name))


setup(cmdclass={"build_py": BuildWithModelCards})
