"""A page in a real browser with axe-core: contrast, headings, tables, names, landmarks."""

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import axe_core_python

ASK = """<script>%s</script><script>axe.run().then(found => {
  const place = document.createElement("pre");
  place.id = "axe";
  place.textContent = JSON.stringify({violations: found.violations.map(v => [v.id, v.nodes.map(n => n.html)]),
                                      passes: found.passes.length});
  document.body.appendChild(place);
})</script></body>"""


def axe(page: str, tmp_path: Path) -> dict[str, Any]:
    """`violations`, each a rule with the elements that break it, and how many rules it `passes`."""
    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", ASK % script))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    told = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr[-500:]
    found: dict[str, Any] = json.loads(html.unescape(told[1]))
    return found
