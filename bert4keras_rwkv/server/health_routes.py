"""What those ask who look after a server: whether it lives, whether it takes requests, and how much it does."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from bert4keras_rwkv.server.openapi import gives


def health_routes(service):
    """The routes /health, /ready and /metrics of a `Service`. Only the last wants a key, where requests want one: how
    many ask, and what, is nobody else's business.
    """
    router, scheduler = APIRouter(), service.scheduler

    @router.get("/health")
    async def health():
        return {"status": "ok", "running": scheduler.running, "waiting": scheduler.waiting}

    @router.get("/ready", responses={503: {"description": "Its programs are not compiled yet, or it is stopping."}})
    async def ready():
        if scheduler.ready:
            return {"status": "ready"}
        return JSONResponse({"status": "not ready"}, 503)

    @router.get("/metrics", responses=gives("text/plain", "application/openmetrics-text"), response_class=Response)
    async def metrics(request: Request):
        service.access.check_key(request)
        body, media_type = service.metrics.shown(request.headers.get("accept", ""))
        return Response(body, media_type=media_type)

    return router
