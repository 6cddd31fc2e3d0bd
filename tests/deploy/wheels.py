"""Wheels of what is installed here, packed again from the files that each installation recorded: an index without a network."""

import re
from importlib import metadata
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

LEFT_BY_INSTALLERS = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}


def packed(name: str, folder: Path) -> Path:
    """Write the wheel of an installed distribution; its commands are made anew from its entry points. Return the file."""
    installed = metadata.distribution(name)
    tags = re.findall(r"^Tag: (\S+)", installed.read_text("WHEEL") or "", re.MULTILINE)
    python, abi, platform = (".".join(sorted({tag.split("-")[k] for tag in tags})) for k in range(3))
    project = re.sub(r"[-.]+", "_", installed.metadata["Name"])
    wheel = folder / f"{project}-{installed.version}-{python}-{abi}-{platform}.whl"
    with ZipFile(wheel, "w", ZIP_STORED) as archive:
        for file in installed.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts and file.name not in LEFT_BY_INSTALLERS:
                archive.write(str(file.locate()), str(file))
    return wheel
