"""Tools from functions: flags out of signatures, help, wrong calls, and tools that other packages add."""

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_msa.analysis import TOOLS, Tool, run_tool, tool, tool_list
from hf_msa.analysis.tool_report import Report
from hf_msa.errors import MsaError
from hf_msa_cli import main


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(TOOLS, "_entries", dict(TOOLS._entries))
    monkeypatch.setattr(TOOLS, "_loaded", set(TOOLS._loaded))
    yield


@pytest.fixture
def counting() -> Tool:
    @tool("counting", "how many there are", methods=("text",))
    def analyze_counting(
        runs: Sequence[str],
        report: Report,
        *,
        data: str,
        rates: Sequence[float] = (0.2, 0.7),
        names: list[str] | None = None,
        sizes: tuple[int, ...] = (),
        steps: int = 3,
        share: float | None = None,
        cues: Path | None = None,
        quiet: bool = False,
    ) -> None:
        """Count things.

        All of them, 100 % sure.

        Args:
            runs: U-ACS runs.
            report: Takes what is found.
            data: Folder or Hub name
                of a data set.
            rates: Missing rates, up to 100 %.
            names: UBM's names; default: all.
            sizes: Sizes.
            steps: Steps.
            share: A share.
            cues: A file of ``words``.
            quiet: Say nothing.

        Raises:
            MsaError: Never.
        """
        given = {"runs": runs, "data": data, "rates": rates, "names": names, "sizes": sizes}
        report.json("given.json", given | {"steps": steps, "share": share, "cues": str(cues), "quiet": quiet})

    return TOOLS["counting"]


def options_of(made: Tool) -> dict[str, tuple[Any, ...]]:
    return {option.flag: (option.kind, option.many, option.default) for option in made.options}


