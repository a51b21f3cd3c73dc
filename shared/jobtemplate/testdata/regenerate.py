"""Checks, or makes again, what is in this folder by running Prefect's own code.

Run it with the Python of an environment that has prefect and prefect-gcp:

    python regenerate.py --check            # report what a new release does differently
    python regenerate.py                    # rewrite outputs from the inputs in each file
    python regenerate.py --check DIR FILE…  # other vectors than those in vectors/

A vector holds the inputs of one launch and what Prefect makes of them. rules.json holds inputs and
outputs of single rules: Python's str() and shlex.split(), slugs, label names, pydantic's conversions.

Replaced by stand-ins: the API (blocks and variables come from the vector), the worker's settings,
Google's credentials, the versions of Prefect and Python, and the random part of the job's name.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import shlex
import types
import uuid
from unittest import mock

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")

import google.auth
import prefect
import prefect.utilities.dockerutils
import prefect_gcp.credentials
import prefect_gcp.workers.cloud_run as v1
import prefect_gcp.workers.cloud_run_v2 as v2
from pydantic import TypeAdapter
from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.utilities.templating import apply_values
from prefect_gcp.utilities import sanitize_labels_for_gcp, slugify_name

HERE = pathlib.Path(__file__).parent
WORKERS = {
    "cloud-run-v2": (v2.CloudRunWorkerJobV2Configuration, 7),
    "cloud-run": (v1.CloudRunWorkerJobConfiguration, 32),
}
OUTPUTS = ("expected", "expected_error", "populated_configuration")


class API:
    """Answers what resolving asks of Prefect's API, from a vector."""

    def __init__(self, vector):
        self.vector = vector

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def read_flow(self, _):
        return Flow.model_validate(self.vector["flow"])

    async def read_deployment(self, _):
        raise AssertionError("a vector without a deployment has a flow run without deployment_id")

    def block(self, **wanted):
        for doc in self.vector["block_documents"]:
            if all(str(doc[k]) == str(v) for k, v in wanted.items()):
                return types.SimpleNamespace(data=doc["data"])
        raise ObjectNotFound(http_exc=Exception("404"))

    async def read_block_document(self, block_document_id):
        return self.block(id=block_document_id)

    async def read_block_document_by_name(self, name, block_type_slug):
        return self.block(name=name, block_type_slug=block_type_slug)

    async def read_variable_by_name(self, name):
        variables = self.vector["variables"]
        return types.SimpleNamespace(value=variables[name]) if name in variables else None


@contextlib.contextmanager
def stand_ins(vector, random_part):
    """Makes this process the worker that the vector describes."""
    worker = vector["worker"]
    google_default = types.SimpleNamespace(quota_project_id=None)
    account = types.SimpleNamespace(
        from_service_account_info=lambda info, **_: types.SimpleNamespace(project_id=info.get("project_id")),
        from_service_account_file=lambda *_, **__: types.SimpleNamespace(project_id=None),
    )
    random_uuid = types.SimpleNamespace(hex=random_part)
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch.dict(os.environ, vector["environment"]),
            mock.patch.object(google.auth, "default", lambda *_, **__: (google_default, vector["adc_project"])),
            mock.patch.object(prefect_gcp.credentials, "Credentials", account),
            mock.patch.object(prefect, "__version__", worker["prefect_version"]),
            mock.patch.object(prefect.utilities.dockerutils, "python_version_minor", lambda: worker["python_version"]),
            mock.patch.object(prefect.utilities.dockerutils.subprocess, "check_output", lambda *_, **__: b"0000000"),
            mock.patch.object(v1, "uuid4", lambda: random_uuid),
            mock.patch.object(v2, "uuid4", lambda: random_uuid),
            mock.patch.object(
                prefect.workers.base.BaseJobConfiguration, "_base_environment", classmethod(lambda _: dict(vector["settings"]))
            ),
        ):
            stack.enter_context(patch)
        yield


