"""What an S3 policy says of a request, and which of its grants were needed.

AWS decides so of the statements, actions and conditions that the policies in `infra/deploy/s3/` use; others are refused here, so
that nobody takes this for all of it. A `Guard` of the proxy enforces them in front of any S3 server.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.conftest import PROJECT

POLICIES: Final = PROJECT / "infra" / "deploy" / "s3"

ARN: Final = "arn:aws:s3:::"

IF_ABSENT: Final = {"Null": {"s3:if-none-match": "false"}}
"""The request must have the header If-None-Match."""

Grant = tuple[str, str]
"""Action, resource."""


class Policy:
    """One of the policies, and what has been asked of it."""

    def __init__(self, file: Path) -> None:
        document = json.loads(file.read_text())
        assert document.keys() == {"Version", "Statement"}
        self.statements: Final[list[dict[str, Any]]] = document["Statement"]
        self.used: set[Grant] = set()
        self.denied: list[str] = []
        for statement in self.statements:
            assert statement["Effect"] == "Allow"
            assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            assert statement.get("Condition") in (None, IF_ABSENT)

    @property
    def grants(self) -> set[Grant]:
        """List what is allowed, one action on one resource at a time."""
        return {
            (action, resource)
            for statement in self.statements
            for action in _listed(statement["Action"])
            for resource in _listed(statement["Resource"])
        }

    def allows(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Decide on a request and note which grants it took."""
        action, name = asked(method, path)
        needed = {
            (action, resource)
            for statement in self.statements
            if action in _listed(statement["Action"]) and ("Condition" not in statement or "If-None-Match" in headers)
            for resource in _listed(statement["Resource"])
            if fnmatchcase(f"{ARN}{name}", resource)
        }
        self.used |= needed
        if not needed:
            self.denied.append(f"{action} {name}")
        return bool(needed)


def asked(method: str, path: str) -> Grant:
    """Name the action that a request needs, and the bucket or object it needs it on."""
    url = urlsplit(path)
    options = parse_qs(url.query, keep_blank_values=True)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    if not key:
        assert method in ("GET", "HEAD"), f"{method} {path}"
        return "s3:ListBucket", bucket
    if method == "DELETE":
        return ("s3:AbortMultipartUpload" if "uploadId" in options else "s3:DeleteObject"), f"{bucket}/{key}"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject"}[
        method
    ], f"{bucket}/{key}"


def _listed(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more
