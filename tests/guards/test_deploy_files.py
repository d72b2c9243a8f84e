"""What `infra/deploy/` names exists, and agrees from file to file: no container is started here to find out."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import msgspec
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_valid_setting_names
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.scripts.scripts import cli as ray_cli

from infra.cluster import OBJECT_STORE_BYTES
from pipelines.build.request import BuildRequest
from pipelines.cli import main
from pipelines.geotag.geotag import GeotagRequest
from schemas.errors import CatalogError
from tests.conftest import PROJECT

DEPLOY = PROJECT / "infra" / "deploy"

OF_IMAGES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
"""Variables that only the programs of other images read."""


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


COMPOSE = read_yaml("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLUSTER = read_yaml("raycluster.yaml")
JOB = read_yaml("rayjob.yaml")
DEPLOYMENTS = {one["name"]: one for one in read_yaml("prefect.yaml")["deployments"]}
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
EXAMPLE_ENV = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", (DEPLOY / "example.env").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Its instructions."""
    copy = tmp_path_factory.mktemp("dockerfile") / "Dockerfile"  # the parser opens its file for writing
    copy.write_text((DEPLOY / "Dockerfile").read_text())
    return [one for one in DockerfileParser(str(copy)).structure if one["instruction"] != "COMMENT"]


def stages(dockerfile: list[dict[str, str]]) -> list[str]:
    return [one["value"].split(" AS ")[1] for one in dockerfile if one["instruction"] == "FROM"]


def copied(dockerfile: list[dict[str, str]]) -> list[str]:
    """Name what is copied from the project."""
    lines = [shlex.split(one["value"]) for one in dockerfile if one["instruction"] == "COPY"]
    return [source for line in lines if not line[0].startswith("--from") for source in line[:-1]]


def commands() -> Iterator[list[str]]:
    """Every program that a service of ours starts, with its options."""
    for service in (one for one in SERVICES.values() if one["image"].startswith("folio")):
        for command in (service["command"], service.get("healthcheck", {}).get("test", ["CMD"])[1:]):
            if command[:2] == ["sh", "-c"]:
                yield from (shlex.split(part.replace("exec ", "")) for part in command[2].split("&&"))
            elif command:
                yield command
    yield shlex.split(JOB["spec"]["entrypoint"])


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_compose_file_is_one(name: str):
    services = compose_spec.PyCompose.from_json(json.dumps(read_yaml(name))).service_names()

    assert set(services) == read_yaml(name)["services"].keys()
    with pytest.raises(ValueError, match="enviroment"):  # so it would find a slip of the pen
        compose_spec.PyCompose.from_json(json.dumps({"services": {"s3": {"image": "s3", "enviroment": {}}}}))


def test_services_wait_for_and_store_in_what_there_is(dockerfile: list[dict[str, str]]):
    made = " ".join(one["value"] for one in dockerfile if one["instruction"] == "RUN").split()
    for service in SERVICES.values():
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
            assert volume.split(":")[1] in made or "build" not in service, "else the image's user could not write there"
    assert read_yaml("compose.gpu.yaml")["services"].keys() <= SERVICES.keys()


def test_images_are_stages_of_the_dockerfile(dockerfile: list[dict[str, str]]):
    built = [*SERVICES.values(), *read_yaml("compose.gpu.yaml")["services"].values()]
    ours = {(one["image"], one["build"]["target"]) for one in built if "build" in one}

    assert ours == {("folio:cpu", "cpu"), ("folio:gpu", "gpu")}
    assert stages(dockerfile) == ["wheel", "base", "cpu", "gpu"]
    assert all((DEPLOY / one["build"]["context"] / one["build"]["dockerfile"]).exists() for one in built if "build" in one)
    in_pods = {container["image"] for group in GROUPS for container in group["template"]["spec"]["containers"]}
    assert in_pods == {"folio:cpu", "folio:gpu"}
    others = [one["image"] for one in SERVICES.values() if "build" not in one]
    assert all(re.fullmatch(r"[a-z/]+:\d+(\.\d+)*(-alpine)?", image) for image in others), "a fixed version each"


