"""`folio status` is asked often, by people and by cron: it must not wait for the libraries that builds need."""

import subprocess
import sys


def test_status_and_counting_import_none_of_the_heavy_libraries() -> None:
    heavy = {"torch", "faiss", "ray", "prefect", "pyarrow", "zarr", "s3fs", "prometheus_client"}
    probe = f"import sys, pipelines.maintain.status, infra.metrics; print({heavy} & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"
