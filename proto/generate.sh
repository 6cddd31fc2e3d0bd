#!/usr/bin/env bash
# Writes the Python code of the protocol beside the .proto files. Usage: proto/generate.sh [OUT]   (default: in place)
# The generator lives in an environment of its own: stubs of a newer grpcio-tools refuse the protobuf releases we support.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
tools=$here/../.proto-venv
if [ ! -x "$tools/bin/protoc-gen-mypy" ]; then
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet 'grpcio-tools==1.76.0' 'setuptools<81' 'mypy-protobuf==3.7.0'
fi
mkdir -p "$out"
PATH="$tools/bin:$PATH" "$tools/bin/python" -m grpc_tools.protoc -I "$here" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet,only_async:$out" \
  "$here"/med_duallora/v1/*.proto
