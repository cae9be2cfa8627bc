"""What quotes cost: made a second, and verified a second against dcap-qvl called bare.

Run as ``python -m benchmarks.attestation``; ``--json`` prints the figures for programs. The exit status is
1 if a promise of issue 5 is broken: ``swtdx verify`` as a library (``swtdx.attestation.verify.Verifier``)
verifies at least 0.8 times as many quotes a second as dcap-qvl's own function.

Both sides get the same quotes (each of another report, in both versions), the same root and the same time.
They take turns at every quote, and the median of all turns counts, so that whatever else the computer does
hits both alike. Twice: with collateral that stays, as a service has it that verifies many quotes of one
platform, and with collateral read anew from JSON for every quote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import dcap_qvl

from benchmarks.promise import Promise
from swtdx.attestation.collateral import Collateral
from swtdx.attestation.verify import Verifier
from swtdx.attestation.world import World

QUOTES = 200
ROUNDS = 7
PROMISED_RATIO = 0.8


def rate(action: Callable[[bytes], object], quotes: list[bytes]) -> float:
    """Quotes a second, over all of ``quotes`` once."""
    start = time.perf_counter()
    for quote in quotes:
        action(quote)
    return len(quotes) / (time.perf_counter() - start)


def made_and_quotes(world: World) -> tuple[float, list[bytes]]:
    """Quotes made a second by the enclave (MAC check, hashes, signature), and the quotes."""
    enclave = world.enclave(world.report_key)
    fields = world.report_fields()
    reports = [
        replace(fields, reportdata=number.to_bytes(64, "big")).report(world.report_key)
        for number in range(QUOTES)
    ]
    enclave.quote(reports[0])
    best = max(rate(enclave.quote, reports) for _ in range(ROUNDS))
    versions = [enclave.quote(report, version=4 + number % 2) for number, report in enumerate(reports)]
    return best, versions


def verified(world: World, quotes: list[bytes]) -> dict[str, float]:
    """Quotes verified a second: by swtdx and by dcap-qvl, with collateral kept and read anew."""
    root, now = world.pki.root.der, int(world.now.timestamp())
    kept = world.collateral()
    text = kept.to_json()
    native = dcap_qvl.QuoteCollateralV3.from_json(text)
    verifier = Verifier(root, accept_simulated=True)

    def swtdx(quote: bytes) -> None:
        assert verifier.verify(quote, kept, now).accepted

    def bare(quote: bytes) -> None:
        assert dcap_qvl.verify_with_root_ca(quote, native, root, now).status == "UpToDate"

    def swtdx_anew(quote: bytes) -> None:
        assert verifier.verify(quote, Collateral.from_json(text), now).accepted

    def bare_anew(quote: bytes) -> None:
        fresh = dcap_qvl.QuoteCollateralV3.from_json(text)
        assert dcap_qvl.verify_with_root_ca(quote, fresh, root, now).status == "UpToDate"

    return duel(swtdx, bare, quotes) | {
        f"{name}_anew": value for name, value in duel(swtdx_anew, bare_anew, quotes).items()
    }


def duel(
    ours: Callable[[bytes], object], theirs: Callable[[bytes], object], quotes: list[bytes]
) -> dict[str, float]:
    """Quotes a second of both, and the ratio of the two."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        for turn, quote in enumerate(quotes):
            # Neither always comes first.
            for side in (0, 1) if (turn + number) % 2 else (1, 0):
                start = time.perf_counter()
                (ours, theirs)[side](quote)
                spent[side].append(time.perf_counter() - start)
    mine, other = (1 / statistics.median(each) for each in spent)
    return {"swtdx": mine, "bare": other, "ratio": mine / other}


def main() -> int:
    """Measure, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    world = World()
    made, quotes = made_and_quotes(world)
    figures = verified(world, quotes)
    ratio = min(figures["ratio"], figures["ratio_anew"])
    promise = Promise(5, "quotes verified, against bare dcap-qvl", ratio, PROMISED_RATIO, "%")
    kept = promise.kept
    if options.json:
        promises = [promise.figures()]
        print(json.dumps({"made": made, "verified": figures, "promises": promises, "kept": kept}, indent=2))
        return 0 if kept else 1
    print(f"quotes made                      {made:7.0f} /s")
    for suffix, title in (("", "quotes verified"), ("_anew", "with collateral from JSON each")):
        print(f"{title:<32} {figures['swtdx' + suffix]:7.0f} /s")
        print(f"  dcap-qvl called bare           {figures['bare' + suffix]:7.0f} /s")
        print(f"  ratio                          {figures['ratio' + suffix]:7.2f}")
    print(f"promised: a ratio of at least {PROMISED_RATIO}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
