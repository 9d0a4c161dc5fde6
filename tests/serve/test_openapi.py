"""The OpenAPI document says what the server does: random requests made from it never meet a server error, and each answer is as it says."""

from importlib.util import find_spec

import pytest
from serve_kit import Web, served, transcript

SEED = 20


@pytest.fixture(scope="module")
def small(model):
    """Short answers, so that many requests are quick."""
    with served(model, tokens=4, sessions=10_000) as running:
        yield running


def test_every_path_is_there(web, server):
    from lm2.runtime.serve.routes import ROUTES

    document = web("GET", "/openapi.json").json()
    assert {(m.upper(), path) for path, methods in document["paths"].items() for m in methods} == {(r.method, r.path) for r in ROUTES}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
    named = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(set(named)) == len(named)


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.filterwarnings("ignore")
def test_random_requests(small):
    """Each operation of the document, with requests that fit it and requests that do not."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    web = Web(small)
    ids = {
        "/v1/models/{id}": "lm2-tiny",
        "/v1/sessions/{id}": web("POST", "/v1/sessions", {}).json()["id"],
        "/v1/conversations/{id}": web("POST", "/v1/conversations", {}).json()["id"],
        "/v1/responses/{id}": web("POST", "/v1/responses", {"input": "Hi"}).json()["id"],
    }
    api = schemathesis.openapi.from_dict(web("GET", "/openapi.json").json())
    statuses, tried = [], set()

    def requests_of(operation):
        known = next((own for path, own in ids.items() if operation.path.startswith(path)), None)
        cases = operation.as_strategy()
        if operation.body or operation.path_parameters or operation.query:
            cases |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

        @hypothesis.seed(SEED)
        @hypothesis.settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(cases, hypothesis.strategies.booleans())
        def run(case, real):
            if known is not None and real and operation.method.upper() != "DELETE":
                case.path_parameters = {**case.path_parameters, "id": known}
            response = case.call(base_url=small.url)
            statuses.append(response.status_code)
            tried.add((operation.method, operation.path))
            case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

        run()

    for result in api.get_all_operations():
        requests_of(result.ok())
    print(f"{len(statuses)} requests for {len(tried)} operations, statuses {sorted(set(statuses))}")
    assert len(tried) == len(list(api.get_all_operations())) and {200, 201, 400, 404} <= set(statuses)


def test_an_answer_that_the_document_does_not_know_is_seen(small):
    """The control: the schemas let nothing else through."""
    jsonschema = pytest.importorskip("jsonschema_rs")
    web = Web(small)
    document = web("GET", "/openapi.json").json()
    rule = {"$ref": "#/components/schemas/ChatCompletion", "components": document["components"]}
    answer = web("POST", "/v1/chat/completions", {"messages": transcript("Where is Mary?"), "logprobs": True}).json()
    assert jsonschema.is_valid(rule, answer)
    for wrong in (answer | {"more": 1}, {k: v for k, v in answer.items() if k != "usage"}, answer | {"object": "chat"}, answer | {"choices": {}}):
        assert not jsonschema.is_valid(rule, wrong)
