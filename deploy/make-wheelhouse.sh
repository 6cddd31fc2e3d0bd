#!/bin/sh
# Everything a machine without internet needs to install Med-DualLoRA, in one folder to carry there.
#
#   deploy/make-wheelhouse.sh FOLDER [EXTRA...]
#
#   deploy/make-wheelhouse.sh wheelhouse site report      an agent       (extras of pyproject.toml)
#   deploy/make-wheelhouse.sh wheelhouse postgres         an aggregator
#
# Run it on a connected machine with the hospital's operating system, processor and Python (PYTHON=python3.12 names one): wheels
# are made for these. pip's own settings hold; for agents without a GPU, PIP_EXTRA_INDEX_URL with the address of PyTorch's CPU
# builds leaves out the libraries of CUDA. There: sh FOLDER/install.sh /opt/med-duallora
set -eu

folder=${1:?usage: make-wheelhouse.sh FOLDER [EXTRA...]}
shift
extras=$(echo "$*" | tr ' ' ',')
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ ! -e "$folder" ] || { echo "$folder exists already; choose another folder, or remove it" >&2; exit 3; }

mkdir -p "$folder"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$project"
"$python" -m pip download --quiet --only-binary :all: --constraint "$project/constraints.txt" --dest "$folder" \
  "$(ls "$folder"/med_duallora-*.whl)${extras:+[$extras]}"
cp "$project/deploy/install-offline.sh" "$folder/install.sh"
cd "$folder"
"$python" -c 'import platform, sys; print(f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}")' > made-for
# What pip may install: these files and no others, each with its hash.
"$python" - *.whl > requirements.txt <<'PYTHON'
import hashlib, sys
for name in sys.argv[1:]:
    project, version = name.split("-")[:2]
    with open(name, "rb") as wheel:
        print(f"{project}=={version} --hash=sha256:{hashlib.file_digest(wheel, 'sha256').hexdigest()}")
PYTHON
sha256sum -- *.whl requirements.txt install.sh made-for > SHA256SUMS
echo "$folder: $(ls -- *.whl | wc -l) wheels for Python and processor $(cat made-for), $(du -sh . | cut -f1)"
echo "tell the hospital by another way: sha256 of SHA256SUMS is $(sha256sum SHA256SUMS | cut -d' ' -f1)"
