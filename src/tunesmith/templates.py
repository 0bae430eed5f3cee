"""Pages and cards, filled in from the jinja templates that lie beside the code that gathers what they say."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def fill(
    package: str, name: str, told: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> str:
    """The text of a package's template with what it is told; a name that the template asks for and lacks is an error.

    In an HTML page everything told is escaped; a line that holds a statement alone leaves no blank line.
    """
    is_page = name.endswith(".html.jinja")
    environment = jinja2.Environment(
        # The look that all pages share lies beside this file.
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("tunesmith", ".")]),
        undefined=jinja2.StrictUndefined,
        autoescape=is_page,
        trim_blocks=is_page,
        lstrip_blocks=is_page,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(name).render(told)
