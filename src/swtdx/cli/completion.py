"""``swtdx completion``: what a shell needs to complete commands and options.

Exit status: 0 done, 2 wrong use.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from swtdx.cli.main import COMPLETION, cli

#: By shell: where its script goes, so that it is there in every session.
PLACES: Final = {
    "bash": "~/.local/share/bash-completion/completions/swtdx",
    "zsh": "a file _swtdx in a folder of $fpath, such as ~/.zfunc/_swtdx",
    "fish": "~/.config/fish/completions/swtdx.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(sorted(PLACES)))
def completion(shell: str) -> None:
    """Print a script that completes swtdx's commands, options and files in SHELL.

    \b
    bash: swtdx completion bash >~/.local/share/bash-completion/completions/swtdx
    zsh:  swtdx completion zsh >~/.zfunc/_swtdx     (with fpath+=~/.zfunc before compinit)
    fish: swtdx completion fish >~/.config/fish/completions/swtdx.fish

    For this session alone: eval "$(swtdx completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    found = kind(cli, {}, "swtdx", COMPLETION)
    # Not found.source(): for bash it starts one to see whether it is recent enough.
    click.echo((found.source_template % found.source_vars()).strip())
