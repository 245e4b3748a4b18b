"""Hooks of MkDocs for the documentation site.

Pages that lie outside docs/ are taken in, links between files of the repository hold on the site as they do on GitHub, and
equations (`$...$` and blocks of `math`, which GitHub renders as well) become MathML, for which the site needs no script.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site, beside those of docs/.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "dataset_scripts/README.md": "dataset_scripts.md",
}
_LINK = re.compile(r"(?<!\!)\[([^\[\]]*)\]\(([^()\s#:]+)(#[^()\s]*)?\)")
# Types in docstrings are Markdown ("`int`, *optional*"), which mkdocstrings shows as code.
_TYPE = re.compile(r"<code>([^<]*`[^<]*)</code>")
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def _block(source: str, *_: Any, **__: Any) -> str:
    return str(latex2mathml.converter.convert(source, display="block"))


def on_config(config: MkDocsConfig) -> None:
    """Let blocks of `math` be rendered."""
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": _block}]
    }


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Take in the pages that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages, and those to files that are none into plain text."""
    sources = {site: source for source, site in PAGES.items()}
    own = page.file.src_uri
    source = sources.get(own, f"docs/{own}")

    def rewritten(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if not (ROOT / target).exists():
            return match[0]  # the strict build says that it leads nowhere
        site = "index.md" if target == "README.md" else PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(site) is None:
            return text
        return f"[{text}]({posixpath.relpath(site, posixpath.dirname(own) or '.')}{anchor})"

    return _LINK.sub(rewritten, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Render equations within the text, and types in the reference."""
    if page.file.src_uri.startswith("reference/"):
        content = _TYPE.sub(lambda match: f"<code>{re.sub('[`*]', '', match[1])}</code>", content)
    return _INLINE.sub(lambda match: latex2mathml.converter.convert(html.unescape(match[1])), content)
