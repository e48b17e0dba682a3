"""`harmony bench links`: the link model beside real TCP over shaped links."""

from __future__ import annotations

from typing import Annotated

import typer

from harmony.cli.extras import require


def links(
    *,
    link: Annotated[str, typer.Option(help="Of wifi, lte, 4g, slow-4g, 3g-fast, 3g, with commas.")] = "wifi,lte,4g,3g",
    repeats: Annotated[int, typer.Option(min=1, help="Exchanges of each kind; the median counts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="The exchanges as JSON.")] = False,
) -> None:
    """Hold the link model against real TCP: two network namespaces with a packet relay between them. Needs root.

    \b
    sudo harmony bench links
    sudo harmony bench links --link lte,3g --repeats 9 --json
    """
    require("bench")
    from importlib.metadata import version

    from harmony.bench.host import Watch
    from harmony.bench.link_check import LinksResult, check_link
    from harmony.bench.links import find_link
    from harmony.cli.output import print_json, print_table

    chosen, watch = tuple(find_link(name.strip()) for name in link.split(",")), Watch()
    found = tuple(one for profile in chosen for one in check_link(profile, repeats))
    if as_json:
        result = LinksResult(harmony_version=version("harmony-sfl"), host=watch.host(), links=chosen, exchanges=found)
        print_json(result.model_dump(mode="json"))
        return
    rows = [
        (one.link, f"{one.request:,}", f"{one.answer:,}", "new" if one.cold else "kept open",
         f"{1000 * one.predicted_s:.1f}", f"{1000 * one.measured_s:.1f}", f"{100 * one.error:+.1f} %")
        for one in found
    ]  # fmt: skip
    columns = ("link", "sent B", "received B", "connection", "model ms", "TCP ms", "error")
    print_table("The link model beside real TCP", columns, rows)
