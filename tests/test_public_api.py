"""What `import hf_msa` offers, and what it must not load."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_msa
from hf_msa.methods import METHODS

PUBLIC = [
    "BlockMissing",
    "CmcConfig",
    "CmcForSentimentAnalysis",
    "CompleteProtocol",
    "FEATURE_SETS",
    "FixedPattern",
    "FrameMissing",
    "LateFusionConfig",
    "LateFusionForSentimentAnalysis",
    "LegacyLnln",
    "METHODS",
    "MissingModality",
    "MissingProtocol",
    "ModalityMissing",
    "MsaCollator",
    "MsaConfig",
    "MsaError",
    "MsaFeatureExtractor",
    "MsaPipeline",
    "MsaPreTrainedModel",
    "MsaProcessor",
    "MsaRows",
    "MsaTrainer",
    "MsaTrainingArguments",
    "OmgConfig",
    "OmgForSentimentAnalysis",
    "PglhConfig",
    "PglhForSentimentAnalysis",
    "RandomPattern",
    "RidgeConfig",
    "RidgeForSentimentAnalysis",
    "TcmrConfig",
    "TcmrForSentimentAnalysis",
    "TextConfig",
    "TextForSentimentAnalysis",
    "UacsConfig",
    "UacsForSentimentAnalysis",
    "UbmConfig",
    "UbmForSentimentAnalysis",
    "UserMasks",
    "__version__",
    "build_knowledge_base",
    "calibrate",
    "compare",
    "evaluate",
    "evaluate_predictions",
    "extract",
    "impute",
    "load_msa",
    "load_pipeline",
    "make_baselines",
    "predict",
    "predict_clips",
    "prepare_dataset",
    "push",
    "register_dataset",
    "register_feature_set",
    "register_label_family",
    "register_method",
    "register_protocol",
    "regression_metrics",
    "run_tool",
    "sample_corpus",
    "train",
]
TREE = ast.parse(Path(str(hf_msa.__file__)).read_text(encoding="utf-8"))


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_public_names_are_these() -> None:
    assert hf_msa.__all__ == PUBLIC


def test_a_type_checker_can_read_the_public_names() -> None:
    found = [
        node.value
        for node in TREE.body
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == ["__all__"]
    ]
    assert [ast.literal_eval(value) for value in found] == [PUBLIC]


def test_the_names_that_load_late_are_those_that_a_type_checker_sees() -> None:
    [block] = [node for node in TREE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: f"hf_msa.{node.module}" for node in block.body for alias in node.names}
    assert seen == hf_msa._LAZY
    here = {
        alias.name for node in TREE.body if isinstance(node, ast.ImportFrom) and node.level for alias in node.names
    }
    assert sorted([*hf_msa._LAZY, *here]) == PUBLIC


def test_configurations_and_models_of_all_methods_are_public() -> None:
    built_in = [method for method in METHODS.values() if method.config_class.__module__.startswith("hf_msa.")]
    classes = {c for method in built_in for c in (method.config_class, method.model_class)}
    assert len(classes) >= 18 and all(getattr(hf_msa, c.__name__) is c for c in classes)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(hf_msa, name)
    if name in hf_msa._LAZY:
        assert value is getattr(importlib.import_module(hf_msa._LAZY[name]), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hf_msa' has no attribute 'load_mas'"):
        hf_msa.load_mas  # noqa: B018


def test_importing_registers_and_loads_nothing_heavy() -> None:
    loaded = modules_after("import hf_msa")
    # (accelerate and scipy come with transformers' own model class.)
    heavy = {"datasets", "peft", "librosa", "matplotlib", "evaluate", "sklearn", "pandas", "rich"}
    assert not heavy & loaded
    assert {"torch", "transformers"} <= loaded


def test_the_command_line_s_parser_loads_nothing_at_all() -> None:
    assert not {"hf_msa", "torch", "transformers", "numpy", "yaml"} & modules_after("import hf_msa_cli")
