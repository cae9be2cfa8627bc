"""@phala/dcap-qvl, a verifier in JavaScript that shares no code with the Python package's, from npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fetching import cannot_fetch

#: The series that the rules written here are about.
PACKAGE = "@phala/dcap-qvl@^0.3.9"

#: Seconds that npm may take.
_PATIENCE = 180

# Reads [name, quote, collateral, Unix seconds] lines, writes [name, verdict, status or message, advisories].
_JUDGE = """
const fs = require('fs');
const { QuoteVerifier } = require('@phala/dcap-qvl');
const [root, cases] = process.argv.slice(2);
const verifier = QuoteVerifier.newWithRootCa(fs.readFileSync(root));
for (const line of fs.readFileSync(cases, 'utf8').trim().split('\\n')) {
  const [name, quote, collateral, now] = JSON.parse(line);
  let verdict;
  try {
    const text = fs.readFileSync(collateral);
    const report = verifier.verify(fs.readFileSync(quote), JSON.parse(text), now);
    verdict = ['accepted', report.status, report.advisory_ids];
  } catch (error) {
    verdict = ['rejected', String(error.message), []];
  }
  console.log(JSON.stringify([name, ...verdict]));
}
"""


class Judge:
    """The verifier in ``folder``, where it was installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def install(cls, folder: Path) -> Judge:
        """Install it into ``folder``, unless it is there; ends the test if that cannot be done."""
        if not (folder / "judge.js").exists():
            if shutil.which("npm") is None or shutil.which("node") is None:
                cannot_fetch("npm and node are not installed")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text('{"private": true}')
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
            try:
                result = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE
                )
            except subprocess.TimeoutExpired:
                cannot_fetch(f"npm did not finish in {_PATIENCE} s")
            if result.returncode:
                cannot_fetch(f"npm cannot install {PACKAGE}: {result.stderr.strip()[-300:]}")
            (folder / "judge.js").write_text(_JUDGE)
        return cls(folder)

    def verify(
        self, root: Path, cases: Iterable[tuple[str, Path, Path, int]], workspace: Path
    ) -> dict[str, Any]:
        """Verdicts by name: (accepted or rejected, TCB status or message, advisories).

        Args:
            root: the trusted root, DER.
            cases: name, quote file, collateral file (JSON), Unix seconds.
            workspace: where a file may be written.
        """
        listing = workspace / "cases.jsonl"
        listing.write_text(
            "".join(
                json.dumps([name, str(quote), str(collateral), now]) + "\n"
                for name, quote, collateral, now in cases
            )
        )
        output = subprocess.run(
            ["node", "judge.js", str(root), str(listing)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        return {name: verdict for name, *verdict in map(json.loads, output.splitlines())}
