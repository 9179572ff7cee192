# SPDX-License-Identifier: Apache-2.0
"""Kinema, installed on a full cluster as a user would: the local one, or that of KUBECONFIG."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping

import pytest
from kinema_demo import target, videos
from kinema_demo.install import install, values
from kinema_demo.kubectl import Kubectl
from kinema_demo.target import Target
from kinema_demo.workspace import Shell, inside, shell

from kinema_cluster.full import WORKSPACE

from tests.cluster.jobs import DATASET, NO_RESULT, SHORT, WEIGHTS, Job, Jobs
from tests.cluster.outcome import Table
from tests.cluster.scraping import Scraping, scraped
from tests.cluster.witness import Witness

NAMESPACE = "kinema-test"
"""Its pods must keep the restricted Pod Security standard."""


ORDER = ("test_local_cluster", "test_progress", "test_metrics_scraped", "test_sharing", "test_pipeline")
"""Files that go first, in this order: clusters are started and killed before one stays up, the watch of test_progress
must see `second` from its beginning, and Prometheus need not go on scraping what it was not meant for."""


TABLE = Table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults and outcomes."""
    if TABLE.rows:
        terminalreporter.section("faults on the cluster")
        terminalreporter.write_line(TABLE.text())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests of this folder by `ORDER`; the rest stays as it is, but what breaks the node comes last."""

    def rank(item: pytest.Item) -> int:
        if "cluster/test_hard_faults.py" in item.nodeid:
            return len(ORDER) + 1
        return next((place for place, name in enumerate(ORDER) if f"cluster/{name}.py" in item.nodeid), len(ORDER))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def cluster() -> Target:
    """The cluster, with the namespace and the workspace's claim."""
    if os.geteuid() != 0 and not os.environ.get("KUBECONFIG"):
        pytest.skip("the full cluster needs root, or KUBECONFIG")
    return target.find(print, namespace=NAMESPACE, push=os.environ.get("PUSH"))


@pytest.fixture(scope="session")
def images(cluster: Target) -> Mapping[str, str]:
    """The images of this checkout, in the cluster."""
    return target.images(cluster, print, push=os.environ.get("PUSH"))


@pytest.fixture(scope="session")
def kubectl(cluster: Target, images: Mapping[str, str]) -> Kubectl:
    """Kubectl for the test's namespace, with Kinema installed."""
    install(cluster.kubectl, values(images))
    return cluster.kubectl


@pytest.fixture(scope="session")
def workspace(kubectl: Kubectl, images: Mapping[str, str]) -> Iterator[Shell]:
    """A pod that sees the workspace, with the demo's videos and toy weights in it."""
    with shell(kubectl, name="workspace", claim=WORKSPACE, image=images["wan2.1"]) as pod:
        pod.put(videos.bundled(print), inside(DATASET))
        pod.run("python", "-m", "kinema_trainer.tiny", inside(WEIGHTS), "--videos", inside(DATASET), timeout=300)
        yield pod


@pytest.fixture(scope="session")
def session() -> str:
    """Keeps what this run makes in the workspace apart from what earlier runs made."""
    return uuid.uuid4().hex[:8]


@pytest.fixture(scope="session")
def jobs(kubectl: Kubectl, workspace: Shell, session: str) -> Iterator[Jobs]:
    """Makes jobs, and deletes them when all is over."""
    made = Jobs(kubectl=kubectl, workspace=workspace, session=session)
    yield made
    made.delete_all()


@pytest.fixture(scope="session")
def outcomes() -> Table:
    """The table of faults and outcomes."""
    return TABLE


@pytest.fixture(scope="module")
def witness(kubectl: Kubectl) -> Iterator[Witness]:
    """Watches all jobs of the test's namespace."""
    with Witness(kubectl) as watching:
        yield watching


@pytest.fixture(scope="session")
def shared(jobs: Jobs) -> str:
    """The workspace of the jobs that share what `wan` makes."""
    return jobs.root("shared")


@pytest.fixture(scope="session")
def scraping(
    request: pytest.FixtureRequest, cluster: Target, kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scraping | None]:
    """A Prometheus that scrapes Kinema from before `wan` on; None where no test asks it, or pods cannot be reached."""
    asked = any("cluster/test_metrics_scraped.py" in item.nodeid for item in request.session.items)
    if not asked or not cluster.local:
        yield None
        return
    with scraped(kubectl, tmp_path_factory.mktemp("scraping")) as found:
        yield found


@pytest.fixture(scope="session")
def wan(jobs: Jobs, shared: str, scraping: Scraping | None) -> Job:
    """The whole pipeline, once; started when it is first wanted."""
    return jobs.start("wan", root=shared, stages=SHORT)


@pytest.fixture(scope="session")
def second(jobs: Jobs, wan: Job, shared: str, scraping: Scraping | None) -> Job:
    """Another job over the same data, that trains for about a minute; started when `wan` has ended."""
    wan.succeeded()
    if scraping is not None:
        scraping.price()
    train = {
        "steps": 300,
        "checkpoint": {"everySteps": 100},
        "validation": {"everySteps": 100, "clips": 1, "timesteps": 2},
    }
    return jobs.start("second", root=shared, stages={**NO_RESULT, "train": train})
