"""Analyses of trained models: those of the papers and more, each a tool that writes tables, a summary and figures.

`hf-msa analyze TOOL RUN...` and `run_tool` are the same. A tool is a function under the decorator `tool`; its module says
what it measures and how. Every file of this folder is imported, so that its tools register.
"""

import importlib
import pkgutil

from hf_msa.analysis.tools import TOOLS, Tool, run_tool, tool, tool_list

__all__ = ["TOOLS", "Tool", "run_tool", "tool", "tool_list"]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
