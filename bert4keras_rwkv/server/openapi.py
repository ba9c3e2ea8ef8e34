"""What the server says of itself: an OpenAPI description of its routes, which read their bodies themselves."""

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from bert4keras_rwkv.server.access import JSON
from bert4keras_rwkv.server.protocol import Fields

EVENTS = "text/event-stream"
SCHEMAS = "#/components/schemas/"
ERRORS = {
    400: "A value is wrong: `param` names it.",
    401: "The API key is missing or wrong.",
    403: "What may not be changed, or a Host that the server does not go by.",
    404: "What is named is not here.",
    409: "The id is taken.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many ask at once: `Retry-After` says when to come again.",
    500: "The server made a mistake.",
    503: "The server is stopping.",
    504: "The answer took too long.",
    507: "There is no room for a state.",
}
TEXT = {"type": ["string", "null"]}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": TEXT, "code": TEXT},
        }
    },
}


def asks(kind, *others, stream=False):
    """What a route says of its body, a kind of `Fields` or of other media types. stream: it may answer in events."""
    content = {JSON: {"schema": {"$ref": SCHEMAS + kind.__name__}}, **{one: {} for one in others}}
    body = {"requestBody": {"required": True, "content": content}}
    return body | ({"responses": {"200": {"content": {EVENTS: {}}}}} if stream else {})


def gives(*types):
    """What a route says of an answer of these media types."""
    return {200: {"content": {one: {} for one in types}}}


def openapi_route(app):
    """The route /openapi.json, about all that an application has when it is first asked."""
    router, kept = APIRouter(), []

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi():
        if not kept:
            kept.append(description(app))
        return kept[0]

    return router


def description(app):
    """The OpenAPI description of an application, a dict."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, schemas = models_json_schema([(kind, "validation") for kind in _last(Fields)], ref_template=SCHEMAS + "{model}")
    errors = {str(status): _error(text) for status, text in ERRORS.items()}
    for path in told["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which is a 400 here
            operation["responses"] = errors | operation["responses"]
    told["components"] = {
        "schemas": schemas["$defs"] | {"Error": ERROR},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    return told | {"security": [{"key": []}, {}]}


def _error(text):
    return {"description": text, "content": {JSON: {"schema": {"$ref": f"{SCHEMAS}Error"}}}}


def _last(kind):
    """The classes below one that have none below them: what is asked for, and its parts."""
    return [one for below in kind.__subclasses__() for one in _last(below) or [below]]