class TestSignature:
    def test_types_and_defaults(self, counting: Tool) -> None:
        assert options_of(counting) == {
            "--data": (str, False, inspect.Parameter.empty),
            "--rates": (float, True, (0.2, 0.7)),
            "--names": (str, True, None),
            "--sizes": (int, True, ()),
            "--steps": (int, False, 3),
            "--share": (float, False, None),
            "--cues": (Path, False, None),
            "--quiet": (bool, False, False),
        }
        assert [option.name for option in counting.options if option.is_required] == ["data"]
        assert (counting.title, counting.methods) == ("how many there are", ("text",))

    def test_help_texts_come_from_the_docstring(self, counting: Tool) -> None:
        texts = {option.name: option.help for option in counting.options}
        assert texts["data"] == "folder or Hub name of a data set"
        assert texts["names"] == "UBM's names; default: all" and texts["cues"] == "a file of words"

    def test_only_what_was_given_is_passed_on(self, counting: Tool) -> None:
        assert counting.parse(["a", "b"]) == {"runs": ["a", "b"]}
        line = "a --steps 5 --rates 0.1 0.9 --quiet --cues x.txt --sizes 1 2 --share 0.5"
        assert counting.parse(line.split()) == {
            "runs": ["a"],
            "steps": 5,
            "rates": [0.1, 0.9],
            "quiet": True,
            "cues": Path("x.txt"),
            "sizes": [1, 2],
            "share": 0.5,
        }
        # Runs may stand behind options, too.
        assert counting.parse(["a", "--data", "d", "b"]) == {"runs": ["a", "b"], "data": "d"}

    def test_help(self, counting: Tool, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["analyze", "counting", "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert stop.value.code == 0 and "usage: hf-msa analyze counting" in shown
        assert "Count things. All of them, 100 % sure." in shown and "runs U-ACS runs" in shown
        assert "--data DATA folder or Hub name of a data set (required)" in shown
        assert "--rates RATES [RATES ...] missing rates, up to 100 % (default: 0.2 0.7)" in shown
        assert "--names NAMES [NAMES ...] UBM's names; default: all --sizes" in shown
        assert "--quiet say nothing --output" in shown and "(default: analysis/counting in the first run)" in shown

    def test_the_help_of_a_tool_shows_its_options_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["analyze", "router", "--help"])
        shown = capsys.readouterr().out
        flags = {word.strip("[],") for word in shown.split() if word.strip("[],").startswith("--")}
        assert flags == {"--help", "--data", "--output"}

    @pytest.mark.parametrize("name", list(TOOLS))
    def test_every_tool_has_a_help(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["analyze", name, "--help"])
        assert stop.value.code == 0 and ("[runs ...]" in capsys.readouterr().out) == TOOLS[name].takes_runs
        assert all(option.help[0].islower() for option in TOOLS[name].options)


class TestCalls:
    def test_options_and_output_arrive(self, counting: Tool, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (path,) = run_tool("counting", [str(tmp_path / "run")], data="d", names=["x"], steps=None)
        assert path == tmp_path / "run" / "analysis" / "counting" / "given.json"
        assert '"names": [\n    "x"\n  ]' in path.read_text() and '"steps": 3' in path.read_text()
        command = ["analyze", "counting", "run", "--data", "d", "--output", str(tmp_path / "out"), "--quiet"]
        assert main(command) == 0
        assert '"quiet": true' in (tmp_path / "out" / "given.json").read_text()

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("countin x", "Unknown tool 'countin'. Did you mean 'counting'?"),
            (
                "counting x --data d --thresholds 0.5",
                "The tool 'counting' has no --thresholds; it has --data, --rates",
            ),
            ("counting x --data d --stepps 0.5", "--output. Did you mean '--steps'?"),
            ("counting x", "The tool 'counting' needs --data: folder or Hub name of a data set."),
            ("counting --data d", "The tool 'counting' needs a run"),
            ("counting x --data d --steps many", "argument --steps: invalid int value: 'many'; see `hf-msa analyze"),
            ("counting x --data", "argument --data: expected one argument"),
            ("--data d counting x", "analyze takes no --data"),
        ],
    )
    def test_wrong_ones_are_one_sentence(
        self, counting: Tool, line: str, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try:
            status = main(["analyze", *line.split()])
        except SystemExit as stop:
            status = int(str(stop.code))
        said = capsys.readouterr().err
        assert status == 2 and words in said and said.count("\n") == 1

    def test_python_is_told_the_same(self, counting: Tool) -> None:
        with pytest.raises(MsaError, match="has no --batch-size; it has --data"):
            run_tool("counting", ["x"], data="d", batch_size=3)
        with pytest.raises(MsaError, match="needs --data"):
            run_tool("counting", ["x"], data=None)

    @pytest.mark.parametrize("argv", [["list"], ["--help"], []])
    def test_the_list_is_by_method(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["analyze", *argv]) == 0
        shown = capsys.readouterr().out
        assert shown == tool_list() + "\n"
        general, *groups = shown.split("For runs of ")[1:]
        assert general.startswith("any method:\n  consistency-gap  accuracy where") and "\n  curves " in general
        assert [group.partition(":")[0] for group in groups] == ["cmc", "omg", "pglh", "tcmr", "uacs", "ubm and uacs"]
        assert all(f"\n  {name} " in shown for name in TOOLS)


class TestRegistering:
    def test_names_are_given_once(self) -> None:
        def analyze(runs: Sequence[str], report: Report) -> None:
            """Look.

            Args:
                runs: Runs.
                report: Takes what is found.
            """

        with pytest.raises(MsaError, match="There is a tool 'router' already"):
            tool("router", "another")(analyze)
        with pytest.raises(MsaError, match="cannot be the name"):
            tool("My Tool", "another")(analyze)
        assert tool("mine", "another")(analyze) is analyze and TOOLS["mine"].methods == ()

    def test_functions_that_make_no_flags(self) -> None:
        def without_report(runs: Sequence[str]) -> None:
            """Look.

            Args:
                runs: Runs.
            """

        def with_mapping(runs: Sequence[str], report: Report, *, sizes: dict[str, int]) -> None:
            """Look.

            Args:
                runs: Runs.
                sizes: Sizes.
            """

        def always(runs: Sequence[str], report: Report, *, loud: bool = True) -> None:
            """Look.

            Args:
                runs: Runs.
                loud: Loud.
            """

        def undocumented(runs: Sequence[str], report: Report, *, steps: int = 1) -> None:
            """Look.

            Args:
                runs: Runs.
            """

        def positional(runs: Sequence[str], report: Report, steps: int = 1) -> None:
            """Look.

            Args:
                runs: Runs.
                steps: Steps.
            """

        def with_output(runs: Sequence[str], report: Report, *, output: str = "x") -> None:
            """Look.

            Args:
                runs: Runs.
                output: Where.
            """

        cases: list[tuple[Callable[..., None], str]] = [
            (with_output, "Every tool has --output"),
            (without_report, "has to take runs and report first"),
            (with_mapping, "'sizes' .* can be no flag"),
            (always, "'loud' .* can be no flag"),
            (undocumented, "'steps' .* described"),
            (positional, "'steps' .* by keyword alone"),
        ]
        for function, words in cases:
            with pytest.raises(MsaError, match=words):
                tool("mine", "a tool")(function)
        assert "mine" not in TOOLS

    def test_a_package_adds_one_by_its_entry_point(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "their_tools.py").write_text(
            '''
from collections.abc import Sequence
from hf_msa.analysis import tool
from hf_msa.analysis.tool_report import Report

@tool("their-tool", "what they look at")
def analyze(runs: Sequence[str], report: Report, *, top: int = 2) -> None:
    """Look.

    Args:
        runs: Runs.
        report: Takes what is found.
        top: How many.
    """
    report.csv("their.csv", [{"run": run, "top": top} for run in runs])
'''
        )
        monkeypatch.syspath_prepend(tmp_path)
        point = importlib.metadata.EntryPoint("their-tool", "their_tools", "hf_msa.tools")
        monkeypatch.setattr("hf_msa.registry.installed", lambda: importlib.metadata.EntryPoints([point]))
        try:
            command = ["analyze", "their-tool", "x", "--top", "5", "--output", str(tmp_path / "out")]
            assert main(command) == 0
        finally:
            sys.modules.pop("their_tools", None)
        assert (tmp_path / "out" / "their.csv").read_text().split() == ["run,top", "x,5"]
        assert "\n  their-tool" in tool_list()
