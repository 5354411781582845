"""The application: routes, errors in one form, and the document that describes both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chainrule.core.artifact import Artifact
from chainrule.errors import ChainruleError
from chainrule.serving import routes
from chainrule.serving.forms import completed
from chainrule.serving.gate import Gate
from chainrule.serving.hosts import Hosts
from chainrule.serving.keys import Keys
from chainrule.serving.page import page_of
from chainrule.serving.refusal import JSON, RefusedError, answer_of, form_of
from chainrule.serving.reloading import Reloading
from chainrule.serving.requests import Chat, Completion, Embeddings, Feedback, Predict, Rank
from chainrule.serving.routes import Service
from chainrule.version import __version__

_SHOWN = 3  # of the things that are wrong with a request


def make_app(
    service: Service, keys: Keys, hosts: Hosts, origins: Sequence[str] = (), reloading: Reloading | None = None
) -> Gate:
    """The application of a server.

    Args:
        hosts: the names that it answers to.
        origins: of web pages that may ask; none by default.
        reloading: what takes up new versions of the models.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        async with AsyncExitStack() as stack:
            if service.watching is not None:
                await stack.enter_async_context(service.watching.running())
            await stack.enter_async_context(service.shadows.running())
            if reloading is not None:
                await stack.enter_async_context(reloading.running())
            yield
        service.worker.close()

    app = FastAPI(
        title="Chainrule",
        version=__version__,
        lifespan=lifespan,
        default_response_class=JSON,
        docs_url=None,
        redoc_url=None,
    )
    _add_models(app, service)
    _add_state(app, service)
    _add_page(app)
    _add_errors(app)

    described: dict[str, Artifact] = {}  # the versions of the models that the document was made of

    def document() -> dict[str, Any]:
        loaded = {name: served.predictor.artifact for name, served in service.models.items()}
        if app.openapi_schema is None or described != loaded:
            plain = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = completed(plain, service.models)
            described.update(loaded)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    gate = Gate(app, keys, hosts, service.limits, service.metrics)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return gate


def _add_models(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict")
    async def predict(request: Request, body: Predict) -> Response:
        """Predictions of rows."""
        return await routes.predict(service, request, body)

    @app.post("/v1/feedback")
    async def feedback(request: Request, body: Feedback) -> Response:
        """What a prediction should have been."""
        return await routes.feedback(service, body)

    @app.post("/v1/rank")
    async def rank(request: Request, body: Rank) -> Response:
        """Items in the order of their relevance to a query."""
        return await routes.rank(service, request, body)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: Embeddings) -> Response:
        """Vectors of texts, in OpenAI's form."""
        return await routes.embeddings(service, request, body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: Chat) -> Response:
        """A reply to a conversation, in OpenAI's form."""
        return await routes.write(service, request, body)

    @app.post("/v1/completions")
    async def completions(request: Request, body: Completion) -> Response:
        """More of a text, in OpenAI's form."""
        return await routes.write(service, request, body)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        """The models of this server, in OpenAI's form and with their tasks and labels."""
        return JSON({"object": "list", "data": [served.about() for served in service.models.values()]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        """One model."""
        if name not in service.models:
            raise RefusedError(404, f"There is no model {name[:100]!r} here.", code="model_not_found", param="model")
        return JSON(service.models[name].about())

    @app.get("/healthz")
    async def health() -> Response:
        """Whether the process answers."""
        return JSON({"status": "ok"})

    @app.get("/readyz")
    async def ready() -> Response:
        """Whether the models answer."""
        if service.worker.alive():
            return JSON({"status": "ready"})
        return JSON({"status": "not ready"}, 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in the form of Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The document for a person."""
        text, policy = page_of(app.openapi())
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return Response(text, media_type="text/html", headers=headers)


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        return answer_of(error if isinstance(error, ChainruleError) else ChainruleError(str(error)))

    async def malformed(request: Request, error: Exception) -> Response:
        return _malformed(error.errors() if isinstance(error, RequestValidationError) else [])

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        if status == 404:
            form = form_of(
                404, f"There is nothing at {request.url.path[:200]}; /docs tells what there is.", "not_found"
            )
        elif status == 400:
            form = form_of(400, "The body is no JSON that can be read.", "invalid_json")
        else:
            form = form_of(status, HTTPStatus(status).phrase, HTTPStatus(status).name.lower())
        return JSON(form, status, headers)

    app.add_exception_handler(ChainruleError, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, refused)


def _malformed(errors: Sequence[Any]) -> JSON:
    """What is said of a body that is no JSON, or of another form than was asked for."""
    first: Any = errors[0] if errors else {"type": "", "loc": (), "msg": ""}
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        told = f"The body is no JSON: {reason} (character {first['loc'][-1]})."
        return JSON(form_of(400, told, "invalid_json"), 400)
    if first["loc"] == ("body",):
        told = "The body must be a JSON object, sent with the header `Content-Type: application/json`."
        return JSON(form_of(422, told, "invalid_request"), 422)
    found = {_place(error["loc"]): error["msg"] for error in reversed(errors)}
    told = "; ".join(f"{place[:100]}: {message}" for place, message in list(reversed(found.items()))[:_SHOWN])
    return JSON(
        form_of(
            422,
            f"The request is not of the form that /docs tells. {told}.",
            "invalid_request",
            _place(first["loc"])[:100],
        ),
        422,
    )


def _place(loc: Sequence[Any]) -> str:
    """inputs[3] and the like; the alternatives of a type, which pydantic names, are left out."""
    place = ""
    for part in loc[1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in ("str", "list[str]", "Item") and not str(part).startswith("dict["):
            place += f".{part}" if place else str(part)
    return place
