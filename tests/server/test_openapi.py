"""The server's description of itself is right, and nothing that it allows or forbids makes the server fail."""

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bert4keras_rwkv.server.access import Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.begin import Limits, begin_service
from bert4keras_rwkv.server.openapi import ERRORS
from bert4keras_rwkv.templates import template_of
from tests.test_chat import talker

pytestmark = pytest.mark.on("jax")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=300, derandomize=False)


# What is valid depends on the server and on what it keeps.
OWN = {"model", "mode", "state", "session_id", "previous_response_id", "dimensions", "logit_bias", "min_tokens"}
OWN |= {"max_tokens", "max_completion_tokens", "max_output_tokens"}


def alone(app):
    """The application for who starts and stops it after each test: it goes on."""

    async def asked(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    return asked


@pytest.fixture(scope="module")
def app():
    limits = Limits(max_batch=2, max_tokens=6, max_prompt=500)
    service = begin_service(talker(), template_of("g1"), Access(largest=1 << 14), limits)
    yield alone(make_app(service))
    service.scheduler.stop(0)


@pytest.fixture(scope="module")
def described(app):
    return TestClient(app).get("/openapi.json").json()


@pytest.fixture(scope="module")
def kept(app):
    """The id of a response, and of a state."""
    return TestClient(app).post("/v1/responses", json={"input": "a"}).json()["id"]


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex="^/v1/")


def test_all_routes_are_described(app, described):
    """Under both prefixes, with their bodies and errors, and without FastAPI's own form of errors."""
    schemathesis.openapi.from_dict(described).validate()
    paths = described["paths"]
    assert {path for path in paths if not path.startswith("/v1")} == {
        path[3:] for path in paths if path.startswith("/v1")
    }
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert {str(status) for status in ERRORS} < set(operation["responses"]) and "422" not in operation[
                "responses"
            ]
            assert ("requestBody" in operation) == (method == "post"), path
    wanted = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert wanted == {"$ref": "#/components/schemas/ChatWanted"}
    assert "messages" in described["components"]["schemas"]["ChatWanted"]["required"]


def ask(schema, mode, kept, chosen):
    """Ask every route for what is generated from its description. kept: an id. chosen: hypothesis' settings."""
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing can be wrong

        @chosen
        @given(operation.as_strategy(generation_mode=mode))
        def each(case):
            if mode is GenerationMode.POSITIVE and case.method != "DELETE" and "id" in case.path_parameters:
                case.path_parameters["id"] = kept
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body = {name: value for name, value in case.body.items() if name not in OWN}
            case.call_and_validate(checks=CHECKS)

        each()


def test_errors_have_one_form(app):
    """Those of routes that are not there, and of what FastAPI itself reads, too."""
    http = TestClient(app)
    for method, path, status, field in (
        ("GET", "/nowhere", 404, None),
        ("PUT", "/v1/models", 405, None),
        ("POST", "/v1/states?layout=x", 400, "layout"),
    ):
        answer = http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"] == {**answer.json()["error"], "type": "invalid_request_error", "param": field}


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_makes_it_fail(schema, mode, kept):
    ask(schema, mode, kept, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_none_of_many_requests_makes_it_fail(schema, mode, kept):
    """Those that lie at the edge of what is allowed, too."""
    ask(schema, mode, kept, MANY)
    for result in schema.get_all_operations():
        given = {"generation_modes": [mode], "generation_config": schema.config.generation}
        for case in schema.iter_coverage_cases(result.ok(), **given):
            case.call_and_validate(checks=CHECKS)
