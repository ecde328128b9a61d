"""Every endpoint of the API on one screen, and the application that serves them."""

import json
from functools import cache

from aiohttp import web
from pydantic import BaseModel

from node.http_server import base_app
from node.metrics import product_version
from protocol import compatibility as c
from protocol import messages as m
from roles.api.commits import CommitHandler
from roles.api.comparisons import ComparisonHandler
from roles.api.compatibility import CompatibilityHandlers
from roles.api.context import Api
from roles.api.direct import SubmitHandler
from roles.api.docs_page import HEADERS, render
from roles.api.evaluations import EvaluationHandlers
from roles.api.openapi import Handler, Route, describe_api
from roles.api.page.handlers import PageHandlers
from roles.api.readiness import Readiness
from roles.api.reads import ReadHandlers
from roles.api.reveals import RevealHandler
from roles.api.verifications import VerificationHandlers

MINER_ERRORS = (401, 403)
NUMBER = "{submission_id:[0-9]+}"


def build_routes(api: Api) -> list[Route]:
    """The routes with their handlers."""
    reads = ReadHandlers(api)
    return [
        *_miner_routes(api),
        *_validator_routes(api),
        *_read_routes(api, reads),
        *_compatibility_routes(api),
    ]


def _miner_routes(api: Api) -> list[Route]:
    return [
        Route(
            method="POST",
            path="/commit_submission",
            handler=CommitHandler(api).commit,
            summary="Phase 1 of commit-reveal: record a commitment and get a signed receipt.",
            body=m.CommitSubmission,
            answer=m.CommitSubmissionAnswer,
            errors=(*MINER_ERRORS, 409, 429),
        ),
        Route(
            method="POST",
            path="/reveal_submission",
            handler=RevealHandler(api).reveal,
            summary="Phase 2 of commit-reveal: open a commitment from its reveal block on.",
            body=m.RevealSubmission,
            answer=m.RevealSubmissionAnswer,
            errors=(*MINER_ERRORS, 404, 409, 410, 425),
        ),
        Route(
            method="POST",
            path="/submit_kernel",
            handler=SubmitHandler(api).submit,
            summary="Submit code directly.",
            body=m.SubmitKernel,
            answer=m.SubmitKernelAnswer,
            errors=(*MINER_ERRORS, 409, 429),
        ),
    ]


def _validator_routes(api: Api) -> list[Route]:
    evaluations = EvaluationHandlers(api)
    return [
        Route(
            method="POST",
            path="/evaluations/lease",
            handler=evaluations.lease,
            summary="Take the next submission to judge.",
            answer=m.LeaseAnswer,
            may_be_empty=True,
            is_validators=True,
        ),
        Route(
            method="POST",
            path=f"/evaluations/{NUMBER}/heartbeat",
            handler=evaluations.heartbeat,
            summary="Keep a lease alive.",
            body=m.Heartbeat,
            answer=m.HeartbeatAnswer,
            errors=(404, 409),
            is_validators=True,
        ),
        Route(
            method="POST",
            path=f"/evaluations/{NUMBER}/verdict",
            handler=evaluations.verdict,
            summary="Hand in a signed verdict and end the lease.",
            body=m.Verdict,
            answer=m.VerdictAnswer,
            errors=(404, 409),
            is_validators=True,
        ),
        Route(
            method="POST",
            path="/comparisons",
            handler=ComparisonHandler(api).record_comparison,
            summary="Record a signed re-run of two submissions, which settles a lead.",
            body=m.Comparison,
            answer=m.ComparisonAnswer,
            errors=(404, 409),
            is_validators=True,
        ),
        Route(
            method="POST",
            path="/record_verification",
            handler=VerificationHandlers(api).record,
            summary="Record a signed logit check of a miner.",
            body=m.LogitCheck,
            answer=m.LogitCheckAnswer,
            errors=(404, 409),
            is_validators=True,
        ),
    ]


