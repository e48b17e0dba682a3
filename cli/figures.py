"""`harmony figures`: the README's figures from demos' result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def figures(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS.json…", help="What `harmony demo` wrote, by seed.")],
    *,
    readme: Annotated[Path, typer.Option(metavar="FILE.md", help="The file with the marks.")] = Path("README.md"),
) -> None:
    """Write the published figures between the marks of a Markdown file.

    \b
    harmony figures results/demo-*.json
    """
    from harmony.bench.demo import DemoResult
    from harmony.bench.published import publish
    from harmony.bench.result_files import read_result

    publish([read_result(path, DemoResult) for path in results], readme)
