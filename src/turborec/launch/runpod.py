"""A training in a container rented from RunPod: the script that runs in it, and the request that creates it.

What is known of RunPod is from its documentation (docs.runpod.io: Manage Pods, Environment variables, REST API v1); it was not
tried with an account.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from turborec.launch.script import Machine, Work, script
from turborec.recipe import Config

MOUNT = "/workspace"
"""Where a pod's volume is: what lies elsewhere is lost when the pod is stopped."""

PRESETS: dict[str, dict[str, Any]] = {
    "a6000": {"gpu": "NVIDIA RTX A6000", "machine": {"gpus": 1}},
    "4xh100": {
        "gpu": "NVIDIA H100 80GB HBM3",
        "machine": {"gpus": 4, "allocator": "expandable_segments:True"},
    },
}
"""One RTX A6000, as the study of state-space models used; and four H100."""


class Pod(Config):
    """What is asked of RunPod."""

    image: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$", description="made from the Dockerfile, in a registry")
    name: str = Field("turborec", pattern=r"^[A-Za-z0-9._-]+$")
    gpu: str = Field("NVIDIA RTX A6000", pattern=r"^[A-Za-z0-9 ._-]+$", description="RunPod's id of the kind of GPU")
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    disk: int = Field(20, ge=1, description="GB that are lost when the pod stops")
    volume: int = Field(100, ge=1, description="GB that stay while the pod is stopped")
    network_volume: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]+$", description="the id of a volume that outlives the pod, in place of its own"
    )
    end: Literal["stop", "remove", "keep"] | None = Field(
        None, description="what becomes of the pod when all is done: by default stop, with a network volume remove"
    )
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _ends_well(self) -> "Pod":
        if self.end == "stop" and self.network_volume:
            raise ValueError("end: a pod with a network volume cannot be stopped, only removed: state remove, or keep")
        if self.end == "remove" and not self.network_volume:
            raise ValueError("end: removing the pod would remove its volume and the run on it: state stop, or a network_volume")
        if not self.machine.gpus:
            raise ValueError("machine.gpus: a pod has one at least")
        return self

    @property
    def ending(self) -> str:
        """The word of `runpodctl` that ends the pod, or keep."""
        return self.end or ("remove" if self.network_volume else "stop")

    @property
    def mount(self) -> str:
        """Where its volume is."""
        return MOUNT


def start_script(pod: Pod, work: Work) -> str:
    """What runs in the container: the script for a plain machine, on the volume, in the image's own Python."""
    given = pod.machine
    places = {"folder": given.folder or MOUNT, "home": given.home or f"{MOUNT}/turborec", "environment": None}
    return script(given.model_copy(update=places), work, pod)


def request(pod: Pod, text: str) -> dict[str, Any]:
    """The body of RunPod's `POST https://rest.runpod.io/v1/pods`, for a pod that begins with this script."""
    volume = {"networkVolumeId": pod.network_volume} if pod.network_volume else {"volumeInGb": pod.volume}
    return {
        "name": pod.name,
        "imageName": pod.image,
        "cloudType": pod.cloud,
        "computeType": "GPU",
        "gpuTypeIds": [pod.gpu],
        "gpuCount": pod.machine.gpus,
        "containerDiskInGb": pod.disk,
        **volume,
        "volumeMountPath": MOUNT,
        "dockerEntrypoint": ["bash", "-c"],
        "dockerStartCmd": [text],
    }
