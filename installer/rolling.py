"""Web containers are replaced a few at a time: the new ones answer before as many old ones drain, so somebody always answers.

Compose itself would end all of them at once. What does not become healthy is taken away again, and the old ones go on.
"""

import json
import math
import time
from collections.abc import Callable

import docker
from docker.errors import NotFound
from docker.models.containers import Container

from installer.program import Failed

SERVICE = "com.docker.compose.service"
PROJECT = "com.docker.compose.project"
CONFIG_HASH = "com.docker.compose.config-hash"
WEB = "web"
BATCHES = 4  # a quarter of the web containers at a time
HEALTHY_TIMEOUT_S = 300
DRAIN_S = 40  # as `stop_grace_period` of web in compose.yaml
DOOR_LOOKS_S = 5.0  # by then the door has found who is new
POLL_S = 0.5

Compose = Callable[..., str]  # its words; what it said


def containers(client: docker.DockerClient, project: str, service: str = "") -> list[Container]:
    """Those of a project, ended ones too, the oldest first."""
    labels = [f"{PROJECT}={project}", *([f"{SERVICE}={service}"] if service else [])]
    found = client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
    return sorted(found, key=lambda one: str(one.attrs["Created"]))


def replace_web(client: docker.DockerClient, project: str, compose: Compose) -> None:
    """Until all are as compose.yaml has them now; nothing where they are. Raises `Failed`; then the old ones still answer."""
    web = json.loads(compose("config", "--format", "json"))["services"][WEB]
    config_hash = compose("config", "--hash", WEB).split()[-1]
    image_id = client.images.get(web["image"]).id
    old: list[Container] = []
    new: list[Container] = []
    for one in containers(client, project, WEB):
        is_new = one.labels.get(CONFIG_HASH) == config_hash and one.attrs["Image"] == image_id
        (new if is_new else old).append(one)
    count = int(web["scale"])
    while old:
        batch = min(math.ceil(count / BATCHES), max(count - len(new), 0))
        if batch:
            before = {one.id for one in (*old, *new)}
            compose("up", "--detach", "--no-build", "--no-recreate", "--scale", f"{WEB}={len(before) + batch}", WEB)
            made = [one for one in containers(client, project, WEB) if one.id not in before]
            _wait_healthy(made)
            new += made
            time.sleep(DOOR_LOOKS_S)
        while len(old) > max(count - len(new), 0):
            _take_away(old.pop(0))


def _wait_healthy(made: list[Container]) -> None:
    until = time.monotonic() + HEALTHY_TIMEOUT_S
    while True:
        for one in made:
            one.reload()
        if all(one.health == "healthy" for one in made):
            return
        ill = [one for one in made if one.status in ("exited", "dead", "restarting") or one.health == "unhealthy"]
        if ill or time.monotonic() > until:
            one = (ill or made)[0]
            words = one.logs(tail=3).decode(errors="replace").strip()
            for each in made:
                _take_away(each)
            raise Failed(f"a new web container does not become ready ({one.status}, {one.health}); the ones before it go on\n{words}")
        time.sleep(POLL_S)


def _take_away(one: Container) -> None:
    try:
        one.stop(timeout=DRAIN_S)
        one.remove()
    except NotFound:  # somebody else did
        pass
