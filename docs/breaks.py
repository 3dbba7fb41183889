"""Places where names and calls in tables may break, so that tables fit the page."""

import re
from typing import Any

_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_CODE = re.compile(r'(?<=<span class="pre">)[^<]+(?=</span>)')
_PLACE = re.compile(r"(?<=\w_)(?=\w)|(?<=[.(,=:/])(?=\w)|(?<=[a-z])(?=[A-Z])")


def with_breaks(html: str) -> str:
    """Return *html* with places where code in tables may break."""
    return _TABLE.sub(
        lambda table: _CODE.sub(lambda code: _PLACE.sub("<wbr>", code[0]), table[0]), html
    )


def setup(app: Any) -> dict[str, Any]:
    """Have Sphinx write its pages so."""

    def break_tables(_app: Any, _page: str, _template: str, context: Any, _tree: Any) -> None:
        if "body" in context:
            context["body"] = with_breaks(context["body"])

    app.connect("html-page-context", break_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
