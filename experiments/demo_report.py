from typing import Any


def page(summary: Any) -> str:
    return "<html></html>"
