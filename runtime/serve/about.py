"""What the server says of itself: /health, /metrics, /props, /openapi.json, /v1/models."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from .http import service_of
from .refusal import Refusal
from .service import Service


async def health(request: Request) -> Response:
    """200 when requests are answered, 503 while the model is loaded or the server stops. Needs no key."""
    service = service_of(request)
    status = "stopping" if service.scheduler.stopping else "ok" if service.ready else "loading"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def props(request: Request) -> Response:
    """The model, what computes it, and the limits."""
    service = service_of(request)
    model, about = service.model, service.model.backend.describe()
    memory = model.config.memory
    return JSONResponse(
        {
            "model": model.name, "fingerprint": model.fingerprint, "version": __version__,
            "backend": about.backend, "device": about.device, "dtype": about.dtype, "quantization": about.quantization,
            "memory": {"cell": memory.cell, "layers": list(memory.layers), "slots": memory.slots, "chunk": memory.chunk, "state_bytes": about.state_bytes},
            "window": service.window or model.window, "sampling": model.sampling.to_dict(), "limits": asdict(service.limits), "store": service.store is not None,
        }
    )  # fmt: skip


async def openapi(request: Request) -> Response:
    """The OpenAPI document of this server."""
    return JSONResponse(request.app.state.openapi)


async def models(request: Request) -> Response:
    """The one model that is here."""
    return JSONResponse({"object": "list", "data": [_model(service_of(request))]})


async def model(request: Request) -> Response:
    """A model by its name."""
    service, given = service_of(request), request.path_params["id"]
    if given != service.model.name:
        raise Refusal(404, f"model {given[:80]!a} is not here: this server has {service.model.name}", "model", "model_not_found")
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.model.name, "object": "model", "created": service.started, "owned_by": "lm2"}
