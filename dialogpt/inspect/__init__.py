"""See inside a dialogue: what else could have come, which layer decided, where attention went, what a turn is worth."""

from dialogpt.inspect.capture import Capture, capture
from dialogpt.inspect.data import Inspection, inspect_reply
from dialogpt.inspect.explain import explain, explain_last
from dialogpt.inspect.page import page_sources, policy_source, render_page
from dialogpt.inspect.search import Considered

__all__ = [
    "Capture",
    "Considered",
    "Inspection",
    "capture",
    "explain",
    "explain_last",
    "inspect_reply",
    "page_sources",
    "policy_source",
    "render_page",
]
