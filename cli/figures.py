"""`harmony figures`: the README's figures from a demo's result file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def figures(
    result: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="What `harmony demo` wrote.")],
    readme: Annotated[Path, typer.Argument(metavar="README.md", help="The file with the marks; rewritten.")],
) -> None:
    """Write the published figures between the marks of a Markdown file.

    \b
    harmony figures results/demo.json README.md
    """
    from harmony.bench.demo import DemoResult
    from harmony.bench.published import publish
    from harmony.bench.result_files import read_result

    publish(read_result(result, DemoResult), readme)
