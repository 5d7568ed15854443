"""What `piggybank phase apply N` prints in a pod: each of its commands renders, in order, and the last one is the phase."""

import shlex

import pytest
from click.testing import CliRunner

from piggybank import settings as settings_file
from piggybank.appliance import change
from piggybank.capacity import helm, phases
from piggybank.cli import main
from piggybank.settings import Settings
from tests.conftest import environment, run_apart
from tests.helm.rendering import NAMESPACE, RELEASE, Values, documents, from_set, merge, one, rendered

HERE = helm.Release.of(RELEASE, NAMESPACE, "postgresql://a:b@bank-piggybank-postgres-rw:5432/piggybank")
PAIRS = [(current, target) for current in phases.BUILT_PHASES for target in phases.BUILT_PHASES if current != target]


@pytest.mark.parametrize(("current", "target"), PAIRS)
def test_every_step_renders_and_the_last_is_the_phase(current: int, target: int) -> None:
    before, after = phases.of(current), phases.of(target)
    values: Values = {"phase": current}
    instances: list[int] = []
    waits: list[bool] = []
    for command in helm.commands(HERE, before, after):
        words = shlex.split(command)
        if words[0] == "kubectl":
            assert f"--for=jsonpath={{.status.readyInstances}}={instances[-1]}" in words
            assert words[-1].endswith(one(documents(values), "Cluster", "-postgres")["metadata"]["name"])
            continue
        assert words[:5] == ["helm", "-n", NAMESPACE, "upgrade", RELEASE]
        merge(values, from_set(words[words.index("--set") + 1]))
        found = documents(values)
        cluster = one(found, "Cluster", "-postgres")["spec"]
        instances.append(cluster["instances"])
        web = one(found, "Deployment", "-web")["spec"]["template"]["spec"]["containers"][0]["env"]
        needs = int(next(each["value"] for each in web if each["name"] == "PIGGYBANK_PHASE")) >= settings_file.REPLICATED_PHASE
        waits.append("synchronous" in cluster["postgresql"])
        assert waits[-1] or not needs, "pods that wait for a standby have one"
    assert instances[-1] == 1 + after.replicas
    assert rendered(values) == rendered({"phase": target}), "and nothing is left of the way"
    if after.replicas > before.replicas:
        assert (instances[0], waits[0]) == (1 + after.replicas, False), "they are made before anybody waits for them"
    if after.replicas < before.replicas:
        assert (instances[0], waits[0]) == (1 + before.replicas, True), "and go after nobody does"


def test_a_database_elsewhere_is_not_waited_for() -> None:
    release = helm.Release.of(RELEASE, NAMESPACE, "postgresql://a:b@bank.rds.amazonaws.com/piggybank")
    [command] = helm.commands(release, phases.of(0), phases.of(2))
    assert command.endswith(" --set phase=2")


def test_a_pod_says_where_passwords_are_changed(settings: Settings) -> None:
    said = CliRunner().invoke(main, ["secrets", "rotate"], env=environment(settings) | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert said.exit_code == 1
    assert "helm starts the stores here, and has their passwords; change them there" in said.stderr


def test_the_pod_knows_its_release(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    web = one(documents({}), "Deployment", "-web")["spec"]["template"]["spec"]["containers"][0]["env"]
    own = {each["name"]: each["value"] for each in web if each["name"].startswith("HELM_")}
    given = environment(settings) | own | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    made = run_apart(lambda: change.plan(settings_file.load(), 1))
    assert made.target == "helm"
    assert made.command.startswith(f"helm -n {NAMESPACE} upgrade {RELEASE} deploy/helm/piggybank ")
    assert made.command.endswith(" --set phase=1")
