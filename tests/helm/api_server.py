"""What Helm's `lookup` asks: as much of Kubernetes' API as finds an object by its kind and name."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import helm_python as helm

from deploy.helm.sync import CHART
from tests.helm.rendering import NAMESPACE, RELEASE, Document, Values

# Each kind that the chart looks up: where it is found, by API version and plural
PLURALS = {("apps/v1", "Deployment"): "deployments", ("postgresql.cnpg.io/v1", "Cluster"): "clusters"}
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "here", "cluster": {"server": ""}}],
    "users": [{"name": "me", "user": {}}],
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    "current-context": "here",
}


@contextmanager
def serving(*objects: Document, plurals: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """An API server that knows these kinds, and has these objects; its kubeconfig."""
    answers: dict[str, Any] = {}
    for (version, kind), plural in plurals.items():
        resource = {"name": plural, "kind": kind, "namespaced": True, "verbs": ["get"]}
        answers[f"/apis/{version}"] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [resource]}
    for each in objects:
        plural = plurals[each["apiVersion"], each["kind"]]
        answers[f"/apis/{each['apiVersion']}/namespaces/{NAMESPACE}/{plural}/{each['metadata']['name']}"] = each

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or missing).encode())

        def log_message(self, *_: object) -> None:
            """Not on the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})  # seconds
    thread.start()
    try:
        yield json.dumps(KUBECONFIG | {"clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def upgraded(values: Values, *there: Document, first: bool = False, plurals: Mapping[tuple[str, str], str] = PLURALS) -> dict[str, str]:
    """Each template's text, as an upgrade renders it where these objects run; `first`: as an install does."""
    with (
        serving(*there, plurals=plurals) as kubeconfig,
        helm.Config(kubeconfig_content=kubeconfig, namespace=NAMESPACE) as config,
        helm.Chart.load(CHART) as chart,
    ):
        return config.render(chart, values, name=RELEASE, namespace=NAMESPACE, is_install=first, is_upgrade=not first)
