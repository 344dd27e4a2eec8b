"""The REST interface as one table of operations, and its description as OpenAPI 3.1.

`api` serves exactly this table; a test holds routes and description together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from protocol.decisions import PlacementView
from protocol.instances import (
    MAX_LOG_LINES,
    TOTAL_HEADER,
    AgentView,
    Category,
    Health,
    InstanceLog,
    InstanceView,
    RegionView,
    ServiceView,
    StartAnswer,
    StartRequest,
)
from protocol.records import RECORD_HEADER
from region_controller.handoff import AliveRequest
from region_controller.paging import DEFAULT_LIMIT, MAX_LIMIT

Auth = Literal["none", "lease", "publisher"]


class ProblemBody(Struct, frozen=True, rename={"kind": "type"}):
    """RFC 9457 problem details; `fix` says what to do next. Some problems carry further members."""

    kind: str
    title: str
    status: int
    detail: str
    fix: str = ""


class Parameter(Struct, frozen=True):
    """A query parameter, or a header; path parameters follow from the path. `bounds`: it is a number."""

    name: str
    description: str
    where: Literal["query", "header"] = "query"
    many: bool = False
    bounds: tuple[int, int] | None = None

    @property
    def schema(self) -> dict[str, Any]:
        if self.bounds is not None:
            return {"type": "integer", "minimum": self.bounds[0], "maximum": self.bounds[1]}
        one = {"type": "string"}
        return {"type": "array", "items": one} if self.many else one


class Operation(Struct, frozen=True, kw_only=True):
    """`name` is the operationId and the handler's key. `body`: JSON type, or `application/zip` for raw bytes.

    `answers`: status to type; `str` names a content type without a schema.
    """

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    answers: dict[int, Any]
    body: Any = None
    parameters: tuple[Parameter, ...] = ()
    auth: Auth = "none"
    problems: tuple[int, ...] = ()
    streams: bool = False

    @property
    def paged(self) -> bool:
        return set(PAGE) <= set(self.parameters)


PAGE = (
    Parameter("limit", f"how many at most; {DEFAULT_LIMIT} if absent", bounds=(1, MAX_LIMIT)),
    Parameter("cursor", "where the page begins; it stands in the `next` link of the page before"),
)
_RECORD = Parameter(RECORD_HEADER, "base64url of the signed envelope of the ServiceRecord", "header")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="start_instance",
        method="POST",
        path="/v1/instances",
        summary="Start a service, by id, name, digest or meaning. 201: started for this request; 200: it ran already. "
        "With `Accept: text/event-stream` progress is streamed, then one `result` or `problem` event.",
        body=StartRequest,
        answers={200: StartAnswer, 201: StartAnswer},
        problems=(400, 403, 404, 409, 413, 429, 502, 503, 504),
        streams=True,
    ),
    Operation(
        name="list_instances",
        method="GET",
        path="/v1/instances",
        summary="All instances of the region, and those it handed off, without their log lines.",
        answers={200: list[InstanceView]},
        parameters=PAGE,
        problems=(400,),
    ),
    Operation(
        name="get_instance",
        method="GET",
        path="/v1/instances/{instance}",
        summary="One instance, with its last log lines.",
        answers={200: InstanceView},
        problems=(404, 410),
    ),
    Operation(
        name="get_log",
        method="GET",
        path="/v1/instances/{instance}/log",
        summary="What the instance wrote last, oldest line first, wherever it runs.",
        answers={200: InstanceLog},
        parameters=(Parameter("lines", "how many at most; 100 if absent", bounds=(1, MAX_LOG_LINES)),),
        auth="lease",
        problems=(400, 401, 403, 404, 409, 410, 503),
    ),
    Operation(
        name="remove_instance",
        method="DELETE",
        path="/v1/instances/{instance}",
        summary="Stop and remove it. While others hold it, only the caller's lease ends.",
        answers={200: InstanceView},
        auth="lease",
        problems=(401, 403, 404, 409, 410, 503),
    ),
    Operation(
        name="stop_instance",
        method="POST",
        path="/v1/instances/{instance}/stop",
        summary="Stop it without removing it. While others hold it, only the caller's lease ends; `reason` says so.",
        answers={200: InstanceView},
        auth="lease",
        problems=(401, 403, 404, 409, 410, 503),
    ),
    Operation(
        name="restart_instance",
        method="POST",
        path="/v1/instances/{instance}/restart",
        summary="Start a stopped instance again, at the same address.",
        answers={200: InstanceView},
        auth="lease",
        problems=(401, 403, 404, 409, 410, 502, 503),
    ),
    Operation(
        name="keep_instance_alive",
        method="POST",
        path="/v1/instances/{instance}/alive",
        summary="It lives at least `alive_time` seconds from now. The body may be absent.",
        body=AliveRequest,
        answers={200: InstanceView},
        auth="lease",
        problems=(400, 401, 403, 404, 409, 410, 413, 503),
    ),
    Operation(
        name="invoke_instance",
        method="POST",
        path="/v1/instances/{instance}/invoke",
        summary="Call the service through its controller, for clients that cannot open its own address. The answer is "
        "the service's, with its status and the header `Cornerstore-Relayed`. At most 64 MiB each way.",
        body="application/octet-stream",
        answers={200: "application/octet-stream"},
        parameters=(Parameter("path", "of the service, percent-encoded, with its query; / if absent"),),
        auth="lease",
        problems=(400, 401, 403, 404, 409, 410, 413, 429, 502, 503, 504),
    ),
    Operation(
        name="search_services",
        method="GET",
        path="/v1/services",
        summary="Published services of the whole mesh: of publishers known here first, then newest first.",
        answers={200: list[ServiceView]},
        parameters=(
            Parameter("category", "subtree, such as /image"),
            Parameter("input", "a type that must be accepted", many=True),
            Parameter("output", "a type that must be produced", many=True),
            Parameter("id", "the service id"),
            Parameter("q", "words in id, name, description or category"),
            *PAGE,
        ),
        problems=(400, 503),
    ),
    Operation(
        name="publish_service",
        method="POST",
        path="/v1/services",
        summary="Publish a CSAR: the body is its bytes. Signed by the developer's key in the header, "
        "or, with the operator's token, by the site's; what another key published is then only kept and served.",
        body="application/zip",
        answers={201: ServiceView},
        parameters=(_RECORD,),
        auth="publisher",
        problems=(400, 401, 413, 422, 429, 507),
    ),
    Operation(
        name="get_service",
        method="GET",
        path="/v1/services/{digest}",
        summary="One published service.",
        answers={200: ServiceView},
        problems=(400, 404, 503),
    ),
    Operation(
        name="withdraw_service",
        method="DELETE",
        path="/v1/services/{digest}",
        summary="Withdraw it: a tombstone in the header, or the operator's token for what this site published.",
        answers={200: ServiceView},
        parameters=(_RECORD,),
        auth="publisher",
        problems=(400, 401, 403, 404, 422, 503),
    ),
    Operation(
        name="get_content",
        method="GET",
        path="/v1/content/{digest}",
        summary="The CSAR of a published service, fetched through the mesh if need be. "
        "With `Accept: text/event-stream`, how it comes to the controller: progress, then one `result` or `problem`.",
        answers={200: "application/zip"},
        streams=True,
        problems=(400, 404, 429, 502, 503, 504, 507),
    ),
    Operation(
        name="list_categories",
        method="GET",
        path="/v1/categories",
        summary="The category tree, with how many services each subtree holds; of a large one the 1,000 with the most.",
        answers={200: Category},
        parameters=(Parameter("category", "show the tree of this one; / if absent"),),
        problems=(400, 503),
    ),
    Operation(
        name="follow_events",
        method="GET",
        path="/v1/events",
        summary="What happens in the region, live (server-sent events): `snapshot` first (of a large region a part; "
        "the rest follows at once), then `agent`, `agent-lost`, "
        "`instance`, `started`. A listener that does not keep up is ended, and comes again.",
        answers={200: "text/event-stream"},
        problems=(429,),
    ),
    Operation(
        name="list_agents",
        method="GET",
        path="/v1/agents",
        summary="The agents of this region.",
        answers={200: list[AgentView]},
        parameters=PAGE,
        problems=(400,),
    ),
    Operation(
        name="list_regions",
        method="GET",
        path="/v1/regions",
        summary="This region, and those above, beside and below it.",
        answers={200: list[RegionView]},
        parameters=PAGE,
        problems=(400, 503),
    ),
    Operation(
        name="list_placements",
        method="GET",
        path="/v1/placements",
        summary="What became of the latest requests for services, and why, the latest first: at most 64, equal ones "
        "as one.",
        answers={200: list[PlacementView]},
    ),
    Operation(
        name="preview_placement",
        method="GET",
        path="/v1/placements/{service}",
        summary="Where the service (an id, a name or a digest) would be placed now, and why. Starts nothing.",
        answers={200: PlacementView},
        problems=(400, 404, 409, 503, 504),
    ),
    Operation(
        name="get_health",
        method="GET",
        path="/v1/healthz",
        summary="Whether this controller answers.",
        answers={200: Health},
    ),
    Operation(
        name="get_openapi",
        method="GET",
        path="/openapi.json",
        summary="This description.",
        answers={200: "application/json"},
    ),
)

NODE_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="get_metrics",
        method="GET",
        path="/metrics",
        summary="Counters in the Prometheus text format.",
        answers={200: "text/plain"},
    ),
    Operation(
        name="get_page",
        method="GET",
        path="/",
        summary="A page for people.",
        answers={200: "text/html"},
    ),
    Operation(
        name="get_page_part",
        method="GET",
        path="/page/{name}",
        summary="What that page consists of.",
        answers={200: "*/*"},
        problems=(404,),
    ),
)
"""What the node serves beside this package on the same listener."""


def describe_api(version: str, extra: Sequence[Operation] = NODE_OPERATIONS) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `OPERATIONS` and `extra`, as JSON types."""
    operations = (*OPERATIONS, *extra)
    types = [ProblemBody, *(t for o in operations for t in (o.body, *o.answers.values()) if _is_type(t))]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Cornerstore region controller", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the lease token of the instance, or the operator's token",
                }
            },
        },
    }


