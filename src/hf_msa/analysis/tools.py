"""Registry of analysis tools: a decorated function is a tool, and its signature gives the options of the command line.

A tool of another package looks like those of hf_msa, and the package names its module in `pyproject.toml`::

    [project.entry-points."hf_msa.tools"]
    mytool = "hf_msa_mypackage.mytool"
"""

import argparse
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union

from hf_msa.analysis.tool_report import Report
from hf_msa.errors import MsaError, nearest
from hf_msa.registry import Registry

_VALUES = (int, float, str, Path)
_Function = TypeVar("_Function", bound=Callable[..., None])


@dataclass(frozen=True)
class Option:
    """An option of a tool: a keyword parameter of its function.

    Attributes:
        name: The parameter's name.
        kind: The type of its value, or of each value where it takes several; `bool` for a switch.
        many: Whether it takes several values.
        default: Its value where it is not given; `inspect.Parameter.empty` where it has to be.
        help: What the docstring says of it.
    """

    name: str
    kind: type
    many: bool
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_required(self) -> bool:
        """Whether the tool cannot do without it."""
        return self.default is inspect.Parameter.empty

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the flag to a parser, which leaves out of its result what is not given."""
        kinds: dict[str, Any] = {"action": "store_true"} if self.kind is bool else {"type": self.kind}
        if self.many:
            kinds["nargs"] = "+"
        text = self.help
        if self.is_required:
            text += " (required)"
        elif self.default not in (None, ()) and self.kind is not bool:
            text += f" (default: {' '.join(map(str, self.default)) if self.many else self.default})"
        parser.add_argument(self.flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **kinds)


@dataclass(frozen=True)
class Tool:
    """An analysis.

    Attributes:
        name: As in `hf-msa analyze <name>`.
        title: What it shows, in one line.
        methods: The methods whose runs it takes; none: those of any method.
        function: Takes the runs, if any, a `Report` to fill, and the options by name.
        options: Its options, in the order of the signature.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    function: Callable[..., None]
    options: tuple[Option, ...]

    @property
    def takes_runs(self) -> bool:
        """Whether it looks into trained models; else into data alone."""
        return "runs" in inspect.signature(self.function).parameters

    def parser(self) -> argparse.ArgumentParser:
        """The parser of its command line."""
        text, described = _documented(self.function)
        parser = _Parser(prog=f"hf-msa analyze {self.name}", description=text)
        if self.takes_runs:
            parser.add_argument("runs", nargs="*", help=described["runs"].replace("%", "%%"))
        for option in self.options:
            option.add_to(parser)
        place = f"analysis/{self.name}" + (" in the first run" if self.takes_runs else "")
        where = f"folder for tables and figures (default: {place})"
        parser.add_argument("--output", default=argparse.SUPPRESS, help=where)
        return parser

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse a command line.

        Args:
            arguments: What follows `hf-msa analyze <name>`.

        Returns:
            `runs`, if the tool takes any, and the options that were given, for `run_tool`.

        Raises:
            MsaError: If there is an option that the tool does not have, or a value that an option does not take.
        """
        parsed, rest = self.parser().parse_known_intermixed_args(arguments)
        if rest:
            raise self.unknown_option(next((word for word in rest if word.startswith("-")), rest[0]))
        return vars(parsed)

    def unknown_option(self, flag: str) -> MsaError:
        """The error for an option that the tool does not have."""
        flags = [*(option.flag for option in self.options), "--output"]
        return MsaError(f"The tool {self.name!r} has no {flag}; it has {', '.join(flags)}.{nearest(flag, flags)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MsaError(f"{message}; see `{self.prog} --help`.")


TOOLS: Registry[Tool] = Registry("tool", "hf_msa.tools")


def tool(name: str, title: str, methods: Sequence[str] = ()) -> Callable[[_Function], _Function]:
    """Make a tool of a function, which `hf-msa analyze` then knows by name.

    Args:
        name: The tool's name.
        title: What it shows, in one line.
        methods: The methods whose runs it takes; none: those of any method.

    Returns:
        A decorator, which gives the function back as it is. The function takes `runs` (folders, as the user names them; a
        tool that looks into data alone does without) and `report` (a `Report`, to be filled), then options by keyword
        alone. An option is annotated as int, float, str, bool (a switch), `Path`, a sequence, list or tuple of one kind of
        them, or one of these `| None`, and is described under `Args:` of the docstring. It raises MsaError for runs, data
        and options that it cannot use.

    Raises:
        MsaError: If the name will not do or is taken, or the function is not of this form.
    """

    def register(function: _Function) -> _Function:
        TOOLS.register(name, Tool(name, title, tuple(methods), function, _options(name, function)))
        return function

    return register


def run_tool(name: str, runs: Sequence[str] = (), *, output: str | None = None, **options: Any) -> list[Path]:
    """Run one analysis.

    Args:
        name: A key of `TOOLS`.
        runs: Folders that `hf-msa train` wrote (one seed, or all of them), or, for tools that read results, folders with a
            ``results.json``; none for a tool that looks into data alone.
        output: Where to write; default: ``analysis/<tool>`` in the first run, or in the current folder.
        **options: Options of the tool, see its function; None stands for the default.

    Returns:
        The files that were written.

    Raises:
        MsaError: For an unknown tool, an option that it does not have, no run, the lack of an option that it needs, or
            runs that it cannot use.

    Example:
        ```python
        from hf_msa import run_tool

        files = run_tool("error-parts", ["runs/text"])  # a summary, tables and figures
        ```
    """
    chosen = TOOLS.find(name)
    given = {option: value for option, value in options.items() if value is not None}
    for option in sorted(given.keys() - {known.name for known in chosen.options}):
        raise chosen.unknown_option("--" + option.replace("_", "-"))
    if chosen.takes_runs != bool(runs):
        if runs:
            raise MsaError(f"The tool {name!r} looks into data alone; leave {runs[0]!r} out, and give --data.")
        raise MsaError(f"The tool {name!r} needs a run; give a folder that `hf-msa train` or `hf-msa evaluate` wrote.")
    for known in chosen.options:
        if known.is_required and known.name not in given:
            raise MsaError(f"The tool {name!r} needs {known.flag}: {known.help}.")
    first = Path(runs[0] if runs else ".")
    folder = first if first.is_dir() or first.suffix != ".json" else first.parent
    report = Report(folder / "analysis" / name if output is None else output)
    chosen.function(*([list(runs)] if runs else []), report, **given)
    return report.write()


def tool_list() -> str:
    """All tools with their titles, by the methods whose runs they take."""
    width = max(map(len, TOOLS))
    lines = ["usage: hf-msa analyze TOOL RUN... [OPTIONS]"]

    def place(known: Tool) -> tuple[bool, tuple[str, ...]]:
        return known.takes_runs, known.methods

    ordered = sorted(TOOLS.values(), key=lambda known: (*place(known), known.name))
    for (takes_runs, methods), group in itertools.groupby(ordered, key=place):
        heading = f"For runs of {' and '.join(methods) or 'any method'}:"
        lines += ["", heading if takes_runs else "For data, before any training (without RUN):"]
        lines += [f"  {known.name:<{width}}  {known.title}" for known in group]
    return "\n".join([*lines, "", "`hf-msa analyze TOOL --help` shows the options of a tool."])


def _options(name: str, function: Callable[..., None]) -> tuple[Option, ...]:
    """Read the options of a tool off its function."""
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    _, described = _documented(function)
    first = [parameter for parameter in parameters if parameter in ("runs", "report")]
    if (
        "report" not in first
        or list(parameters)[: len(first)] != sorted(first, reverse=True)
        or ("runs" in first and "runs" not in described)
    ):
        raise MsaError(f"The tool {name!r} has to take runs and report first; describe runs in the docstring's Args.")
    options = []
    for parameter in list(parameters.values())[len(first) :]:
        kind, many = _kind(hints.get(parameter.name))
        is_switch = kind is bool and not many
        if kind not in _VALUES and not (is_switch and parameter.default is False):
            raise MsaError(
                f"The option {parameter.name!r} of the tool {name!r} can be no flag; annotate it as int, float, str or "
                "Path, as a sequence of one of them, or as bool with the default False."
            )
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name not in described:
            raise MsaError(
                f"The option {parameter.name!r} of the tool {name!r} has to be taken by keyword alone and described in the "
                "docstring's Args."
            )
        if parameter.name in ("output", "help"):
            raise MsaError(f"Every tool has --{parameter.name}; give that option of {name!r} another name.")
        options.append(Option(parameter.name, kind, many, parameter.default, described[parameter.name]))
    return tuple(options)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type behind `X`, `X | None` or a sequence of X, and whether it is a sequence."""
    inner = [argument for argument in typing.get_args(annotation) if argument is not NoneType]
    if typing.get_origin(annotation) in (Union, UnionType) and len(inner) == 1:
        return _kind(inner[0])
    if typing.get_origin(annotation) in (Sequence, list, tuple) and set(inner) - {...} == {inner[0]}:
        return inner[0], True
    return annotation, False


def _documented(function: Callable[..., None]) -> tuple[str, dict[str, str]]:
    """The text of a Google docstring before its sections, and what its `Args:` say of each argument, as help texts."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    described: dict[str, str] = {}
    name = ""
    for line in re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0].splitlines():
        if found := re.fullmatch(r" {4}(\w+): (.*)", line):
            name, described[found[1]] = found.groups()
        elif name:
            described[name] = f"{described[name]} {line.strip()}".rstrip()
    for name, words in described.items():
        # A help text begins with a small letter, unless its first word is a name such as U-ACS.
        first = words.partition(" ")[0]
        start = words[:1].lower() if first[1:] == first[1:].lower() else words[:1]
        described[name] = (start + words[1:]).removesuffix(".").replace("``", "")
    return text, described
