"""The cluster's YAML files and image: accepted by their readers, safe, and of one version."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raycrt import __version__, recipes

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster/ray-cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
SCHEMA = yaml.safe_load(Path(__file__).with_name("rayjob.schema.yaml").read_text())
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STARTS = [
    CLUSTER["head_start_ray_commands"][-1],
    CLUSTER["worker_start_ray_commands"][-1],
]


def ray_accepts(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def pods() -> list[dict[str, Any]]:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def change(tree: Any, path: str, value: Any) -> Any:
    """A copy of `tree` with the place at the dotted `path` set to `value`."""
    changed = here = copy.deepcopy(tree)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        here = here[key]
    here[last] = value
    return changed


def test_ray_up_accepts_the_cluster() -> None:
    ray_accepts(CLUSTER)


@pytest.mark.parametrize(
    ("key", "value"),
    [("setup_command", ["true"]), ("auth", {"ssh_usr": "ray"}), ("docker", {"imag": "raycrt"})],
)
def test_the_check_of_ray_up_would_find_a_mistake(key: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        ray_accepts({**CLUSTER, key: value})


def test_provider_has_the_keys_that_ray_does_not_check() -> None:
    assert set(CLUSTER["provider"]) == {"type", "head_ip", "worker_ips"}
    assert CLUSTER["provider"]["type"] == "local"


@pytest.mark.parametrize("command", STARTS, ids=["head", "worker"])
def test_start_commands_have_options_of_ray_start(command: str) -> None:
    from ray.scripts.scripts import start

    arguments = command.partition("ray start ")[2]
    known = {option for parameter in start.params for option in parameter.opts}
    used = {word.partition("=")[0] for word in shlex.split(arguments)}
    assert used <= known
    assert "--disable-usage-stats" in used


def test_the_login_profile_asks_for_the_token() -> None:
    [written] = [line for line in CLUSTER["setup_commands"] if "> ~/raycrt/profile" in line]
    assert "RAY_AUTH_MODE=token" in written


def test_dashboard_of_the_head_is_on_loopback() -> None:
    assert "--dashboard-host=127.0.0.1" in STARTS[0]


def test_what_is_copied_to_the_nodes_exists_and_is_what_the_package_is_made_of() -> None:
    mounts = CLUSTER["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    ours = {source for source in mounts.values() if not source.startswith("~")}
    missing = {source for source in ours if not (ROOT / source).exists()}
    assert not missing
    assert {"docs/package/README.md", "pyproject.toml", "raycrt", "tuning", "cluster"} <= ours
    copied = set(re.findall(r"COPY \S+ (.+) \S+$", DOCKERFILE, flags=re.MULTILINE))
    assert set(" ".join(copied).split()) == ours


def test_rayjob_fits_the_schema_of_kuberay() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAYJOB, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entryPoint", "true"),
        ("spec.backoffLimit", "1"),
        ("spec.rayClusterSpec.authOptions.mode", "tokn"),
        ("spec.rayClusterSpec.authOptions.mode", "disabled"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 2}),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePullSecret", "x"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", -1),
    ],
)
def test_the_schema_would_find_a_mistake(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(change(RAYJOB, path, value), SCHEMA, jsonschema.Draft202012Validator)


def test_one_version_of_ray_and_of_the_image_everywhere() -> None:
    (pinned,) = (
        requirement.partition("==")[2]
        for requirement in PROJECT["optional-dependencies"]["train"]
        if requirement.startswith("ray[")
    )
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    assert re.search(rf"^FROM rayproject/ray:{re.escape(pinned)}-py311$", DOCKERFILE, re.MULTILINE)
    image = f"raycrt:{__version__}"
    assert {c["image"] for pod in pods() for c in pod["containers"]} == {image}
    assert f"--tag {image} " in DOCKERFILE


def test_rayjob_runs_a_recipe_and_writes_to_a_volume_that_all_pods_share() -> None:
    words = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "raycrt.cluster.pipeline"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert recipes.load(options["--recipe"])
    for pod in pods():
        (claim,) = pod["volumes"]
        assert claim["persistentVolumeClaim"]["claimName"] == "raycrt-shared"
        for container in pod["containers"]:
            (mount,) = container["volumeMounts"]
            assert mount["name"] == claim["name"]
            assert Path(options["--out"]).is_relative_to(mount["mountPath"])


def test_no_file_holds_a_token() -> None:
    for file in (ROOT / "cluster").iterdir():
        if file.is_file():
            assert not re.search(r"[0-9a-f]{32}", file.read_text()), file
