"""Rules for ``image`` and the keys that only make sense beside it."""

from __future__ import annotations

import re

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.image import IMAGE, VERSION_MATTERS, image_version, volume
from arbiterd.model.settings import BackendSettings, Kind

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[A-Za-z0-9_][\w.-]*(:[A-Za-z0-9_][\w.-]*)?")


def check_container(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """One backend's image, client, volumes, version, user and environment."""
    if report.broken(*at, "image"):
        return
    if not backend.image:
        for key, value in (("container", backend.container), ("volumes", backend.volumes)):
            if value:
                report.add((*at, key), "is for images only", 'write image = "NAME:TAG", too')
        return
    if not IMAGE.fullmatch(backend.image):
        wrong = f"{backend.image!r} is no image name"
        report.add((*at, "image"), wrong, 'write "NAME:TAG", like "ollama/ollama:0.33.0"')
    elif (
        backend.kind in VERSION_MATTERS
        and not report.broken(*at, "version")
        and not (backend.version or image_version(backend.image))
    ):
        report.add(
            (*at, "version"),
            f"cannot be found out: the tag of {backend.image} does not tell it",
            f'write version = "{_EXAMPLES[backend.kind]}", or an image with a version as its tag',
        )
    for text in backend.volumes:
        if volume(text) is None:
            report.add(
                (*at, "volumes"),
                f"{text!r} is no volume",
                'write "/FOLDER:/TARGET", "NAME:/TARGET", or either with ":ro" at its end',
            )
    for name in backend.env:
        if not _VARIABLE.fullmatch(name):
            report.add((*at, "env"), f"{name!r} is no variable's name", "use A-Z, 0-9 and _")
    if backend.user and not _USER.fullmatch(backend.user):
        wrong = f"{backend.user!r} is no user within a container"
        report.add((*at, "user"), wrong, 'write "NAME", "UID" or "UID:GID"')


_EXAMPLES = {Kind.VLLM: "0.30.0", Kind.OLLAMA: "0.33.0"}
