"""What lies in serve/: every file judged by its own tool, and held against the code it deploys."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML
from support import vllm_forms as forms
from support.places import ROOT

import install
from llm_lora.schema.answer import Reason, Verdict
from llm_lora.serving.layer.metrics import Metrics

SERVE = ROOT / "serve"
DOCKERFILES = sorted(SERVE.glob("Dockerfile.*"))
COMPOSE = sorted(SERVE.glob("compose*.yaml"))
MANIFESTS = sorted((SERVE / "kubernetes").glob("*/*.yaml"))
DASHBOARDS = sorted(SERVE.glob("grafana/dashboards/*.json"))
SCRIPTS = Path(sys.executable).parent


def documents(path: Path) -> list[Any]:
    """All YAML documents of a file; a key that stands twice is an error."""
    return list(YAML(typ="safe").load_all(path.read_text()))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT
    )


def name(path: Path) -> str:
    return str(path.relative_to(SERVE))


# Dockerfiles


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their arguments, in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_hadolint_finds_nothing_in_a_dockerfile(path: Path) -> None:
    done = run(SCRIPTS / "hadolint", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python:latest\nRUN cd /tmp && apt-get install curl\n")
    done = run(SCRIPTS / "hadolint", path)
    assert done.returncode == 1 and "DL3007" in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_an_image_runs_without_rights_or_secrets_and_can_be_asked_how_it_is(path: Path) -> None:
    final = instructions(path)
    final = final[max(i for i, (word, _) in enumerate(final) if word == "FROM") :]
    [user] = [rest for word, rest in final if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that runAsNonRoot can check it"
    assert [rest for word, rest in final if word == "HEALTHCHECK" and "/health" in rest]
    assert [rest for word, rest in final if word == "ENTRYPOINT"] == ['["llm-lora"]']
    for word, rest in instructions(path):
        if word in ("ENV", "ARG"):
            assert not re.search(r"(?i)(key|token|secret|password)\w*\s*=", rest), rest


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_an_image_is_installed_from_the_lock_as_every_machine_is(path: Path) -> None:
    kind = path.suffix[1:]
    text = path.read_text()
    assert f"--no-deps -r /build/requirements/{kind}.txt" in text
    assert install.UV in text
    assert (install.TORCH in text) == (kind == "cpu"), "the CUDA lock names torch itself"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(fnmatch(source, f"{one}*") for one in sent), f"{source} is not sent"


def test_images_come_pinned_from_the_public_default_registry() -> None:
    images = [rest.split()[0] for path in DOCKERFILES for word, rest in instructions(path)
              if word == "FROM"]  # fmt: skip
    for path in COMPOSE:
        for service in documents(path)[0]["services"].values():
            images += [service["image"]] if "build" not in service else []
    assert len(images) == 6
    for image in images:
        repository, _, tag = image.partition(":")
        # The first part of a name is a registry's host if it holds a dot or a port.
        assert "." not in repository.split("/")[0] and re.search(r"\d+\.\d+", tag), image


# Compose


@pytest.mark.parametrize("path", COMPOSE, ids=name)
def test_a_compose_file_fits_the_compose_specification(path: Path) -> None:
    done = run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_check_would_find_something(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text("services:\n  server:\n    image: a\n    prots: ['1:1']\n")
    done = run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert done.returncode == 1 and "prots" in done.stdout


def test_compose_opens_nothing_to_the_network_and_holds_no_secret() -> None:
    [compose] = documents(SERVE / "compose.yaml")
    for label, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), label
        assert service["cap_drop"] == ["ALL"], label
        assert service["security_opt"] == ["no-new-privileges:true"], label
        for key, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD", key):
                assert re.sub(r"\$\{\w+:\?[^}]*\}", "", value) in ("", ","), f"{label}: {key}"


def test_compose_mounts_what_there_is_into_volumes_that_are_declared() -> None:
    [compose] = documents(SERVE / "compose.yaml")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (SERVE / source).exists(), source
            else:
                assert source in compose["volumes"], source
        assert set(service.get("secrets", [])) <= set(compose["secrets"])


def test_prometheus_asks_the_server_that_compose_starts() -> None:
    [prometheus] = documents(SERVE / "prometheus.yml")
    [compose] = documents(SERVE / "compose.yaml")
    [job] = prometheus["scrape_configs"]
    [target] = [target for group in job["static_configs"] for target in group["targets"]]
    host, _, port = target.partition(":")
    command = compose["services"][host]["command"]
    assert command[command.index("--port") + 1] == port
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in compose["services"]["prometheus"]["secrets"]
    [sources] = documents(SERVE / "grafana/provisioning/datasources/prometheus.yaml")
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]


# Dashboard


def shown(path: Path) -> list[str]:
    """The expressions of a dashboard."""
    board = json.loads(path.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def given() -> dict[str, set[str]]:
    """Every figure that the layer gives, with its labels, once there is something to count."""
    metrics = Metrics()
    reason = Reason("a", "type", "expected a number")
    metrics.count(
        forms.exchange(
            verdict=Verdict("invalid", (reason,)), outcome="invalid", first_token=1.0, retried=True
        )
    )
    metrics.refused(404)
    metrics.load(1.0)
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_every_figure_of_a_dashboard_is_one_that_the_server_gives(path: Path) -> None:
    known, used = given(), set()
    for expression in shown(path):
        assert expression.count("(") == expression.count(")")
        for metric, labels in re.findall(r"\b(llm_lora_\w+)(?:\{([^}]*)\})?", expression):
            assert metric in known, f"{metric} in {expression}"
            used.add(metric)
            asked = set(re.findall(r"(\w+)(?:=~|!~|=|!=)", labels))
            for group in re.findall(r"by \(([^)]*)\)", expression):
                asked |= set(group.split(", "))
            assert asked <= known[metric], f"{metric} has no labels {asked - known[metric]}"
    ending = re.compile("_(total|bucket|count|sum|created)$")
    seen, there = ({ending.sub("", one) for one in names} for names in (used, known))
    assert seen == there, "a figure that nobody sees"


@pytest.mark.parametrize("path", DASHBOARDS, ids=name)
def test_a_dashboard_names_vllms_own_figures_as_vllm_does(path: Path) -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    source = Path(found.submodule_search_locations[0]) / "v1/metrics/loggers.py"
    names = {one for expression in shown(path) for one in re.findall(r"vllm:\w+", expression)}
    assert names and all(f'"{one}"' in source.read_text() for one in names)


# Kubernetes


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.name != "kustomization.yaml"], ids=name
)
def test_a_manifest_fits_the_schemas_of_kubernetes(path: Path) -> None:
    done = run(SCRIPTS / "kubernetes-validate", "--strict", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kubernetes_check_would_find_something(tmp_path: Path) -> None:
    path = tmp_path / "deployment.yaml"
    text = (SERVE / "kubernetes/base/deployment.yaml").read_text()
    path.write_text(text.replace("readOnlyRootFilesystem", "readonlyRootFilesystem"))
    done = run(SCRIPTS / "kubernetes-validate", "--strict", path)
    assert done.returncode == 1 and "readonlyRootFilesystem" in done.stdout + done.stderr


def workload() -> Any:
    [deployment] = documents(SERVE / "kubernetes/base/deployment.yaml")
    return deployment["spec"]


def test_a_pod_is_started_watched_and_replaced_without_losing_requests() -> None:
    spec = workload()
    [container] = spec["template"]["spec"]["containers"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"]
              for kind in ("startup", "readiness", "liveness")}  # fmt: skip
    assert probes == {"startup": "/health", "readiness": "/ready", "liveness": "/health"}
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "preStop" in container["lifecycle"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_a_pod_has_no_rights_and_gets_its_keys_from_a_secret() -> None:
    pod = workload()["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    for one in container["env"]:
        assert "value" not in one and one["valueFrom"]["secretKeyRef"]["name"]
    kinds = {document["kind"] for path in MANIFESTS for document in documents(path)}
    assert "Secret" not in kinds, "a secret is made on the cluster, never committed"
    users = {rest for path in DOCKERFILES for word, rest in instructions(path) if word == "USER"}
    run_as = pod["securityContext"]
    assert users == {f"{run_as['runAsUser']}:{run_as['runAsGroup']}"}


def test_a_pod_can_write_where_the_image_writes_and_all_volumes_are_there() -> None:
    pod = workload()["template"]["spec"]
    [container] = pod["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for path in DOCKERFILES:
        [volumes] = [json.loads(rest) for word, rest in instructions(path) if word == "VOLUME"]
        assert set(volumes) <= mounted.keys()
    assert sorted(mounted.values()) == sorted(volume["name"] for volume in pod["volumes"])
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]
              if "persistentVolumeClaim" in volume}  # fmt: skip
    made = {claim["metadata"]["name"]
            for claim in documents(SERVE / "kubernetes/base/volumes.yaml")}  # fmt: skip
    assert claims == made


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_kustomize_builds_an_overlay(overlay: str, tmp_path: Path) -> None:
    built = run("kubectl", "kustomize", SERVE / "kubernetes" / overlay)
    assert built.returncode == 0, built.stderr
    path = tmp_path / "built.yaml"
    path.write_text(built.stdout)
    done = run(SCRIPTS / "kubernetes-validate", "--strict", path)
    assert done.returncode == 0, done.stdout + done.stderr
    by_kind = {document["kind"]: document for document in documents(path)}
    [container] = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"llm-lora:{overlay}"
    assert (
        container["envFrom"][0]["configMapRef"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]
    )
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "cuda")


# All


@pytest.mark.parametrize("path", sorted(SERVE.rglob("*.y*ml")), ids=name)
def test_every_yaml_file_parses(path: Path) -> None:
    assert all(document is not None for document in documents(path))


def test_nothing_is_deployed_that_no_test_looks_at() -> None:
    looked_at = {*DOCKERFILES, *COMPOSE, *MANIFESTS, *DASHBOARDS, SERVE / "README.md"}
    others = {name(path) for path in SERVE.rglob("*") if path.is_file()} - set(map(name, looked_at))
    assert others == {
        "prometheus.yml",
        "grafana/provisioning/dashboards/llm-lora.yaml",
        "grafana/provisioning/datasources/prometheus.yaml",
    }
