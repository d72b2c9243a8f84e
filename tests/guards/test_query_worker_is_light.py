"""A query worker runs where nothing is built: it must start without Ray and Prefect."""

import subprocess
import sys


def test_the_query_worker_imports_neither_ray_nor_prefect() -> None:
    probe = "import sys, pipelines.query.worker; print({'ray', 'prefect', 's3fs', 'pandas'} & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"
