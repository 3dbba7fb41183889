"""
Draws ``docs/_static/relay.svg``, the README's picture: the relay's demonstration in a terminal.

``nox -s picture`` runs it. What it shows has happened: the demonstration runs, and is asked.
"""

# ruff: noqa: S603 - it runs our own command, and what that prints to be run

import io
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parent / "_static" / "relay.svg"
COLUMNS = 98


def demonstrate() -> tuple[list[str], str, str]:
    """Return what the demonstration prints, the curl command among it, and the answer to that."""
    words = [sys.executable, "-m", "twisted", "--log-format=text", "netsock", "relay"]
    printed: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        try:
            for line in relay.stdout:
                printed.append(line.rstrip())
                if "relaying from" in line:
                    break
            [ask] = [line.strip() for line in printed if line.startswith("  curl")]
            done = subprocess.run(
                [*shlex.split(ask), "--silent"], capture_output=True, check=True, text=True
            )
        finally:
            relay.send_signal(signal.SIGINT)
    # The log is for another page.
    shown = [line for line in printed if not re.match(r"\d{4}-", line)]
    return shown, ask, done.stdout.rstrip()


def draw() -> str:
    """Return the picture as SVG."""
    shown, ask, answer = demonstrate()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    prompt = Text("$ ", style="green")
    console.print(prompt + Text(".venv/bin/twist netsock relay", style="bold"))
    for line in shown:
        console.print(Text(line))
    console.print(prompt + Text(ask, style="bold"), Text(answer), sep="\n")
    svg = console.export_svg(title="netsock relay", unique_id="relay")
    # Whoever reads the README is not to fetch fonts from anywhere.
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(draw())
