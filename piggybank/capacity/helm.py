"""The commands that take a Helm release from one phase to another.

`--set phase=N` alone does it, and nothing is lost. But a commit that waits for a standby waits until the first one has copied the
database, and a standby that goes before the pods know it leaves their writes without one; so standbys are made before the phase that
needs them, and go after it. Disks grow only, which the chart sees to.
"""

from urllib.parse import urlsplit

from msgspec import Struct

from piggybank.capacity.phases import Phase

CHART = "deploy/helm/piggybank"
COPY_TIMEOUT = "24h"  # a standby copies the database
UPGRADE_TIMEOUT = "30m"


class Release(Struct, frozen=True, kw_only=True):
    """`cluster`: PostgreSQL as CloudNativePG's object; empty: it is elsewhere."""

    name: str
    namespace: str
    cluster: str

    @classmethod
    def of(cls, name: str, namespace: str, database_url: str) -> "Release":
        """The operator's Service for writes is the cluster's name and `-rw`."""
        host = urlsplit(database_url).hostname or ""
        return cls(name=name, namespace=namespace, cluster=host.removesuffix("-rw") if host.endswith("-rw") else "")


def commands(release: Release, current: Phase, target: Phase) -> list[str]:
    """What to type, a line each."""
    upgrade = f"helm -n {release.namespace} upgrade {release.name} {CHART} --reset-then-reuse-values --wait --timeout {UPGRADE_TIMEOUT}"
    if not release.cluster:
        return [f"{upgrade} --set phase={target.number}"]
    cluster = f"cluster.postgresql.cnpg.io/{release.cluster}"
    if target.replicas > current.replicas:
        ready = f"--for=jsonpath='{{.status.readyInstances}}'={1 + target.replicas}"
        return [
            f"{upgrade} --set postgres.instances={1 + target.replicas}",
            f"kubectl -n {release.namespace} wait {ready} --timeout={COPY_TIMEOUT} {cluster}",
            f"{upgrade} --set phase={target.number},postgres.instances=null",
        ]
    sets = f"phase={target.number}"
    if target.replicas < current.replicas:
        return [
            f"{upgrade} --set {sets},postgres.instances={1 + current.replicas},postgres.synchronous=true",
            f"{upgrade} --set postgres.instances=null,postgres.synchronous=null",
        ]
    return [f"{upgrade} --set {sets}"]
