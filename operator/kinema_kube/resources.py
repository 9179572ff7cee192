# SPDX-License-Identifier: Apache-2.0
"""The resources of the API server that Kinema uses."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from kinema_api import names


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the API server, and where it is served."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects spell it: `batch/v1`, or `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, *, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, or of the collection when there is no name.

        Raises:
            ValueError: a namespaced object without a namespace, or the other way round; a name that is none.
        """
        if namespace is not None and not self.namespaced:
            raise ValueError(f"{self.plural} have no namespace; {namespace!r} was given")
        if name is not None and namespace is None and self.namespaced:
            raise ValueError(f"{self.plural} {name!r}: the namespace is missing")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = ["namespaces", namespace] if namespace is not None else []
        segments = [*scope, self.plural, *([] if name is None else [name]), *([subresource] if subresource else [])]
        for segment in segments:
            # An HTTP client resolves dots: `..` would name another object than the one that was asked for.
            if segment in ("", ".", ".."):
                raise ValueError(f"{self.plural}: {segment!r} is no name")
        return "/".join([root, *(quote(segment, safe="") for segment in segments)])


VIDEO_TRAINING_JOBS = Resource(names.GROUP, names.VERSION, names.JOB_PLURAL, names.JOB_KIND)
TRAINING_POOLS = Resource(names.GROUP, names.VERSION, names.POOL_PLURAL, names.POOL_KIND, namespaced=False)
JOBS = Resource("batch", "v1", "jobs", "Job")
PYTORCH_JOBS = Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("", "v1", "events", "Event")
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CUSTOM_RESOURCE_DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
SUBJECT_ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
