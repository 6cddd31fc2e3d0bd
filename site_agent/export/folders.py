"""The folder that an export writes, and the note in it that says whose it is."""

from pathlib import Path

from shared.canonical import write_atomically
from shared.errors import InputError
from site_agent.predict import WORDS, Model

README = "README.md"
PRIVATE_WORDS = (
    "PRIVATE: tensors trained on this hospital's patients, which the federation never sees. Keep it in the hospital."
)
SHARED_WORDS = "It holds nothing of this site alone: the federation's global part, as every site has it."
NOT_FOR = "For research; no medical device, and not calibrated."


def make(out: Path, private: bool) -> None:
    """Make a new folder, for its owner's eyes only if what goes in is private. Raises InputError if there is something in it."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out} is not an empty folder; name a new one")
        out.mkdir(parents=True, exist_ok=True)
        if private:
            out.chmod(0o700)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def header(private: bool) -> dict[str, str]:
    """Metadata of a safetensors file, so that one that was moved out of its folder still says whose it is."""
    return {"format": "pt", "whose": whose(private)}


def whose(private: bool) -> str:
    """Say who may have it."""
    return PRIVATE_WORDS if private else SHARED_WORDS


def write_note(path: Path, model: Model, title: str, use: str) -> None:
    """Write what a folder is, whose it is, what is in it and how it is used."""
    version = f"version {model.version.version}, {model.version.digest[:16]}" if model.version else "no adapter"
    threshold = f"{model.threshold.probability:.4f}, {model.threshold.source}" if model.threshold else "none"
    lines = [
        f"# {title}",
        f"**{whose(model.private)}**",
        f"Part {model.part}: {WORDS[model.part]} ({version}). Classes: {', '.join(model.class_names)}.",
        f"Threshold on the probability of disease: {threshold}.",
        NOT_FOR,
        use,
    ]
    write_atomically(path, ("\n\n".join(lines) + "\n").encode())
