"""``swtdx demo``: plays a scene on a machine of its own, and shows what crossed the trust boundary.

Exit status: 0 played, 1 something happened that TDX must not allow, 2 wrong use.
"""

from __future__ import annotations

import json

import click

from swtdx.cli.demo_text import show
from swtdx.cli.seeds import Seed


@click.command()
@click.argument("scene", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines for programs: one for each step.")
@click.option(
    "--seed", type=Seed(), default="swtdx", show_default=True, help="Another machine, with other secrets."
)
def demo(scene: str | None, as_json: bool, seed: bytes) -> None:
    """Play SCENE: mmio, interrupt, life or attack. Without one: list them.

    Everything that is shown was recorded while the scene ran: a guest of a few instructions, the real TDX
    module, the real hypervisor. The same seed gives the same text.
    """
    from swtdx.scenes.catalogue import SCENES

    if scene is None:
        if as_json:
            click.echo(json.dumps({each.name: each.title for each in SCENES.values()}))
            return
        for each in SCENES.values():
            click.echo(f"swtdx demo {each.name:<10} {each.title}")
        return
    found = SCENES.get(scene)
    if found is None:
        raise click.UsageError(f"there is no scene {scene!r}: choose {', '.join(SCENES)}")
    failed = False
    for number, step in enumerate(found.play(seed), 1):
        failed |= step.failed
        if as_json:
            click.echo(json.dumps(step.plain() | {"number": number, "failed": step.failed}))
        else:
            show(number, step)
    if failed:
        click.echo(f"swtdx: demo {scene}: something happened that must not (marked with FAILED)", err=True)
        raise click.exceptions.Exit(1)
