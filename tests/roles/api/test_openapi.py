"""The description is valid, and nothing that fits or does not fit it brings the server down."""

import asyncio
from typing import Any

import openapi_spec_validator
import requests
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from pydantic import BaseModel, ValidationError

from protocol.messages import CommitSubmission, LogitCheck, RevealSubmission, SubmitKernel, Verdict
from protocol.signing import signed
from tests.roles.api.harness import Client, Code, Subnet

EXAMPLES = 30
SIGNED: dict[str, type[BaseModel]] = {
    "/commit_submission": CommitSubmission,
    "/reveal_submission": RevealSubmission,
    "/submit_kernel": SubmitKernel,
    "/record_verification": LogitCheck,
    "/evaluations/{submission_id}/verdict": Verdict,
}


async def test_description_is_valid(api: Client) -> None:
    document = (await api.get("/openapi.json")).body
    openapi_spec_validator.validate(document)
    paths = set(document["paths"])
    assert {"/get_weights", "/finalize_round/{round_id}", "/submissions/{submission_id}"} <= paths


async def test_docs_show_every_endpoint(api: Client) -> None:
    page = await api.get("/docs")
    assert page.status == 200
    for path in (await api.get("/openapi.json")).body["paths"]:
        assert path in page.body
    assert "<script" not in page.body


async def test_no_request_is_answered_with_5xx(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code())
    await api.lease(subnet.validator)
    document = (await api.get("/openapi.json")).body
    await asyncio.to_thread(_try_everything, api, subnet, document)
    assert (await api.get("/health")).status == 200


def _try_everything(api: Client, subnet: Subnet, document: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            tried += 1

            @hypothesis_settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def answers(case: Any) -> None:
                _sign_body(case, subnet)
                request = requests.Request(**case.as_transport_kwargs(base_url=api.url))
                prepared = session.prepare_request(request)
                body = prepared.body or b""
                data = body.encode() if isinstance(body, str) else body
                assert prepared.method is not None
                prepared.headers.update(
                    api.signature(subnet.validator, prepared.method, prepared.path_url, data)
                )
                reply = session.send(prepared, timeout=120)
                assert reply.status_code < 500, reply.text

            answers()
    assert tried == sum(len(methods) for methods in document["paths"].values())


def _sign_body(case: Any, subnet: Subnet) -> None:
    """Sign what can be signed, so that more than the refusal of a signature is tried."""
    model = SIGNED.get(case.operation.path)
    if model is None or not isinstance(case.body, dict):
        return
    is_validators = "validator_hotkey" in model.model_fields
    signer = subnet.validator if is_validators else subnet.miner
    hotkey = "validator_hotkey" if is_validators else "miner_hotkey"
    fields = {name: value for name, value in case.body.items() if name not in (hotkey, "signature")}
    try:
        case.body = signed(signer, model, **fields).model_dump(mode="json")
    except (ValidationError, TypeError, ValueError):
        return
