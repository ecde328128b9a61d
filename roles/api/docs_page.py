"""GET /docs: the OpenAPI description as a page that needs no script and nothing from elsewhere."""

from html import escape
from typing import Any, Final

STYLE: Final = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;"
    "padding:0 1rem}section{border-top:1px solid #8888;padding:.5rem 0}table{border-collapse:collapse}"
    "td,th{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}div{overflow-x:auto}"
)
HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    operations = [
        _operation(document, method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])} "
        f"Version {escape(info['version'])}; "
        'the same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(operations)}</main></body></html>"
    )


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<section><h2><code>{method} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    if operation.get("security"):
        parts.append("<p>Signed by a validator (btauth/1).</p>")
    for parameter in operation.get("parameters", []):
        kind = _kind(parameter["schema"])
        parts.append(f"<p>Parameter <code>{escape(parameter['name'])}</code>: {escape(kind)}</p>")
    if "requestBody" in operation:
        parts.append("<h3>Body</h3>" + _fields(document, operation["requestBody"]))
    parts.append("<h3>Answers</h3>")
    for status, answer in operation["responses"].items():
        parts.append(f"<p><code>{status}</code> {escape(answer['description'])}</p>")
        if status == "200" and "content" in answer:
            parts.append(_fields(document, answer))
    return "".join(parts) + "</section>"


def _fields(document: dict[str, Any], holder: dict[str, Any]) -> str:
    schema = next(iter(holder["content"].values()))["schema"]
    schema = schema.get("items", schema)
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(field))}</td>"
        f"<td>{'' if name in required else 'optional'}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<div><table>{''.join(rows)}</table></div>"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = [f"{name} {schema[key]}" for key, name in LIMITS.items() if key in schema]
    return " ".join([str(schema.get("type", "anything")), *limits])


LIMITS: Final = {"minimum": "from", "maximum": "to", "pattern": "like", "enum": "one of"}
