"""Make a page that works offline: scripts, styles and photos are inside the file.

Its content security policy allows the scripts written here and no request to anywhere: nothing that the name of a photo
contains can run or call home. Used by `page`, `review` and the report of a training.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from bokeh.embed import components
from bokeh.models import Model
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pipelines.report.scores import say, stage_name
from pipelines.report.wording import metres, percent


def render_offline(template: str, drawings: Mapping[str, Model], *, scripts: Sequence[str] = (), **content: Any) -> str:
    """Fill a template of this folder.

    Args:
        template: its file name.
        drawings: Bokeh's, by the names the template has for them. It is given an element for each as `drawings`.
        scripts: of the page's own, to run after Bokeh's.
        content: everything else the template names. It is escaped unless it is Markup.
    """
    script, elements = _embed(drawings)
    bokeh = Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw))
    all_scripts = [bokeh, script, *map(Markup, scripts)]
    return _template(template).render(drawings=elements, scripts=all_scripts, policy=_policy(all_scripts), **content)


def as_data(value: Any) -> Markup:
    """Make JSON that may stand in a `<script type="application/json">`: nothing in it can end the element. NaN becomes null."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))


def _embed(drawings: Mapping[str, Model]) -> tuple[Markup, dict[str, Markup]]:
    """The script that draws, and an element for each drawing. Bokeh escapes the data it writes into the script."""
    if not drawings:
        return Markup(""), {}
    script, elements = components(dict(drawings), wrap_script=False)
    return Markup(script), {name: Markup(element) for name, element in elements.items()}


def _policy(scripts: Sequence[Markup]) -> str:
    """A content security policy that runs exactly these scripts and asks nothing of any network."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("pipelines.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metres": metres, "percent": percent, "say": say, "stage_name": stage_name}
    return environment.get_template(name)
