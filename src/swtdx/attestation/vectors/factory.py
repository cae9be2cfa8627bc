"""All vectors, and writing them into a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..errors import AttestationError
from ..names import MARKER
from ..oserrors import words
from ..world import World
from .chains import chains, dates
from .documents import malformed_collateral
from .model import Vector, kinds
from .quotes import malformed_quotes
from .statuses import matrix, scenarios

_README: Final = f"""# TDX quote verification test vectors

Made by `swtdx vectors make`. {MARKER}: nothing here says anything about hardware.

`index.json` lists every vector. Each has a folder with `quote.bin`, `collateral.json` (the fields of
dcap-qvl's `QuoteCollateralV3`; byte strings in hex, chains and documents as text) and `expected.json`:

* `now`: Unix seconds at which to verify;
* `verdict`: `accepted` (signatures, dates and mandatory rules are satisfied; `status` and `advisories`
  are what a policy decides on) or `rejected`;
* `why`: what is special and why the verdict follows;
* `dcap_qvl_says`: a part of dcap-qvl's message when it rejects;
* `others_may`: verdicts that another verifier may give and be right, too, each with why it does and the
  document that leaves it the choice. A vector without an entry has one right answer, `lenient` apart;
* `lenient`: dcap-qvl accepts although the bytes are not as they should be; a stricter verifier may not.

The trusted root of all of them is `root.der` (and `root.pem`).
"""


def all_vectors(world: World | None = None) -> Iterator[Vector]:
    """Every vector, always the same ones in the same order for the same world."""
    world = world or World()
    yield from matrix(world)
    yield from scenarios(world)
    sounds = kinds(world)
    for sound in sounds:
        yield from malformed_quotes(sound)
        yield from chains(sound)
        yield from dates(sound)
    yield from malformed_collateral(sounds[0])


def write_vectors(
    folder: Path, world: World | None = None, progress: Callable[[int], None] = lambda _done: None
) -> int:
    """Write all vectors into ``folder``; gives their number.  ``progress`` hears how many are written.

    The folder must be new or empty, or hold vectors written before, which are replaced.

    Raises:
        AttestationError: the folder holds something else, or cannot be written.
    """
    world = world or World()
    index = folder / "index.json"
    try:
        if folder.exists() and any(folder.iterdir()) and not index.is_file():
            raise AttestationError(f"{folder} holds other files; give a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        listing = []
        for vector in all_vectors(world):
            place = folder / vector.name
            place.mkdir(parents=True, exist_ok=True)
            for name, data in vector.files().items():
                (place / name).write_bytes(data)
            listing.append(vector.document())
            progress(len(listing))
        (folder / "root.der").write_bytes(world.pki.root.der)
        (folder / "root.pem").write_text(world.pki.root.pem)
        (folder / "README.md").write_text(_README)
        index.write_text(json.dumps({"marker": MARKER, "vectors": listing}, indent=1) + "\n")
    except OSError as error:
        raise AttestationError(f"cannot write vectors to {folder}: {words(error)}") from None
    return len(listing)
