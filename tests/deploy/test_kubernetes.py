"""The manifests: kustomize puts them together, the schemas of Kubernetes take them, and they keep the documented promises."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aggregator.web.server import OPEN
from tests.deploy import commands, dockerfile
from tests.integration import federation
from tests.support import adapters
from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
BIN = Path(sys.executable).parent
Manifests = dict[tuple[str, str], dict[str, Any]]
WORKLOADS = [("Deployment", "aggregator"), ("StatefulSet", "postgresql"), ("Job", "federation")]


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "kubectl", "kustomize", folder], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its files, made as the documentation says; the adapter is a test's."""
    folder = shutil.copytree(KUBERNETES, tmp_path_factory.mktemp("kubernetes") / "kubernetes") / "overlays" / "example"
    certs = folder.parent / "certs"
    made = federation.run_program("aggregator", "certificates", "--out", certs, "--host", "fed.example.org")
    assert made.returncode == 0, made.stderr
    for name in ("ca.pem", "aggregator.pem", "aggregator.key"):
        shutil.copy(certs / name, folder / "secrets")
    adapters.adapter().write(folder / "secrets" / "v0.safetensors")
    (folder / "secrets" / "database-password").write_text("of this test")
    return folder


@pytest.fixture(scope="module")
def rendered(overlay: Path) -> str:
    done = kustomize(overlay)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifests(rendered: str) -> Manifests:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(rendered)}


def pod(manifests: Manifests, workload: tuple[str, str]) -> Any:
    return manifests[workload]["spec"]["template"]["spec"]


def test_the_schemas_of_kubernetes_take_the_example_strictly(rendered: str, tmp_path: Path) -> None:
    (tmp_path / "rendered.yaml").write_text(rendered)
    command = [BIN / "kubernetes-validate", "--strict", tmp_path / "rendered.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert (done.stdout + done.stderr).count(" passed for resource ") == len(list(yaml.safe_load_all(rendered))) == 15


def test_without_its_secrets_there_is_nothing_to_apply() -> None:
    assert [path.name for path in (KUBERNETES / "overlays" / "example" / "secrets").iterdir()] == [".gitignore"]
    done = kustomize(KUBERNETES / "overlays" / "example")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "secrets/v0.safetensors" in done.stderr


def test_the_key_of_the_authority_goes_nowhere(manifests: Manifests) -> None:
    assert set(manifests["Secret", "med-duallora-aggregator-tls"]["data"]) == {
        "ca.pem",
        "aggregator.pem",
        "aggregator.key",
    }


def test_two_replicas_spread_over_machines_of_which_one_may_be_taken_away(manifests: Manifests) -> None:
    deployment, budget = (
        manifests["Deployment", "aggregator"]["spec"],
        manifests["PodDisruptionBudget", "aggregator"]["spec"],
    )
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {"type": "Recreate"}, "an older release would go on with a migrated store"
    assert budget["maxUnavailable"] == 1
    labels = deployment["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert all(one["labelSelector"]["matchLabels"].items() <= labels.items() for one in spread)


def test_probes_ask_what_is_open_over_https_where_the_page_is_served(manifests: Manifests) -> None:
    (container,) = pod(manifests, ("Deployment", "aggregator"))["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    asked = {kind: container[kind]["httpGet"] for kind in ("readinessProbe", "livenessProbe")}
    assert {one["path"] for one in asked.values()} == OPEN
    assert asked["readinessProbe"]["path"] == "/readyz"
    assert {(one["scheme"], ports[one["port"]]) for one in asked.values()} == {("HTTPS", 8080)}
    serving = commands.parsed(["aggregator", *container["args"]])
    assert (serving["listen"], serving["http"]) == (f"0.0.0.0:{ports['grpc']}", f"0.0.0.0:{ports['https']}")
    assert serving["grace_s"] + 10 < pod(manifests, ("Deployment", "aggregator"))["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda pair: pair[0])
def test_pods_meet_the_restricted_standard_on_a_read_only_root(manifests: Manifests, workload: tuple[str, str]) -> None:
    spec = pod(manifests, workload)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} == set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
    assert manifests["Namespace", "hearts"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_run_as_the_images_user(manifests: Manifests) -> None:
    (user,) = (
        one.text for one in dockerfile.instructions(dockerfile.FOLDER / "aggregator.Dockerfile") if one.name == "USER"
    )
    for workload in (("Deployment", "aggregator"), ("Job", "federation")):
        context = pod(manifests, workload)["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_the_network_lets_in_two_ports_and_out_to_the_database_and_names(manifests: Manifests) -> None:
    def ports(rule: Any) -> set[int]:
        return {one["port"] for one in rule["ports"]}

    policy = manifests["NetworkPolicy", "aggregator"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [ports(rule) for rule in policy["ingress"]] == [{50051, 8080}]
    to_database, to_names = policy["egress"]
    assert (ports(to_database), ports(to_names)) == ({5432}, {53})
    assert to_names["to"] == [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]
    (target,) = (peer["podSelector"]["matchLabels"] for peer in to_database["to"])
    assert target.items() <= manifests["StatefulSet", "postgresql"]["spec"]["template"]["metadata"]["labels"].items()
    database = manifests["NetworkPolicy", "postgresql"]["spec"]
    assert database["egress"] == []
    (let_in,) = (peer["podSelector"]["matchLabels"] for rule in database["ingress"] for peer in rule["from"])
    for workload in (("Deployment", "aggregator"), ("Job", "federation")):
        assert let_in.items() <= manifests[workload]["spec"]["template"]["metadata"]["labels"].items()


def test_every_pod_is_under_a_policy_and_every_service_has_pods(manifests: Manifests) -> None:
    labels = {workload: manifests[workload]["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS}
    policies = [one["spec"] for (kind, _), one in manifests.items() if kind == "NetworkPolicy"]
    for found in labels.values():
        assert [p for p in policies if p["podSelector"]["matchLabels"].items() <= found.items()]
    for (kind, name), one in manifests.items():
        if kind == "Service":
            assert [found for found in labels.values() if one["spec"]["selector"].items() <= found.items()], name


def test_what_pods_refer_to_is_there(manifests: Manifests) -> None:
    for workload in WORKLOADS:
        spec = pod(manifests, workload)
        for volume in spec.get("volumes", []):
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in manifests
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in manifests
        for container in spec["containers"]:
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    key = variable["valueFrom"]["secretKeyRef"]
                    assert key["key"] in manifests["Secret", key["name"]]["data"]
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in manifests


@pytest.mark.integration
def test_the_job_makes_the_federation_once_leaves_it_the_next_time_and_refuses_another(
    manifests: Manifests, overlay: Path, postgres: PostgresServer
) -> None:
    (container,) = pod(manifests, ("Job", "federation"))["containers"]
    (script,) = container["args"]
    with postgres.database() as url:
        environment = {
            **os.environ,
            **manifests["ConfigMap", "med-duallora-federation"]["data"],
            "STORE": url,
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        command = [*container["command"], script.replace("/adapter/", f"{overlay}/secrets/")]
        for rounds, code, said in (
            ("20", 0, "federation hearts: 3 sites, 20 rounds"),
            ("20", 0, "holds federation 'hearts' already"),
            ("30", 3, "rounds: 20 there, 30 asked for"),
        ):
            environment["ROUNDS"] = rounds
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert said in done.stdout + done.stderr
