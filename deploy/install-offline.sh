#!/bin/sh
# Installs a wheelhouse on this machine, without any network: sh install.sh TARGET [SHA256-OF-SHA256SUMS]
#
#   sh wheelhouse/install.sh /opt/med-duallora 5f2c...
#
# Nothing is installed unless every file is what it was when the wheelhouse was made.
set -eu

target=${1:?usage: install.sh TARGET [SHA256-OF-SHA256SUMS]}
told=${2:-}
python=${PYTHON:-python3}
case $target in /*) ;; *) target=$PWD/$target ;; esac
cd "$(dirname "$0")"

fail() { echo "error: $1" >&2; exit 3; }
[ ! -e "$target" ] || fail "$target exists already; remove it, or choose another target"
found=$(sha256sum SHA256SUMS | cut -d' ' -f1)
[ -z "$told" ] || [ "$told" = "$found" ] || fail "SHA256SUMS has hash $found, not $told: this is not the wheelhouse you were told of"
sha256sum --check --quiet --strict SHA256SUMS || fail "the files named above are not what was packed; copy the wheelhouse again"
here=$("$python" -c 'import platform, sys; print(f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}")')
[ "$here" = "$(cat made-for)" ] || fail "made for Python and processor $(cat made-for), here is $here; name another Python (PYTHON=python3.12), or make a wheelhouse with this one"

"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links . --require-hashes --requirement requirements.txt
"$target/bin/python" -m pip check --disable-pip-version-check
echo "installed in $target: $(cd "$target/bin" && ls aggregator site-agent | tr '\n' ' ')"
