"""
Lines of code: those that hold no docstring, comment or blank line alone.

``python tests/support/code_lines.py`` prints how many the package has.
"""

from __future__ import annotations

import ast
import tokenize
from pathlib import Path

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> set[int]:
    """Return the numbers of the lines of code in a file."""
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in NO_CODE:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        # A string that is a statement: a docstring, or what explains the field above it.
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def main() -> None:
    """Print the sizes of the package's folders, and of all."""
    package = Path(__file__).parents[2] / "twisted_netsock"
    folders: dict[str, int] = {}
    for path in sorted(package.rglob("*.py")):
        folder = path.relative_to(package).parts[0]
        name = "top" if folder.endswith(".py") else folder
        folders[name] = folders.get(name, 0) + len(code_lines(path))
    parts = ", ".join(f"{name} {count:,}" for name, count in folders.items())
    print(f"lines of code: {sum(folders.values()):,} ({parts})")  # noqa: T201


if __name__ == "__main__":
    main()
