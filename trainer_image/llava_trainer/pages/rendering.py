"""Templates filled with values. Whatever comes out of a value is text: escaped for HTML or Markdown, and for eyes.

The templates lie in ``templates``, for anybody who knows HTML: ``layout.html`` is the frame, ``parts.html`` has what
pages share, and nothing in them needs more than Jinja2's own language and the filters below.
"""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llava_api import text

_MARKDOWN = re.compile(r"[\\`*_\[\]<>&|~#@$]")
_MAX_NAME = 100
_ADDRESS = re.compile(r"(?<=www)\.|:(?=//)")


def render_html(template: str, **values: object) -> str:
    """A page from ``templates``; every value is escaped, also the one that looks like markup.

    Args:
        template: name of the file.
        values: what it names.

    Raises:
        jinja2.UndefinedError: the template names something that it was not given.
    """
    return _html().get_template(template).render(values)


def render_markdown(template: str, **values: object) -> str:
    """A Markdown file from ``templates``; no value brings markup, a line break or a link of its own.

    In code nothing can be escaped: what stands there is ``Markup``, known to be harmless by whoever made it.

    Raises:
        jinja2.UndefinedError: the template names something that it was not given.
    """
    return _markdown().get_template(template).render(values)


@cache
def _html() -> Environment:
    return _environment(autoescape=True, finalize=_show)


@cache
def _markdown() -> Environment:
    return _environment(autoescape=False, finalize=_show_in_markdown)


def _environment(*, autoescape: bool, finalize: object) -> Environment:
    environment = Environment(
        loader=PackageLoader("llava_trainer", "pages/templates"),
        autoescape=autoescape,
        finalize=finalize,  # type: ignore[arg-type] # typeshed wants any callable, and object is what we hand on
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, count, percent, share, points, capital, brief, code)
    environment.filters.update({one.__name__: one for one in filters})
    return environment


def _show(value: object) -> object:
    """What an expression in a template becomes before it is escaped for HTML."""
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.escape(value, multiline=True)
    return value


def _show_in_markdown(value: object) -> object:
    if value is None:
        return ""
    return escape_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def escape_markdown(value: str) -> str:
    """``value`` as one line that any reader of Markdown shows as it is, without HTML, links or emphasis of its own."""
    line = " ".join(text.escape(value, multiline=True).split())
    return _ADDRESS.sub(lambda found: "\\" + found[0], _MARKDOWN.sub(lambda found: "\\" + found[0], line))


def number(value: float) -> str:
    """``1,234``."""
    return f"{value:,.0f}"


def count(value: int, what: str, several: str | None = None) -> str:
    """``1 sample``, ``1,234 samples``."""
    return f"{value:,} {what if value == 1 else several or what + 's'}"


def percent(value: float, digits: int = 1) -> str:
    """``0.914`` as ``91.4 %``, with a narrow space that does not break."""
    return f"{value * 100:.{digits}f}\u202f%"


def share(value: float) -> str:
    """``0.914`` as CSS wants it: ``91.40%``, held within 0 and 100."""
    return f"{min(max(value, 0.0), 1.0):.2%}"


def points(value: float) -> str:
    """A difference of proportions in points of percent, signed."""
    return f"{value * 100:+.1f}"


def brief(value: str) -> str:
    """The beginning of a name that may be as long as whoever made the data liked."""
    return text.cut(value, max_chars=_MAX_NAME)


def code(value: str) -> Markup:
    """Lines that stand between two fences of Markdown: none of them ends it, and none has more than it shows.

    Raises:
        ValueError: one would end it.
    """
    lines = text.escape(value, multiline=True).strip("\n")
    if any(line.lstrip().startswith(("```", "~~~")) for line in lines.splitlines()):
        raise ValueError("a line of code begins with a fence")
    return Markup(lines)


def capital(value: str) -> str:
    """``value`` with its first letter large, and the others as they are."""
    return value[:1].upper() + value[1:]