def resolve(vector):
    """Returns the outputs of a vector."""
    vector = json.loads(json.dumps(vector))  # resolving changes its inputs
    base, digits = WORKERS[vector["worker_type"]]
    outputs = {}

    def init(self, **populated):
        outputs["populated_configuration"] = json.loads(json.dumps(populated))
        base.__init__(self, **populated)

    configuration = type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})
    deployment = None
    if vector["deployment"]:
        deployment = DeploymentResponse.model_validate(
            {**vector["deployment"], "job_variables": vector["deployment_job_variables"]}
        )
    flow_run = FlowRun.model_validate({**vector["flow_run"], "job_variables": vector["flow_run_job_variables"]})
    if deployment is None:
        flow_run.deployment_id = None
    pool = WorkPool.model_validate({**vector["work_pool"], "base_job_template": vector["base_job_template"]})
    random_part = "<RANDOM32HEX>" if digits == 32 else "0" * digits
    worker_id = vector["worker"]["id"]
    with stand_ins(vector, random_part):
        try:
            c = asyncio.run(
                configuration.resolve_for_flow_run(
                    flow_run=flow_run,
                    deployment=deployment,
                    work_pool=pool,
                    worker_name=vector["worker"]["name"],
                    worker_id=uuid.UUID(worker_id) if worker_id else None,
                    client=API(vector),
                )
            )
            info = c.credentials.service_account_info
            name = c.job_name
            expected = {
                "name": c.name,
                "command": c.command,
                "env": c.env,
                "labels": c.labels,
                "timeout": c.timeout,
                "keep_job": c.keep_job,
                "region": c.region,
                "project": c.project,
                "credentials_service_account_info": info.get_secret_value() if info else None,
                "prefect_api_key_secret": dump(c.prefect_api_key_secret),
                "prefect_api_auth_string_secret": dump(c.prefect_api_auth_string_secret),
            }
            if digits == 7:
                expected["cloudsql_instances"] = c.cloudsql_instances
                expected["env_from_secrets"] = {k: dump(v) for k, v in c.env_from_secrets.items()}
            prefix, pattern = name, f"^{name}$"
            if name and name.endswith(random_part):
                prefix = name[: -len(random_part)]
                pattern = f"^{prefix}[0-9a-f]{{{digits}}}$"
            expected |= {"job_name_prefix": prefix, "job_name_pattern": pattern, "job_body": c.job_body}
            outputs["expected"] = json.loads(json.dumps(expected))
        except Exception as e:  # whatever it is, the launch fails with it
            message = re.sub(r"\n +For further information visit .*", "", str(e))
            outputs["expected_error"] = {"type": type(e).__name__, "message": message}
    return {k: outputs[k] for k in OUTPUTS if k in outputs}


def dump(selector):
    return selector.model_dump() if selector else None


RULES = {
    "str": str,
    "slug": lambda name: slugify_name(name, max_length=55),
    "split": lambda text: shlex.split(text),
    "labels": sanitize_labels_for_gcp,
    "int": TypeAdapter(int).validate_python,
    "bool": TypeAdapter(bool).validate_python,
    "lookup": lambda case: apply_values({"v": case["template"]}, case["values"]).get("v", "<dropped>"),
}


def resolve_rule(case):
    """Returns the output of one case of rules.json; an error's is {"error": its type}."""
    try:
        return RULES[case["rule"]](case["input"])
    except Exception as e:
        return {"error": type(e).__name__}


def differences(old, new, path=""):
    """Yields where two JSON values differ; 1 and 1.0 do, and so do two orders of keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            yield f"{path}: keys {list(old)} became {list(new)}"
        for k in old.keys() & new.keys():
            yield from differences(old[k], new[k], f"{path}.{k}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from differences(a, b, f"{path}[{i}]")
    elif json.dumps(old) != json.dumps(new):
        yield f"{path}: {json.dumps(old)} became {json.dumps(new)}"


def refresh(path, check):
    """Makes the outputs in one file again, and returns how many differ."""
    old = json.loads(path.read_text())
    if isinstance(old, list):
        new = [{**case, "output": resolve_rule(case)} for case in old]
    else:
        new = {k: v for k, v in old.items() if k not in OUTPUTS} | resolve(old)
    found = list(differences(old, new))
    for line in found:
        print(f"{path.name}{line}")
    if found and not check:
        if isinstance(new, list):
            lines = ",\n".join(" " + json.dumps(case, ensure_ascii=False) for case in new)
            path.write_text(f"[\n{lines}\n]\n")
        else:
            path.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n")
    return len(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="report differences, write nothing")
    parser.add_argument("paths", nargs="*", type=pathlib.Path, default=[HERE / "vectors", HERE / "rules.json"])
    args = parser.parse_args()
    files = [f for p in args.paths for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    changed = sum(refresh(f, args.check) > 0 for f in files)
    print(f"prefect {prefect.__version__}: {len(files)} files, {changed} differ")
    raise SystemExit(1 if changed and args.check else 0)


if __name__ == "__main__":
    main()
