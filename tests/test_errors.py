"""Errors: the nearest name, one line of other libraries' messages, and a full disk however a library words it."""

import errno
import os
import sqlite3
import tomllib
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hf_msa.errors import (
    EXTRAS,
    MsaError,
    absent_extra,
    as_msa_errors,
    is_disk_full,
    nearest,
    reason,
    require_package,
    unknown_name,
)
from hf_msa.models.configuration_tcmr import TcmrConfig


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(MsaError, ValueError)


def test_the_nearest_name_is_suggested_and_a_far_one_is_not() -> None:
    assert nearest("mosii", ["mosi", "sims"]) == " Did you mean 'mosi'?"
    assert nearest("quux", ["mosi", "sims"]) == ""
    assert nearest("mosi", []) == ""


def test_an_unknown_name_comes_with_all_known_ones_in_order() -> None:
    assert str(unknown_name("data set", "mosii", ["sims", "mosi"])) == (
        "Unknown data set 'mosii'. Did you mean 'mosi'? Known: mosi, sims."
    )
    assert str(unknown_name("data set", "x", [])) == "Unknown data set 'x'. Known: none."


def test_of_very_many_names_only_the_nearest_is_said() -> None:
    names = [f"name_{index:03d}" for index in range(100)]
    assert str(unknown_name("flag", "name_0077", names)) == "Unknown flag 'name_0077'. Did you mean 'name_077'?"
    assert "name_000, name_001" in str(unknown_name("flag", "zzz", names)), "with no near one, the list has to do"


def test_names_may_come_from_an_iterator() -> None:
    assert str(unknown_name("x", "ab", iter(["abc"]))) == "Unknown x 'ab'. Did you mean 'abc'? Known: abc."


def test_the_reason_is_one_line_without_a_full_stop() -> None:
    assert reason(OSError("It is broken.\nHere is a page about it.")) == "It is broken"
    assert reason(ValueError("\n\n  indented  ")) == "indented"
    assert reason(KeyError()) == "KeyError"


def test_the_reason_of_a_refused_configuration_is_what_is_wrong_with_it() -> None:
    with pytest.raises(StrictDataclassError) as error:
        TcmrConfig(audio_dim=5, num_tokens="many")
    assert reason(error.value) == "Field 'num_tokens' expected int, got str (value: 'many')"
    with pytest.raises(StrictDataclassError) as error:
        TcmrConfig(audio_dim=5, num_tokens=0)
    assert reason(error.value) == "num_tokens must be at least 1, got 0"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 124416 vs 124304"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_known_by_every_name(error: Exception) -> None:
    assert is_disk_full(error)


def test_a_full_disk_stays_one() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space") as caught, as_msa_errors():
        raise full
    assert caught.value is full and is_disk_full(sqlite3.OperationalError("database or disk is full"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, os.strerror(errno.EACCES)),
        SafetensorError("Error while deserializing header: invalid header length"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("PytorchStreamReader failed reading zip archive"),
    ],
)
def test_other_errors_are_no_full_disk(error: Exception) -> None:
    assert not is_disk_full(error)


def test_an_absent_package_comes_with_the_command_that_installs_it() -> None:
    require_package("numpy", "train")
    with pytest.raises(MsaError, match=r"'no_such_package'.*pip install 'hf-msa\[plots\]'"):
        require_package("no_such_package", "plots")


class TestAsMsaErrors:
    @pytest.mark.parametrize("error", [ImportError("no package"), OSError("no file"), ValueError("no number")])
    def test_what_models_raise_becomes_one_sentence(self, error: Exception) -> None:
        with pytest.raises(MsaError, match=rf"^{error}\.$") as caught, as_msa_errors():
            raise error
        assert caught.value.__cause__ is error

    def test_others_pass(self) -> None:
        with pytest.raises(MsaError, match="^As it is$"), as_msa_errors():
            raise MsaError("As it is")
        with pytest.raises(KeyError), as_msa_errors():
            raise KeyError("a bug")


@pytest.mark.parametrize("package", EXTRAS)
def test_an_extra_that_is_not_installed_is_named(package: str) -> None:
    error = ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.part")
    said = f"This needs the package {package!r}, which is not installed: pip install 'hf-msa[{EXTRAS[package]}]'."
    assert absent_extra(error) == said
    try:
        raise ModuleNotFoundError("Could not import module 'TrainingArguments'.") from error
    except ModuleNotFoundError as outer:
        assert absent_extra(outer) == said
    assert absent_extra(ModuleNotFoundError("No module named 'hf_msa.x'", name="hf_msa.x")) is None
    assert absent_extra(ValueError("no import")) is None


def test_every_extra_that_is_named_brings_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"PIL": "pillow", "faiss": "faiss-cpu", "faster_whisper": "faster-whisper", "sklearn": "scikit-learn"}
    for package, extra in EXTRAS.items():
        requirements = project["optional-dependencies"][extra]
        assert any(one.startswith(f"{names.get(package, package)}>=") for one in requirements), package
