# SPDX-License-Identifier: Apache-2.0
"""A thin asynchronous Kubernetes client: objects stay plain JSON data, errors are typed."""

from kinema_kube.client import Kube, Page
from kinema_kube.connect import connect
from kinema_kube.resources import Resource

__all__ = ["Kube", "Page", "Resource", "connect"]