def _read_routes(api: Api, reads: ReadHandlers) -> list[Route]:
    return [
        _read("/pending_reveals", reads.pending_reveals, "Commitments that wait.", m.PendingReveals),
        _read(
            "/get_submission_stats",
            reads.submission_stats,
            "The newest and the fastest submissions.",
            m.SubmissionStatsAnswer,
            query=("limit",),
        ),
        _read("/get_current_round", reads.current_round, "The open round.", m.CurrentRound),
        _read("/leaderboard", reads.leaderboard, "The ranking over all verdicts.", m.Leaderboard),
        _read(
            f"/submissions/{NUMBER}", reads.submission, "One submission.", m.SubmissionDetail, errors=(404,)
        ),
        _read(
            "/submissions",
            reads.submissions,
            "The newest submissions, of one hotkey or all.",
            m.SubmissionDetail,
            is_list=True,
            query=("hotkey", "limit"),
        ),
        _read(
            "/verifications",
            VerificationHandlers(api).show,
            "Where the logit verification of each hotkey stands.",
            m.LogitVerification,
            is_list=True,
        ),
        _read("/info", reads.info, "To whom requests are bound, and the limits.", m.ApiInfo),
        _read("/health", reads.health, "The process answers.", m.Health),
    ]


def _compatibility_routes(api: Api) -> list[Route]:
    handlers = CompatibilityHandlers(api)
    return [
        _read("/get_weights", handlers.get_weights, "Shares of the ranking as it stands.", c.Weights),
        _read(
            "/get_submission_rate",
            handlers.submission_rate,
            "Submissions a minute.",
            c.SubmissionRate,
            query=("window_minutes",),
        ),
        _read(
            "/verification_stats",
            handlers.verification_stats,
            "Counts of logit verification.",
            c.VerificationStats,
        ),
        Route(
            method="POST",
            path="/register_miner",
            handler=handlers.register_miner,
            summary="Whether a hotkey is registered on the chain.",
            body=c.RegisterMiner,
            answer=c.RegisterMinerAnswer,
            errors=(403,),
        ),
        Route(
            method="POST",
            path="/mark_validated",
            handler=handlers.mark_validated,
            summary="Confirm that one's verdict is recorded.",
            body=c.MarkValidated,
            answer=c.Acknowledged,
            errors=(404, 409),
            is_validators=True,
        ),
        Route(
            method="POST",
            path="/record_failure",
            handler=handlers.record_failure,
            summary="Confirm that one's verdict against a submission is recorded.",
            body=c.RecordFailure,
            answer=c.Acknowledged,
            errors=(404, 409),
            is_validators=True,
        ),
        Route(
            method="POST",
            path="/create_round",
            handler=handlers.create_round,
            summary="Always refused: rounds open by time.",
            body=c.CreateRound,
            errors=(409,),
            is_validators=True,
        ),
        Route(
            method="POST",
            path="/finalize_round/{round_id:[0-9]+}",
            handler=handlers.finalize_round,
            summary="Always refused: rounds close by time.",
            errors=(404, 409),
            is_validators=True,
        ),
    ]


def _read(
    path: str,
    handler: Handler,
    summary: str,
    answer: type[BaseModel],
    *,
    is_list: bool = False,
    query: tuple[str, ...] = (),
    errors: tuple[int, ...] = (),
) -> Route:
    return Route(
        method="GET",
        path=path,
        handler=handler,
        summary=summary,
        answer=answer,
        is_list=is_list,
        query=query,
        errors=errors,
    )


def build_app(api: Api, page: PageHandlers) -> web.Application:
    """The whole application: the routes, the page, health, readiness and metrics."""
    settings = api.settings.api
    app = base_app(
        readiness=Readiness(api).reason, metrics=api.metrics, max_body_bytes=settings.max_body_bytes
    )
    routes = build_routes(api)

    @cache
    def document() -> tuple[str, str]:
        # When first asked for: it takes a tenth of a second, which belongs to no start.
        description = describe_api(routes, version=product_version())
        return json.dumps(description), render(description)

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(text=document()[0], content_type="application/json")

    async def docs(_request: web.Request) -> web.Response:
        return web.Response(text=document()[1], content_type="text/html", headers=HEADERS)

    for route in routes:
        app.router.add_route(route.method, route.path, route.handler)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/docs", docs)
    page.add_to(app)
    return app