def test_the_dockerfile_copies_what_there_is_and_its_context_has_it(dockerfile: list[dict[str, str]]):
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    for secrets in ("infra/deploy/Dockerfile.dockerignore", ".gitignore"):
        assert "infra/deploy/.env" in (PROJECT / secrets).read_text().splitlines()
    for source in copied(dockerfile):
        assert (PROJECT / source).exists()
        assert source.split("/")[0] in allowed
    assert {source.split("/")[0] for source in copied(dockerfile)} == allowed
    include = [pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert set(include) <= set(copied(dockerfile)), "every package is in the wheel"


def test_the_dockerfile_installs_extras_that_there_are_on_a_python_that_will_do(dockerfile: list[dict[str, str]]):
    extras = PYPROJECT["project"]["optional-dependencies"]
    installed = [re.findall(r"\.whl\)\[([a-z,]+)\]", one["value"]) for one in dockerfile if one["instruction"] == "RUN"]

    assert [name for (names,) in filter(None, installed) for name in names.split(",")] == ["cpu", "cluster", "gpu", "cluster"]
    assert {"cpu", "gpu", "cluster"} <= extras.keys()
    (python,) = (one["value"] for one in dockerfile if one["instruction"] == "ARG")
    assert PYPROJECT["project"]["requires-python"] == f">={python.removeprefix('PYTHON=')}"


def test_what_is_started_is_installed_and_its_options_exist(dockerfile: list[dict[str, str]]):
    scripts = {one.name for one in entry_points(group="console_scripts")}
    begun = [json.loads(one["value"]) for one in dockerfile if one["instruction"] == "CMD"]
    assert begun == [["folio", "--help"]] * 2
    installed = next(one["value"] for one in dockerfile if one["instruction"] == "RUN" and "apt-get" in one["value"])

    for program, *arguments in commands():
        assert program in scripts | {"python"} or f" {program} " in installed
        if program == "ray":
            ray_cli.commands[arguments[0]].make_context("ray", arguments[1:])
        elif program == "folio":
            main.commands[arguments[0]].make_context("folio", arguments[1:])
        elif program == "python":
            ast.parse(arguments[1])
    # Those of prefect are run by tests/end_to_end/test_deployments.py.


def test_ray_is_started_alike_everywhere():
    nodes = [command for command in commands() if command[:2] == ["ray", "start"]]

    assert len(nodes) == 3
    for command in nodes:
        assert f"--object-store-memory={OBJECT_STORE_BYTES}" in command
        assert {"--port=6379", "--address=ray-head:6379"} & set(command)
    assert SERVICES["prefect-worker"]["environment"]["RAY_ADDRESS"] == "ray-head:6379"
    assert {group["rayStartParams"]["object-store-memory"] for group in GROUPS} == {str(OBJECT_STORE_BYTES)}
    pinned = re.search(r"^ray==(.*)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert CLUSTER["spec"]["rayVersion"] == pinned[1] == distribution("ray").version


def test_ports_agree():
    server, store = SERVICES["prefect-server"], SERVICES["s3"]

    assert server["command"][-2:] == ["--port", "4200"]
    assert server["ports"] == ["127.0.0.1:4200:4200"]
    assert SERVICES["deploy"]["environment"]["PREFECT_API_URL"] == "http://prefect-server:4200/api"
    assert server["environment"]["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4200/api"
    assert "-s3.port=8333" in store["command"]
    assert store["ports"] == ["127.0.0.1:8333:8333"]
    assert SERVICES["ray-worker"]["environment"]["AWS_ENDPOINT_URL_S3"] == "http://s3:8333"
    assert server["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith("@postgres:5432/prefect")
    ports = {port["name"]: port["containerPort"] for port in GROUPS[0]["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs": 6379, "dashboard": 8265}
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published), "nobody else can reach them"


def variables(dockerfile: list[dict[str, str]]) -> set[str]:
    """Name every environment variable that these files set."""
    found = {name for service in SERVICES.values() for name in service.get("environment", ())}
    for group in GROUPS:
        for container in group["template"]["spec"]["containers"]:
            found |= {variable["name"] for variable in container["env"]}
    for one in dockerfile:
        if one["instruction"] == "ENV":
            found |= {part.split("=")[0] for part in shlex.split(one["value"])}
    return found


def test_every_variable_is_read_by_somebody(dockerfile: list[dict[str, str]]):
    settings = (PROJECT / "infra" / "settings.py").read_text()
    placeholders = set(re.findall(r"\{\{ \$(\w+) \}\}", (DEPLOY / "prefect.yaml").read_text()))
    of_prefect = _get_valid_setting_names(PrefectSettings)
    libraries = "".join(
        path.read_text(errors="ignore")
        for name, parts in {
            "botocore": ("botocore",),
            "ray": ("ray/_private", "ray/_common"),
            "prefect": ("prefect/_internal",),
        }.items()
        for part in parts
        for path in Path(str(distribution(name).locate_file(part))).rglob("*.py")
    )

    for name in variables(dockerfile) - OF_IMAGES - placeholders:
        if name.startswith("PREFECT_"):
            assert name in of_prefect, name
        else:
            assert f'"{name}"' in settings or re.search(rf"\b{name}\b", libraries), name


def test_the_example_names_exactly_the_variables_that_are_asked_for():
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    needed = set(re.findall(r"\$\{(\w+):\?", text))

    assert EXAMPLE_ENV.keys() == asked
    assert {name for name, value in EXAMPLE_ENV.items() if not value} == needed | {"FOLIO_THREADS"}, "secrets are left to fill in"
    for name, default in re.findall(r"\$\{(\w+):-([^}]+)\}", text):
        assert EXAMPLE_ENV[name] == default


def test_there_are_three_deployments_and_each_is_a_flow_of_the_package():
    assert set(DEPLOYMENTS) == {"nightly-rebuild", "backfill", "geotag-archive"}
    for deployment in DEPLOYMENTS.values():
        assert ":" not in deployment["entrypoint"], "a module, so that a worker needs no checkout"
        flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        assert flow.retries in (None, 0), "stages try again, where that helps"
        flow.validate_parameters(deployment["parameters"])
    assert read_yaml("prefect.yaml")["pull"] == []


def test_a_night_is_left_out_while_another_is_at_work_and_other_runs_wait():
    limits = {name: deployment["concurrency_limit"] for name, deployment in DEPLOYMENTS.items()}

    assert limits == {
        "nightly-rebuild": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "backfill": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "geotag-archive": {"limit": 1, "collision_strategy": "ENQUEUE"},
    }
    assert [name for name, deployment in DEPLOYMENTS.items() if "schedules" in deployment] == ["nightly-rebuild"]
    (schedule,) = DEPLOYMENTS["nightly-rebuild"]["schedules"]
    CronSchedule(**schedule)


def test_parameters_are_those_of_the_requests_and_hold_no_secrets():
    kinds = {"nightly-rebuild": BuildRequest, "backfill": BuildRequest, "geotag-archive": GeotagRequest}
    for name, deployment in DEPLOYMENTS.items():
        text = re.sub(r"\{\{ \$(\w+) \}\}", lambda found: "ray" if "WORKERS" in found[1] else found[1], json.dumps(deployment))
        request = json.loads(text)["parameters"]["request"]
        assert request.keys() <= set(kinds[name].__dataclass_fields__)
        msgspec.convert(request, kinds[name], strict=False)
        assert not re.search(r"secret|token|password|key", text, re.IGNORECASE)
    placeholders = set(re.findall(r"\{\{ \$(\w+) \}\}", (DEPLOY / "prefect.yaml").read_text()))
    assert placeholders <= SERVICES["deploy"]["environment"].keys()


def test_a_place_that_was_not_set_is_refused():
    """Prefect puts an empty text in place of a variable that is not set: the folder that the worker stands in."""
    backfill = load_flow_from_entrypoint(DEPLOYMENTS["backfill"]["entrypoint"], use_placeholder_flow=False)

    with pytest.raises(CatalogError, match="map_url: found ''"):
        backfill.fn({"map_url": "", "photos": ["s3://photos/city"]})
    with pytest.raises(CatalogError, match=r"photos: found .* --param"):
        backfill.fn({"map_url": "s3://maps/city", "photos": []})
    with pytest.raises(CatalogError, match="photos: found"):
        backfill.fn({"map_url": "s3://maps/city", "photos": []}, photos=[""])


@pytest.mark.parametrize("group", GROUPS, ids=["head", "worker"])
def test_a_pod_of_the_ray_cluster_is_one(group: dict[str, Any]):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "folio"}, **group["template"]}

    kubernetes_validate.validate(pod, "1.34", strict=True)

    pod["spec"]["containers"][0]["imagePolicy"] = "Always"  # so it would find a slip of the pen
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.34", strict=True)


def test_ray_reads_from_the_cluster_what_was_meant():
    """By the code with which its autoscaler reads such a document."""
    read = _derive_autoscaling_config_from_ray_cr({**CLUSTER, "metadata": {**CLUSTER["metadata"], "namespace": "default"}})

    kinds = read["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert (kinds["gpu"]["resources"]["CPU"], kinds["gpu"]["resources"]["GPU"]) == (8, 1)
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, 8)
    assert CLUSTER["apiVersion"] == JOB["apiVersion"] == "ray.io/v1"
    assert (CLUSTER["kind"], JOB["kind"]) == ("RayCluster", "RayJob")
    # KubeRay refuses retries, deadlines and a shutdown beside a selector; so these and no others.
    assert JOB["spec"].keys() == {"entrypoint", "submissionMode", "clusterSelector"}
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}


def test_the_readme_names_every_file_and_secret():
    readme = (DEPLOY / "README.md").read_text()

    for file in DEPLOY.iterdir():
        assert f"`{file.name}" in readme or file.name in ("README.md", ".env")
    for group in GROUPS:
        for container in group["template"]["spec"]["containers"]:
            assert container["envFrom"][0]["secretRef"]["name"] in readme


@pytest.mark.slow
def test_what_the_dockerfile_copies_is_enough_for_a_wheel_with_every_flow_in_it(
    dockerfile: list[dict[str, str]], tmp_path: Path
) -> None:
    source, site, elsewhere = tmp_path / "src", tmp_path / "site", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    last = next(number for number, one in enumerate(dockerfile) if one["value"].endswith(" AS base"))
    for name in copied(dockerfile[:last]):
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, source / name)
        else:
            shutil.copy(PROJECT / name, source)

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("folio_vpr-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    look = (
        "import sys; from prefect.flows import load_flow_from_entrypoint as load; "
        "print(load(sys.argv[1], False).fn.__code__.co_filename)"
    )
    for deployment in DEPLOYMENTS.values():
        found = subprocess.run(
            [sys.executable, "-c", look, deployment["entrypoint"]],
            env={**os.environ, "PYTHONPATH": str(site)},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip().startswith(str(site)), "from the wheel, and not from the checkout"
