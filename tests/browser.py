"""A real browser that reads pages: headless Chromium of Debian's package, without a network."""

import json
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

from tests.localcluster import host
from tests.localcluster.host import DebianPackage

PACKAGES = (
    DebianPackage("chromium-headless-shell", "chromium-headless-shell"),
    DebianPackage("fonts-liberation", "/usr/share/fonts/truetype/liberation"),
)
_TIMEOUT_S = 120
_RESULT = "result-of-the-test"


def require_browser() -> None:
    """Raise ClusterError, saying what is missing, unless there is one."""
    host.require_packages(PACKAGES)


def _open(page: Path, width: int, dark: bool, *options: str) -> str:
    done = subprocess.run(
        ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000",
         f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},2400",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, page.as_uri()],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
    )  # fmt: skip
    return done.stdout


def ask(text: str, script: str, folder: Path, *, width: int, dark: bool = False) -> Any:
    """What ``script`` returns in a page, as JSON has it.

    Args:
        text: the page; it must allow inline scripts.
        script: body of an async function of JavaScript.
        folder: empty, for what the browser writes.
        width: of the window, in CSS pixels.
        dark: whether the reader wants dark pages.
    """
    asking = (
        "<script>(async () => {" + script + "})().then((found) => {"
        f"const told = document.createElement('script'); told.id = '{_RESULT}'; told.type = 'application/json';"
        "told.textContent = JSON.stringify(found).replaceAll('<', '\\\\u003c');"
        "document.body.append(told); });</script>"
    )
    page = folder / "page.html"
    page.write_text(text.replace("</body>", asking + "</body>"), encoding="utf-8")
    seen = _open(page, width, dark, "--dump-dom")
    _, mark, rest = seen.rpartition(f'<script id="{_RESULT}" type="application/json">')
    assert mark, f"the script has not come to its end:\n{seen[-2000:]}"
    return json.loads(rest.split("</script>")[0])


def find_obstacles(text: str, folder: Path, *, width: int, dark: bool = False) -> list[str]:
    """What axe-core finds in a page that keeps somebody from reading it, by rule and place."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    assert "</script" not in axe
    script = (
        "const found = await axe.run(document); return found.violations.flatMap((rule) => rule.nodes.map((node) => "
        "`${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`));"
    )
    with_axe = text.replace("</body>", f"<script>{axe}</script></body>")
    return list(ask(with_axe, script, folder, width=width, dark=dark))