def _is_type(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, str)


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": schema_of[repr(ProblemBody)]}}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            **{str(s): _answer(s, kind, operation, schema_of) for s, kind in operation.answers.items()},
            **{str(s): {"description": _PROBLEMS[s], "content": problem} for s in operation.problems},
        },
    }
    if parameters := _parameters(operation):
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body is not AliveRequest,
            "content": _content(operation.body, schema_of),
        }
    if operation.auth == "lease":
        described["security"] = [{"bearer": []}]
    elif operation.auth == "publisher":
        described["security"] = [{"bearer": []}, {}]
    return described


def _answer(status: int, kind: Any, operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    content = _content(kind, schema_of)
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    described: dict[str, Any] = {"description": "Created" if status == 201 else "OK", "content": content}
    if operation.paged:
        described["headers"] = _PAGE_HEADERS
    return described


def _content(kind: Any, schema_of: dict[str, Any]) -> dict[str, Any]:
    return {kind: {}} if isinstance(kind, str) else {"application/json": {"schema": schema_of[repr(kind)]}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    described: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in in_path
    ]
    for parameter in operation.parameters:
        described.append(
            {
                "name": parameter.name,
                "in": parameter.where,
                "description": parameter.description,
                "schema": parameter.schema,
            }
        )
    return described


_PAGE_HEADERS = {
    "Link": {
        "description": 'the next page, if there is one: `<...>; rel="next"` (RFC 8288)',
        "schema": {"type": "string"},
    },
    TOTAL_HEADER: {"description": "how many there are on all pages, now", "schema": {"type": "integer"}},
}

_PROBLEMS = {
    400: "The request cannot be understood",
    401: "A key or a lease token is needed",
    403: "The key or token does not allow this, or nobody allows what the service asks for",
    404: "There is no such thing",
    409: "Ambiguous, or not in this state",
    410: "It has ended; `reason` says why",
    413: "Too much data",
    422: "The archive or record is not valid",
    429: "Too many requests at once",
    502: "The service itself failed: fetch, build or start",
    503: "Nobody can do it now; see Retry-After",
    504: "Not done within the time asked for",
    507: "No room left",
}
