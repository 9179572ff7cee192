# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the flow from nothing to a sampled clip."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text

from kinema_cluster.errors import ClusterError
from kinema_demo import target, videos
from kinema_demo.curve import draw
from kinema_demo.errors import DemoError
from kinema_demo.follow import KIND, Follower
from kinema_demo.install import NAMESPACE, ROOT, install, values
from kinema_demo.job import JobView, read
from kinema_demo.kubectl import Kubectl, Object
from kinema_demo.report import explain
from kinema_demo.steps import Say, Steps
from kinema_demo.target import Target
from kinema_demo.view import show
from kinema_demo.workspace import Shell, inside, shell

JOB = ROOT / "examples" / "wan-job.yaml"
OUT = ROOT / "out" / "demo"
POD = "kinema-demo-shell"
EXIT_DETACHED = 130


def main(arguments: Sequence[str]) -> int:
    """Run the demo; the exit status says whether the job succeeded."""
    chosen = _parser().parse_args(arguments)
    console = Console(emoji=False)
    errors = Console(stderr=True)
    try:
        return run(chosen, console)
    except (DemoError, ClusterError) as error:
        errors.print(Text(f"demo: {error}", style="red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("\ndemo: stopped; `make demo` goes on where it was")
        return EXIT_DETACHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--videos", type=Path, help="a folder of your own: NAME.mp4 and NAME.txt with its caption")
    parser.add_argument("--job", type=Path, default=JOB, help="the job to run (default: examples/wan-job.yaml)")
    parser.add_argument("--namespace", default="default", help="where the job runs")
    parser.add_argument("--push", metavar="REGISTRY", help="where a cluster of your own (KUBECONFIG) pulls images from")
    parser.add_argument("--storage-class", help="for the workspace's claim on a cluster of your own")
    parser.add_argument("--fresh", action="store_true", help="delete a job of that name even while it runs")
    return parser


def run(chosen: argparse.Namespace, console: Console) -> int:
    """The demo from start to end."""
    if chosen.videos is not None:
        videos.check(chosen.videos)
    job: Object = yaml.safe_load(chosen.job.read_text(encoding="utf-8"))
    name = job["metadata"]["name"]
    steps = Steps(console, total=6)
    with steps.step("cluster") as say:
        cluster = target.find(say, namespace=chosen.namespace, storage_class=chosen.storage_class, push=chosen.push)
    with steps.step("images") as say:
        images = target.images(cluster, say, push=chosen.push)
    with steps.step("helm install") as say:
        say("waiting for the operator and the server")
        install(cluster.kubectl, values(images))
    with steps.step("videos and weights on the workspace volume") as say:
        if not _running(cluster.kubectl, name) or chosen.fresh:
            with _shell(cluster, job, images["wan2.1"]) as pod:
                _fill(pod, job, folder=chosen.videos, image=images["wan2.1"], say=say)
    with steps.step(f"kubectl apply -f {_shown(chosen.job)}") as say:
        submit(cluster.kubectl, chosen.job, name=name, fresh=chosen.fresh, say=say)
    ended = _follow(cluster, name, console)
    if ended is None:
        return EXIT_DETACHED
    if not ended.succeeded:
        console.print(explain(cluster.kubectl, ended), markup=False, highlight=False, soft_wrap=True)
        return 1
    with steps.step("results") as say, _shell(cluster, job, images["wan2.1"]) as pod:
        lines = _results(pod, ended, say)
    _close(console, cluster, ended, lines, elapsed=steps.elapsed)
    return 0


def _shell(cluster: Target, job: Object, image: str) -> AbstractContextManager[Shell]:
    claim = inside(job["spec"]["storage"]["uri"]).split("/")[3]
    return shell(cluster.kubectl, name=POD, claim=claim, image=image)


def _fill(pod: Shell, job: Object, *, folder: Path | None, image: str, say: Say) -> None:
    """Videos and the toy pipeline folder, where they are not there yet."""
    say("looking for the videos")
    local = folder or videos.bundled(say)
    found = videos.check(local)
    dataset = inside(job["spec"]["dataset"]["uri"])
    weights = inside(job["spec"]["model"]["weights"]["uri"])
    say(f"copying {len(found)} videos to {job['spec']['dataset']['uri']}")
    pod.run("python", "-c", "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)", dataset)
    pod.put(local, dataset)
    # Its VAE is calibrated on the videos, so other videos ask for other weights.
    key = videos.key(found, image)
    if pod.read(f"{weights}.key") == key and pod.exists(f"{weights}/model_index.json"):
        return
    say("making the toy pipeline folder that stands for pretrained weights")
    pod.run("python", "-m", "kinema_trainer.tiny", weights, "--videos", dataset, timeout=600)
    pod.write(f"{weights}.key", key)


def submit(kubectl: Kubectl, path: Path, *, name: str, fresh: bool, say: Say) -> None:
    """Apply the job; one that ended is deleted first, one that runs is followed."""
    before = kubectl.get(KIND, name)
    if before is not None and not read(before).ended and not fresh:
        say(f"vtj/{name} runs already: following it (--fresh deletes it and starts again)")
        return
    if before is not None:
        say(f"deleting vtj/{name} of the last run; what it shares with others stays in the workspace")
        kubectl.run("delete", KIND, name, "--wait", "--timeout=300s", timeout=330)
    kubectl.run("apply", "-f", str(path))


def _running(kubectl: Kubectl, name: str) -> bool:
    found = kubectl.get(KIND, name)
    return found is not None and not read(found).ended


def _follow(cluster: Target, name: str, console: Console) -> JobView | None:
    try:
        with Follower(cluster.kubectl, name) as follower:
            ended = show(follower, console)
    except KeyboardInterrupt:
        console.print(
            "\nThe job goes on without this window. `make demo` comes back to it; so does\n"
            f"  {cluster.usage(f'get vtj {name} -w')}\nand this ends it:\n  {cluster.usage(f'delete vtj {name}')}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return None
    if ended is None:
        raise DemoError(f"vtj/{name} was deleted while it ran")
    return ended


def _results(pod: Shell, job: JobView, say: Say) -> list[str]:
    """Copy clips and metrics out, draw the loss; one line for each thing to look at."""
    folder = OUT / f"{job.name}-{job.uid[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"copying from {job.workspace}")
    files = pod.fetch(inside(job.workspace), folder, "samples/*.mp4", "metrics.jsonl")
    clips = [path for path in files if path.suffix == ".mp4"]
    if not clips:
        raise DemoError(f"{job.workspace}/samples holds no mp4 although the job succeeded")
    picture = folder / "loss.png"
    draw(folder / "metrics.jsonl", picture, title=f"{job.name}: training loss")
    return [*(f"clip   {path}" for path in clips), f"loss   {picture}", f"all    {job.workspace}"]


def _close(console: Console, cluster: Target, job: JobView, lines: list[str], *, elapsed: str) -> None:
    skipped = [stage.name for stage in job.stages if stage.state == "Skipped"]
    if skipped:
        note = f"Skipped, since an earlier run had made the same: {', '.join(skipped)}."
        console.print(note, highlight=False, soft_wrap=True)
    console.print(Text(f"Succeeded in {elapsed}.", style="bold green"))
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    look = [
        cluster.usage(f"describe vtj {job.name}"),
        cluster.usage("logs deploy/kinema-operator", namespace=NAMESPACE),
        *(["make cluster-down     stops the cluster and removes what it holds"] if cluster.local else []),
    ]
    console.print("Look around:", highlight=False)
    for line in look:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
